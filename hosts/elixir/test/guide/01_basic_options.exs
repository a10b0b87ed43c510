llm = VLLM.llm!("meta-llama/Llama-2-7b-hf",
  # Data type for model weights
  dtype: "auto",              # "auto", "float16", "bfloat16", "float32"

  # Maximum sequence length
  max_model_len: 4096,

  # Trust remote code from HuggingFace
  trust_remote_code: false
)
