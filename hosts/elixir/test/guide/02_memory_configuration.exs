llm = VLLM.llm!("meta-llama/Llama-2-7b-hf",
  # GPU memory utilization (0.0 to 1.0)
  gpu_memory_utilization: 0.9,

  # Swap space for CPU offloading (GB)
  swap_space: 4,

  # CPU offload GB
  cpu_offload_gb: 0
)
