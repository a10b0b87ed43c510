llm = VLLM.llm!("meta-llama/Llama-2-70b-hf",
  # Tensor parallelism (split layers across GPUs)
  tensor_parallel_size: 4,

  # Pipeline parallelism (split stages across GPUs)
  pipeline_parallel_size: 2,

  # Distributed executor backend
  distributed_executor_backend: "ray"  # or "mp"
)
