# Public model
llm = VLLM.llm!("facebook/opt-125m")

# Gated model (requires HF_TOKEN)
llm = VLLM.llm!("meta-llama/Llama-2-7b-hf")
