llm = VLLM.llm!("facebook/opt-125m",
  revision: "main"  # or specific commit hash
)
