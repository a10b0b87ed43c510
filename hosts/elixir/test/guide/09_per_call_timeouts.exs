# Use timeout profile
outputs = VLLM.generate!(llm, prompts,
  __runtime__: [timeout_profile: :batch_job]
)

# Use exact milliseconds
outputs = VLLM.generate!(llm, prompts,
  __runtime__: [timeout: 300_000]  # 5 minutes
)

# Using helpers
opts = VLLM.with_timeout([sampling_params: params], timeout_profile: :ml_inference)
outputs = VLLM.generate!(llm, prompts, opts)
