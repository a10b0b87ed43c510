llm = VLLM.llm!("TheBloke/Llama-2-7B-AWQ",
  quantization: "awq",
  gpu_memory_utilization: 0.7,
  max_model_len: 2048
)
