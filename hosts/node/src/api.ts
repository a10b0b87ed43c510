// Made by scripts/api_bindings.py from the public API of vLLM 0.32.0.
// Do not edit.

/** What universal calls of these classes take: module → class → named arguments. */
export interface Arguments {
  "vllm.lora.request": {
    /** Request for a LoRA adapter. */
    LoRARequest: {
      base_model_name?: string | null;
      is_3d_lora_weight?: boolean;
      load_inplace?: boolean;
      lora_int_id: number;
      lora_name: string;
      lora_path?: string;
    };
  };
  "vllm.pooling_params": {
    /** Metadata for worker-side late-interaction scoring. */
    LateInteractionParams: {
      mode: string;
      query_key: string;
      query_uses?: number | null;
    };
    /** API parameters for pooling models. */
    PoolingParams: {
      dimensions?: number | null;
      extra_kwargs?: Record<string, unknown> | null;
      late_interaction_params?: unknown;
      output_kind?: unknown;
      requires_token_ids?: boolean;
      returned_token_ids?: unknown[] | null;
      skip_reading_prefix_cache?: boolean | null;
      step_tag_id?: number | null;
      task?: unknown;
      use_activation?: boolean | null;
    };
  };
  "vllm.sampling_params": {
    /** Beam search parameters for text generation. */
    BeamSearchParams: {
      beam_width: number;
      ignore_eos?: boolean;
      include_stop_str_in_output?: boolean;
      length_penalty?: number;
      max_tokens: number;
      skip_special_tokens?: boolean;
      structured_outputs?: unknown;
      temperature?: number;
      watermarking?: boolean | null;
    };
    /** Parameters for detecting repetitive N-gram patterns in output tokens. */
    RepetitionDetectionParams: {
      max_pattern_size?: number;
      min_count?: number;
      min_pattern_size?: number;
    };
    /** Sampling parameters for text generation. */
    SamplingParams: {
      allowed_token_ids?: unknown[] | null;
      bad_words?: unknown[] | null;
      detokenize?: boolean;
      extra_args?: Record<string, unknown> | null;
      flat_logprobs?: boolean;
      frequency_penalty?: number;
      ignore_eos?: boolean;
      include_stop_str_in_output?: boolean;
      logit_bias?: Record<string, unknown> | null;
      logprob_token_ids?: unknown[] | null;
      logprobs?: number | null;
      max_tokens?: number | null;
      min_p?: number;
      min_tokens?: number;
      n?: number;
      output_kind?: unknown;
      output_text_buffer_length?: number;
      presence_penalty?: number;
      prompt_logprob_start?: number | null;
      prompt_logprob_token_ids?: unknown;
      prompt_logprobs?: number | null;
      repetition_detection?: unknown;
      repetition_penalty?: number;
      routed_experts_prompt_start?: number;
      seed?: number | null;
      skip_clone?: boolean;
      skip_reading_prefix_cache?: boolean | null;
      skip_special_tokens?: boolean;
      spaces_between_special_tokens?: boolean;
      stop?: string | unknown[] | null;
      stop_token_ids?: unknown[] | null;
      stream_interval?: number | null;
      structured_outputs?: unknown;
      temperature?: number;
      thinking_token_budget?: number | null;
      top_k?: number;
      top_p?: number;
      trace_decode_token_ids?: unknown[] | null;
      watermarking?: boolean | null;
    };
    /** StructuredOutputsParams. */
    StructuredOutputsParams: {
      choice?: unknown[] | null;
      disable_additional_properties?: boolean;
      disable_any_whitespace?: boolean;
      grammar?: string | null;
      json?: string | Record<string, unknown> | null;
      json_object?: boolean | null;
      regex?: string | null;
      structural_tag?: string | null;
      whitespace_pattern?: string | null;
    };
  };
}
