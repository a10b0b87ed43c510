llm = VLLM.llm!("meta-llama/Llama-2-7b-hf",
  gpu_memory_utilization: 0.95,
  max_num_batched_tokens: 8192,
  max_num_seqs: 256
)
