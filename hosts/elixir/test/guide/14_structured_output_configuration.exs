llm = VLLM.llm!("meta-llama/Llama-2-7b-hf",
  # Enable guided decoding
  guided_decoding_backend: "outlines"  # or "lm-format-enforcer"
)
