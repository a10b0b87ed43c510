llm = VLLM.llm!("meta-llama/Llama-2-7b-hf",
  gpu_memory_utilization: 0.8,
  max_num_seqs: 1
)
