import Config

# Auto-configure Snakepit (and apply vLLM safety defaults)
VLLM.ConfigHelper.configure_snakepit!()
