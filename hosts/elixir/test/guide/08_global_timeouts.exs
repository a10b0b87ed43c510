# config/config.exs
config :snakebridge,
  runtime: [
    library_profiles: %{"vllm" => :batch_job}  # 1 hour timeout
  ]
