llm = VLLM.llm!("/path/to/local/model")
