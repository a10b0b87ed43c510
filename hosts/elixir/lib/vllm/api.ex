# Made by scripts/api_bindings.py from the public API of vLLM 0.32.0. Do not edit.

defmodule VLLM.Api do
  @moduledoc "Makes objects of vLLM's parameter classes; see `VLLM.Runtime`."

  alias VLLM.{LLM, Ref, Runtime}

  @type result :: {:ok, Ref.t()} | {:error, VLLM.Error.t()}

  @type lorarequest :: [
          base_model_name: String.t() | nil,
          is_3d_lora_weight: boolean,
          load_inplace: boolean,
          lora_int_id: integer,
          lora_name: String.t(),
          lora_path: String.t()
        ]

  @doc "Request for a LoRA adapter."
  @spec lorarequest(LLM.t(), lorarequest, keyword) :: result
  def lorarequest(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.lora.request", "LoRARequest", [], kwargs, opts)

  @type late_interaction_params :: [
          mode: String.t(),
          query_key: String.t(),
          query_uses: integer | nil
        ]

  @doc "Metadata for worker-side late-interaction scoring."
  @spec late_interaction_params(LLM.t(), late_interaction_params, keyword) :: result
  def late_interaction_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.pooling_params", "LateInteractionParams", [], kwargs, opts)

  @type pooling_params :: [
          dimensions: integer | nil,
          extra_kwargs: map | nil,
          late_interaction_params: term,
          output_kind: term,
          requires_token_ids: boolean,
          returned_token_ids: list | nil,
          skip_reading_prefix_cache: boolean | nil,
          step_tag_id: integer | nil,
          task: term,
          use_activation: boolean | nil
        ]

  @doc "API parameters for pooling models."
  @spec pooling_params(LLM.t(), pooling_params, keyword) :: result
  def pooling_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.pooling_params", "PoolingParams", [], kwargs, opts)

  @type beam_search_params :: [
          beam_width: integer,
          ignore_eos: boolean,
          include_stop_str_in_output: boolean,
          length_penalty: number,
          max_tokens: integer,
          skip_special_tokens: boolean,
          structured_outputs: term,
          temperature: number,
          watermarking: boolean | nil
        ]

  @doc "Beam search parameters for text generation."
  @spec beam_search_params(LLM.t(), beam_search_params, keyword) :: result
  def beam_search_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.sampling_params", "BeamSearchParams", [], kwargs, opts)

  @type repetition_detection_params :: [
          max_pattern_size: integer,
          min_count: integer,
          min_pattern_size: integer
        ]

  @doc "Parameters for detecting repetitive N-gram patterns in output tokens."
  @spec repetition_detection_params(LLM.t(), repetition_detection_params, keyword) :: result
  def repetition_detection_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.sampling_params", "RepetitionDetectionParams", [], kwargs, opts)

  @type sampling_params :: [
          allowed_token_ids: list | nil,
          bad_words: list | nil,
          detokenize: boolean,
          extra_args: map | nil,
          flat_logprobs: boolean,
          frequency_penalty: number,
          ignore_eos: boolean,
          include_stop_str_in_output: boolean,
          logit_bias: map | nil,
          logprob_token_ids: list | nil,
          logprobs: integer | nil,
          max_tokens: integer | nil,
          min_p: number,
          min_tokens: integer,
          n: integer,
          output_kind: term,
          output_text_buffer_length: integer,
          presence_penalty: number,
          prompt_logprob_start: integer | nil,
          prompt_logprob_token_ids: term,
          prompt_logprobs: integer | nil,
          repetition_detection: term,
          repetition_penalty: number,
          routed_experts_prompt_start: integer,
          seed: integer | nil,
          skip_clone: boolean,
          skip_reading_prefix_cache: boolean | nil,
          skip_special_tokens: boolean,
          spaces_between_special_tokens: boolean,
          stop: String.t() | list | nil,
          stop_token_ids: list | nil,
          stream_interval: integer | nil,
          structured_outputs: term,
          temperature: number,
          thinking_token_budget: integer | nil,
          top_k: integer,
          top_p: number,
          trace_decode_token_ids: list | nil,
          watermarking: boolean | nil
        ]

  @doc "Sampling parameters for text generation."
  @spec sampling_params(LLM.t(), sampling_params, keyword) :: result
  def sampling_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.sampling_params", "SamplingParams", [], kwargs, opts)

  @type structured_outputs_params :: [
          choice: list | nil,
          disable_additional_properties: boolean,
          disable_any_whitespace: boolean,
          grammar: String.t() | nil,
          json: String.t() | map | nil,
          json_object: boolean | nil,
          regex: String.t() | nil,
          structural_tag: String.t() | nil,
          whitespace_pattern: String.t() | nil
        ]

  @doc "StructuredOutputsParams"
  @spec structured_outputs_params(LLM.t(), structured_outputs_params, keyword) :: result
  def structured_outputs_params(%LLM{} = llm, kwargs \\ [], opts \\ []),
    do: Runtime.call(llm, "vllm.sampling_params", "StructuredOutputsParams", [], kwargs, opts)
end
