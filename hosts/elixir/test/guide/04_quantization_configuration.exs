llm = VLLM.llm!("TheBloke/Llama-2-7B-AWQ",
  # Quantization method
  quantization: "awq",        # "awq", "gptq", "squeezellm", "fp8", etc.

  # Quantized KV cache
  kv_cache_dtype: "auto"      # "auto", "fp8"
)
