# config/config.exs
config :vllm, v1_multiprocessing: :auto  # :auto | :on | :off
