// Made by scripts/node_types.py from manifest/vllm.json, vLLM 0.32.0.
// Do not edit.

export interface SamplingParams {
  /** If provided, the engine will construct a logits processor which only retains scores for the given token ids. */
  allowed_token_ids?: number[] | null;
  /** Words that are not allowed to be generated. */
  bad_words?: string[] | null;
  /** Whether to detokenize the output. */
  detokenize?: boolean;
  /** Arbitrary additional args, that can be used by custom sampling implementations, plugins, etc. */
  extra_args?: Record<string, unknown> | null;
  /** Whether to return logprobs in flatten format (i.e. FlatLogprob) for better performance. */
  flat_logprobs?: boolean;
  /** Penalizes new tokens based on their frequency in the generated text so far. */
  frequency_penalty?: number;
  /** Whether to ignore the EOS token and continue generating tokens after the EOS token is generated. */
  ignore_eos?: boolean;
  /** Whether to include the stop strings in output text. */
  include_stop_str_in_output?: boolean;
  /** If provided, the engine will construct a logits processor that applies these logit biases. */
  logit_bias?: Record<string, number> | null;
  /** Specific token IDs to return logprobs for. */
  logprob_token_ids?: number[] | null;
  /** Number of log probabilities to return per output token. */
  logprobs?: number | null;
  /** Maximum number of tokens to generate per output sequence. */
  max_tokens?: number | null;
  /** Represents the minimum probability for a token to be considered, relative to the probability of the most likely token. */
  min_p?: number;
  /** Minimum number of tokens to generate per output sequence before EOS or `stop_token_ids` can be generated */
  min_tokens?: number;
  /** Number of outputs to return for the given prompt request. */
  n?: number;
  /** Penalizes new tokens based on whether they appear in the generated text so far. */
  presence_penalty?: number;
  /** First causal prompt row to score; defaults to the first row. */
  prompt_logprob_start?: number | null;
  /** Token IDs to score per causal prompt row */
  prompt_logprob_token_ids?: unknown[] | null;
  /** Number of log probabilities to return per prompt token. */
  prompt_logprobs?: number | null;
  /** Parameters for detecting repetitive N-gram patterns in output tokens. */
  repetition_detection?: Record<string, unknown> | null;
  /** Penalizes new tokens based on whether they appear in the prompt and the generated text so far. */
  repetition_penalty?: number;
  /** When enable_return_routed_experts is active, skip the first routed_experts_prompt_start prompt tokens from the returned routing data. */
  routed_experts_prompt_start?: number;
  /** Random seed to use for the generation. */
  seed?: number | null;
  skip_reading_prefix_cache?: boolean | null;
  /** Whether to skip special tokens in the output. */
  skip_special_tokens?: boolean;
  /** Whether to add spaces between special tokens in the output. */
  spaces_between_special_tokens?: boolean;
  /** String(s) that stop the generation when they are generated. */
  stop?: string | string[] | null;
  /** Token IDs that stop the generation when they are generated. */
  stop_token_ids?: number[] | null;
  /** Number of newly generated tokens to batch into each streamed `RequestOutput`. */
  stream_interval?: number | null;
  /** Parameters for configuring structured outputs. */
  structured_outputs?: Record<string, unknown> | null;
  /** Controls the randomness of the sampling. */
  temperature?: number;
  /** Maximum number of tokens allowed for thinking operations. */
  thinking_token_budget?: number | null;
  /** Controls the number of top tokens to consider. */
  top_k?: number;
  /** Controls the cumulative probability of the top tokens to consider. */
  top_p?: number;
  /** If provided, forces the engine to emit this predetermined sequence of token IDs during decoding instead of sampling randomly. */
  trace_decode_token_ids?: number[] | null;
  /** Whether to apply the engine's configured watermark to this request. */
  watermarking?: boolean | null;
}

export interface StructuredOutputs {
  choice?: string[] | null;
  disable_additional_properties?: boolean;
  disable_any_whitespace?: boolean;
  grammar?: string | null;
  json?: string | Record<string, unknown> | null;
  json_object?: boolean | null;
  regex?: string | null;
  structural_tag?: string | null;
  whitespace_pattern?: string | null;
}

export interface LoRARequest {
  base_model_name?: string | null;
  /** Whether this adapter's MoE weights are stored in the 3D fused `gate_up_proj` / `down_proj` layout (one fused tensor per layer) or the 2D per-expert split layout (separate `gate_proj` / `up_proj` / `down_proj` tensors per expert). */
  is_3d_lora_weight?: boolean;
  load_inplace?: boolean;
  lora_int_id: number;
  lora_name: string;
  lora_path?: string;
}

export interface EngineArgs {
  /** Additional config for specified platform. */
  additional_config?: Record<string, unknown>;
  /** Log aggregate rather than per-engine statistics when using data parallelism. */
  aggregate_engine_logging?: boolean;
  /** All2All backend for MoE expert parallel communication. */
  all2all_backend?: "naive" | "pplx" | "deepep_high_throughput" | "deepep_low_latency" | "deepep_v2" | "mori_high_throughput" | "mori_low_latency" | "moonep" | "nixl_ep" | "allgather_reducescatter" | "flashinfer_all2allv" | "flashinfer_nvlink_two_sided" | "flashinfer_nvlink_one_sided" | "passthrough";
  /** Whether to allow deprecated quantization methods. */
  allow_deprecated_quantization?: boolean;
  /** Allowing API requests to read local images or videos from directories specified by the server file system. */
  allowed_local_media_path?: string;
  /** If set, only media URLs that belong to this domain can be used for multi-modal inputs. */
  allowed_media_domains?: string[] | null;
  /** If set to False, disable async scheduling. */
  async_scheduling?: boolean | null;
  /** Attention backend to use. */
  attention_backend?: string | null;
  /** Attention configuration. */
  attention_config?: Record<string, unknown>;
  /** Execution auxiliary output configuration. */
  aux_output_config?: Record<string, unknown>;
  /** Size of a contiguous cache block in number of tokens. */
  block_size?: number | null;
  /** The specific revision to use for the model code on the Hugging Face Hub. */
  code_revision?: string | null;
  /** It makes sense to set this only if `--otlp-traces-endpoint` is set. */
  collect_detailed_traces?: ("model" | "worker" | "all")[] | null;
  /** `torch.compile` and cudagraph capture configuration for the model. */
  compilation_config?: Record<string, unknown>;
  /** The format of the model config to load */
  config_format?: string;
  /** Convert the model using adapters defined in [vllm.model_executor.models.adapters][]. */
  convert?: "auto" | "none" | "embed" | "classify";
  /** Interleave size of kv_cache storage while using DCP. */
  cp_kv_cache_interleave_size?: number | null;
  /** Timeout (in seconds) for cpu communication groups. */
  cpu_distributed_timeout_seconds?: number | null;
  /** The space in GiB to offload to CPU, per GPU. */
  cpu_offload_gb?: number;
  /** The set of parameter name segments to target for CPU offloading. */
  cpu_offload_params?: string[];
  /** Sizes to capture cudagraph. */
  cudagraph_capture_sizes?: number[] | null;
  /** Enable CUDA graph metrics (number of padded/unpadded tokens, runtime cudagraph dispatch modes, and their observed frequencies at every logging interval). */
  cudagraph_metrics?: boolean;
  /** Custom Prometheus histogram bucket boundaries, as a JSON mapping from bucket-family key to a list of strictly increasing, positive, finite upper bounds. */
  custom_histogram_buckets?: Record<string, number[]> | null;
  /** Address of data parallel cluster head-node. */
  data_parallel_address?: string | null;
  /** Backend for data parallel, either "mp" or "ray". */
  data_parallel_backend?: "ray" | "mp";
  /** Whether to use "external" DP LB mode. */
  data_parallel_external_lb?: boolean;
  /** Whether to use "hybrid" DP LB mode. */
  data_parallel_hybrid_lb?: boolean;
  /** Run a node-local supervisor that launches one external-LB API server per local data parallel rank and exposes aggregated health on a supervisor port. */
  data_parallel_multi_port_external_lb?: boolean;
  /** Data parallel rank of this instance. */
  data_parallel_rank?: number | null;
  /** Fixed port for data parallel RPC communication. */
  data_parallel_rpc_port?: number | null;
  /** Number of data parallel groups. */
  data_parallel_size?: number;
  /** Number of data parallel replicas to run on this node. */
  data_parallel_size_local?: number | null;
  /** Starting data parallel rank for secondary nodes. */
  data_parallel_start_rank?: number | null;
  /** The threshold for dual batch overlap for batches only containing decodes. */
  dbo_decode_token_threshold?: number;
  /** The threshold for dual batch overlap for batches that contain one or more prefills. */
  dbo_prefill_token_threshold?: number;
  /** Communication backend for Decode Context Parallel (DCP). */
  dcp_comm_backend?: "ag_rs" | "a2a" | null;
  /** Interleave size of kv_cache storage while using DCP. */
  dcp_kv_cache_interleave_size?: number;
  /** Replicate the MLA query projection within each DCP group so decode can skip the query all-gather. */
  dcp_q_replicate?: boolean | null;
  /** Number of ranks that shard the decode KV cache. */
  decode_context_parallel_size?: number;
  /** Dictionary mapping specific modalities to LoRA model paths; this field is only applicable to multimodal models and should be leveraged when a model always expects a LoRA to be active when a given modality is present. */
  default_mm_loras?: Record<string, string> | null;
  /** Comma-separated physical GPU device IDs or UUIDs to use (e.g. --device-ids "2,3,5,7"). */
  device_ids?: (number | string)[] | null;
  /** Diffusion LLM (dLLM) configuration. */
  diffusion_config?: Record<string, unknown> | null;
  /** --disable-cascade-attn is deprecated and has no effect since cascade attention has been removed. */
  disable_cascade_attn?: boolean | null;
  /** If set to true and chunked prefill is enabled, we do not want to partially schedule a multimodal item. */
  disable_chunked_mm_input?: boolean;
  /** Disable the custom all-reduce kernel and fall back to NCCL. */
  disable_custom_all_reduce?: boolean;
  /** If set to True, KV cache manager will allocate the same size of KV cache for all attention layers even if there are multiple type of attention layers like full attention and sliding window attention. */
  disable_hybrid_kv_cache_manager?: boolean | null;
  /** Disable logging statistics. */
  disable_log_stats?: boolean;
  /** Forces the dp synchronization logic in vllm/v1/worker/dp_utils.py to use Gloo instead of NCCL for its all reduce. */
  disable_nccl_for_dp_synchronization?: boolean | null;
  /** Whether to disable sliding window. */
  disable_sliding_window?: boolean;
  /** Backend to use for distributed model workers, either "ray" or "mp" (multiprocessing). */
  distributed_executor_backend?: string | "ray" | "mp" | "uni" | "external_launcher" | null;
  /** Timeout in seconds for distributed operations (e.g., init_process_group). */
  distributed_timeout_seconds?: number | null;
  /** Directory to download and load the weights, default to the default cache directory of Hugging Face. */
  download_dir?: string | null;
  /** Steps between DP finish-sync all-reduces; must match across DP ranks. */
  dp_sync_interval?: number;
  /** Data type for model weights and activations */
  dtype?: "auto" | "half" | "float16" | "bfloat16" | "float" | "float32";
  /** The configurations for custom encoder cache manager. */
  ec_manager_config?: Record<string, unknown>;
  /** The configurations for distributed EC cache transfer. */
  ec_transfer_config?: Record<string, unknown> | null;
  /** Maximum data parallel size supported by elastic expert parallelism. */
  elastic_ep_max_dp_size?: number | null;
  /** Use sharded sampling across tensor parallel ranks. */
  enable_batch_sharded_sampling?: boolean | null;
  /** If True, prefill requests can be chunked based on the remaining `max_num_batched_tokens`. */
  enable_chunked_prefill?: boolean | null;
  /** Enable the custom cumem allocator to leverage advanced GPU memory allocation features such as multi-node NVLink support. */
  enable_cumem_allocator?: boolean;
  /** Enable dual batch overlap for the model executor. */
  enable_dbo?: boolean;
  /** Enable elastic expert parallelism with stateless NCCL groups for DP/EP. */
  enable_elastic_ep?: boolean;
  /** Skip non-local expert weights during model loading when expert parallelism is active. */
  enable_ep_weight_filter?: boolean;
  /** Enable expert parallelism load balancing for MoE layers. */
  enable_eplb?: boolean;
  /** Use expert parallelism instead of tensor parallelism for MoE layers. */
  enable_expert_parallel?: boolean;
  /** Enable fault tolerance for detailed error recovery, such as scaling down fault DPEngineCore. */
  enable_fault_tolerance?: boolean;
  /** If True, run FlashInfer autotuning during kernel warmup. */
  enable_flashinfer_autotune?: boolean | null;
  /** Enable sequence parallelism for HyperConnection (HC) computation. */
  enable_hc_sp?: boolean;
  /** Enable layerwise NVTX tracing. */
  enable_layerwise_nvtx_tracing?: boolean;
  /** Enable logging request information, dependent on log level */
  enable_log_requests?: boolean;
  /** Enable detailed logging of iteration details. */
  enable_logging_iteration_details?: boolean;
  /** If True, enable handling of LoRA adapters. */
  enable_lora?: boolean;
  /** Enable stochastic rounding when writing SSM state to fp16 cache. */
  enable_mamba_cache_stochastic_rounding?: boolean;
  /** Also register a Mamba "align" checkpoint at the shared-prefix junction -- where an EAGLE/MTP sibling was observed to resume -- instead of only at the prompt tail. */
  enable_mamba_shared_prefix_checkpoint?: boolean;
  /** Enable Model FLOPs Utilization (MFU) metrics. */
  enable_mfu_metrics?: boolean;
  /** If True, force the engine to use the universal 2D MoE LoRA wrapper (`FusedMoEWithLoRA`) regardless of the model's `is_3d_moe_weight` flag, so that 2D-format and 3D-format MoE LoRA adapters can be served in the same deployment. */
  enable_mixed_moe_lora_format?: boolean;
  /** If `True`, enables passing multimodal embeddings */
  enable_mm_embeds?: boolean;
  enable_mm_processor_stats?: boolean;
  /** If True, load MoE expert adapters in the "shared-outer" layout, where the gate/up (`w1`/`w3`) lora_A and the down (`w2`) lora_B are shared across all experts (stored once with expert-dim 1) instead of per-expert. */
  enable_moe_shared_loras?: boolean;
  /** Enable releasing NCCL communicator memory during sleep mode (``ncclCommSuspend``/``ncclCommResume``). */
  enable_nccl_comm_suspend?: boolean;
  /** Whether to enable prefix caching. */
  enable_prefix_caching?: boolean | null;
  /** If `True`, enables passing text embeddings as inputs via the `prompt_embeds` key. */
  enable_prompt_embeds?: boolean;
  /** Capture and return routed-experts auxiliary outputs. */
  enable_return_routed_experts?: boolean;
  /** Route large CPU tensors (e.g. multimodal ``pixel_values``) in the engine→worker broadcast through a zero-copy shared-memory arena instead of sending a copy to every reader. */
  enable_shm_tensor_arena?: boolean;
  /** Enable sleep mode for the engine (only cuda and hip platforms are supported). */
  enable_sleep_mode?: boolean;
  /** If `True`, LoRA support for the tower (vision encoder) and connector of multimodal models will be enabled. */
  enable_tower_connector_lora?: boolean;
  /** Whether to allow requests to set `SamplingParams.trace_decode_token_ids`, which forces decoding to follow a predetermined token sequence while still computing real logprobs. */
  enable_trace_replay?: boolean;
  /** Whether to always use eager-mode PyTorch. */
  enforce_eager?: boolean;
  /** N-gram embedding storage and sharding settings. */
  engram_config?: Record<string, unknown> | null;
  /** Expert parallelism configuration. */
  eplb_config?: Record<string, unknown>;
  /** The expert placement strategy for MoE layers */
  expert_placement_strategy?: "linear" | "round_robin";
  /** If set, the engine will raise an error if environment validation fails. */
  fail_on_environ_validation?: boolean;
  /** The configurations for fault tolerance. */
  fault_tolerance_config?: Record<string, unknown>;
  /** By default, only half of the LoRA computation is sharded with tensor parallelism. */
  fully_sharded_loras?: boolean;
  /** Select GDN prefill backend. */
  gdn_prefill_backend?: "flashinfer" | "triton" | "cutedsl" | "aiter_flydsl" | null;
  /** The folder path to the generation config. */
  generation_config?: string;
  /** The fraction of GPU memory to be used for the model executor, which can range from 0 to 1. */
  gpu_memory_utilization?: number;
  /** Name or path of the Hugging Face config to use. */
  hf_config_path?: string | null;
  /** If a dictionary, contains arguments to be forwarded to the Hugging Face config. */
  hf_overrides?: Record<string, unknown>;
  /** The token to use as HTTP bearer authorization for remote files . */
  hf_token?: boolean | string | null;
  /** The list of patterns to ignore when loading the model. */
  ignore_patterns?: string | string[];
  /** Enable fully interleaved support for multimodal prompts, while using --chat-template-content-format=string. */
  interleave_mm_strings?: boolean;
  /** IOProcessor plugin name to load at model startup */
  io_processor_plugin?: string | null;
  /** vLLM IR op priority for dispatching/lowering during the forward pass. */
  ir_op_priority?: Record<string, unknown>;
  /** How to handle post-warmup JIT compilation events. */
  jit_monitor_mode?: "warn" | "error";
  /** Log every monitored JIT compile with runtime details. */
  jit_monitor_verbose?: boolean;
  /** Select KDA decode backend. */
  kda_decode_backend?: "auto" | "native" | "flashinfer" | "triton" | null;
  /** Select KDA prefill backend. */
  kda_prefill_backend?: "auto" | "triton" | "flashkda" | "flashinfer" | "fused" | null;
  /** Kernel configuration. */
  kernel_config?: Record<string, unknown>;
  /** Data type for kv cache storage. */
  kv_cache_dtype?: "auto" | "float16" | "bfloat16" | "fp8" | "fp8_e4m3" | "fp8_e5m2" | "fp8_inc" | "fp8_ds_mla" | "nvfp4_ds_mla" | "turboquant_k8v4" | "turboquant_4bit_nc" | "turboquant_k3v4_nc" | "turboquant_3bit_nc" | "ultraquant_4bit" | "int4_per_token_head" | "int8_per_token_head" | "fp8_per_token_head" | "nvfp4" | "nvfp4_4over6";
  /** Layer patterns to skip KV cache quantization. */
  kv_cache_dtype_skip_layers?: string[];
  /** Size of KV Cache per GPU in bytes. */
  kv_cache_memory_bytes?: number | null;
  /** Enable KV cache residency metrics (lifetime, idle time, reuse gaps). */
  kv_cache_metrics?: boolean;
  /** Sampling rate for KV cache metrics (0.0, 1.0]. */
  kv_cache_metrics_sample?: number;
  /** The configurations for event publishing. */
  kv_events_config?: Record<string, unknown> | null;
  /** The backend to use for KV cache offloading. */
  kv_offloading_backend?: "native" | "lmcache";
  /** Size of the KV cache offloading buffer in GiB. */
  kv_offloading_size?: number | null;
  /** In some KV sharing setups, e.g. YOCO (https://arxiv.org/abs/2405.05254), some layers can skip tokens corresponding to prefill. */
  kv_sharing_fast_prefill?: boolean;
  /** The configurations for distributed KV cache transfer. */
  kv_transfer_config?: Record<string, unknown> | null;
  /** If True, disables all multimodal inputs by setting all modality limits to 0. */
  language_model_only?: boolean;
  /** The maximum number of input items and options allowed per prompt for each modality. */
  limit_mm_per_prompt?: Record<string, number | Record<string, number>>;
  /** Backend for linear layer GEMM kernels. */
  linear_backend?: "auto" | "cutlass" | "flashinfer_cutlass" | "flashinfer_cutedsl" | "flashinfer_trtllm" | "flashinfer_cudnn" | "flashinfer_b12x" | "b12x" | "marlin" | "humming" | "triton" | "deep_gemm" | "torch" | "aiter" | "machete" | "fbgemm" | "conch" | "exllama" | "emulation" | "xpu" | "xpu_woq";
  /** The format of the model weights to load. */
  load_format?: string;
  /** --log-config-file is deprecated and will be removed in v0.33.0. */
  log_config_file?: string | null;
  /** Shortcut for --logging-config.log_level. */
  log_level?: "CRITICAL" | "ERROR" | "WARNING" | "INFO" | "DEBUG" | "NOTSET" | null;
  /** Logging configuration. */
  logging_config?: Record<string, unknown> | null;
  /** One or more logits processors' fully-qualified class names or class definitions */
  logits_processors?: string[] | null;
  /** Indicates the content returned in the logprobs and prompt_logprobs. */
  logprobs_mode?: "raw_logits" | "raw_logprobs" | "processed_logits" | "processed_logprobs";
  /** For chunked prefill, a request is considered long if the prompt is longer than this number of tokens. */
  long_prefill_token_threshold?: number;
  /** Floor the effective long prefill token threshold at a fair share of the token budget */
  long_prefill_token_threshold_adaptive?: boolean;
  /** Data type for LoRA. */
  lora_dtype?: string | null;
  /** Restrict LoRA to specific module suffixes (e.g., ["o_proj", "qkv_proj"]). */
  lora_target_modules?: string[] | null;
  /** Mamba SSU backend to use. */
  mamba_backend?: string;
  /** Size of a contiguous cache block in number of tokens for mamba cache. */
  mamba_block_size?: number | null;
  /** The data type to use for the Mamba cache (both the conv as well as the ssm state). */
  mamba_cache_dtype?: "auto" | "float32" | "float16" | "bfloat16";
  /** The cache strategy for Mamba layers */
  mamba_cache_mode?: "align" | "none";
  /** Number of Philox PRNG rounds for stochastic rounding random number generation. */
  mamba_cache_philox_rounds?: number;
  mamba_config?: Record<string, unknown>;
  /** The data type to use for the Mamba cache (ssm state only, conv state will still be controlled by mamba_cache_dtype). */
  mamba_ssm_cache_dtype?: "auto" | "float32" | "float16" | "bfloat16";
  /** Selective state update algorithm to use with the FlashInfer backend. */
  mamba_ssu_algorithm?: "auto" | "simple" | "vertical" | "horizontal" | null;
  /** distributed master address for multi-node distributed inference when distributed_executor_backend is mp. */
  master_addr?: string;
  /** distributed master port for multi-node distributed inference when distributed_executor_backend is mp. */
  master_port?: number;
  /** Maximum number of LoRAs to store in CPU memory. */
  max_cpu_loras?: number | null;
  /** The maximum cudagraph capture size. */
  max_cudagraph_capture_size?: number | null;
  /** Maximum number of log probabilities to return when `logprobs` is specified in `SamplingParams`. */
  max_logprobs?: number;
  /** Maximum output size for LoRA classification heads. */
  max_lora_cls_labels?: number | null;
  /** Max LoRA rank. */
  max_lora_rank?: 1 | 8 | 16 | 32 | 64 | 128 | 256 | 320 | 512;
  /** Max number of LoRAs in a single batch. */
  max_loras?: number;
  /** Model context length (prompt and output). */
  max_model_len?: number | null;
  /** Maximum number of requests the scheduler admits into RUNNING. */
  max_num_active_seqs?: number | null;
  /** Maximum number of tokens that can be processed in a single iteration. */
  max_num_batched_tokens?: number | null;
  /** Maximum number of requests that can be in-flight (waiting or running) at the same time, or None for no limit. */
  max_num_queued_reqs?: number | null;
  /** Maximum total prompt tokens of requests currently in the prefill phase, or None for no limit. */
  max_num_queued_tokens?: number | null;
  /** Maximum number of tokens that the scheduler may issue in a single iteration. */
  max_num_scheduled_tokens?: number | null;
  /** Maximum number of sequences to be processed in a single iteration. */
  max_num_seqs?: number | null;
  /** Maximum number of parallel loading workers when loading model sequentially in multiple batches. */
  max_parallel_loading_workers?: number | null;
  /** Additional args passed to process media inputs, keyed by modalities. */
  media_io_kwargs?: Record<string, Record<string, unknown>>;
  /** Move the do_normalize computation in the mm preprocessing to before the ViT, and let the device do it, so that CPU computation can be saved. */
  mm_device_do_normalize?: boolean | null;
  /** Optional override for the multi-modal encoder attention backend when using vision transformers. */
  mm_encoder_attn_backend?: string | null;
  /** Optional dtype override for ViT encoder attention. */
  mm_encoder_attn_dtype?: string | null;
  /** Path to a JSON file containing per-layer FP8 Q/K/V scales for ViT encoder attention. */
  mm_encoder_fp8_scale_path?: string | null;
  /** Safety margin multiplied onto scales when auto-saving. */
  mm_encoder_fp8_scale_save_margin?: number;
  /** When set with dynamic FP8 scaling (`mm_encoder_attn_dtype="fp8"` and no `mm_encoder_fp8_scale_path`), saves the calibrated scales to this file after the amax history buffer is full. */
  mm_encoder_fp8_scale_save_path?: string | null;
  /** When enabled, skips the language component of the model. */
  mm_encoder_only?: boolean;
  /** Indicates how to optimize multi-modal encoder inference using tensor parallelism (TP). */
  mm_encoder_tp_mode?: "weights" | "data";
  /** Hash algorithm to use for multi-modal input caching. */
  mm_hasher_algorithm?: "blake3" | "sha256" | "sha512";
  /** Amount of GPU memory (in GiB) sequestered on the engine's device for GPU-side multimodal work in the API-server (frontend) process, such as hardware video decoding. */
  mm_ipc_gpu_memory_gb?: number;
  /** The size (in GiB) of the multi-modal processor cache, which is used to avoid re-processing past multi-modal inputs. */
  mm_processor_cache_gb?: number;
  /** Type of cache to use for the multi-modal preprocessor/mapper. */
  mm_processor_cache_type?: "shm" | "lru" | null;
  /** Device the HF multi-modal processor runs the image/video transform on. */
  mm_processor_device?: string;
  /** Arguments to be forwarded to the model's processor for multi-modal data, e.g., image processor. */
  mm_processor_kwargs?: Record<string, unknown> | null;
  /** Size limit (in MiB) for each object stored in the multi-modal processor shared memory cache. */
  mm_shm_cache_max_object_size_mb?: number;
  /** IPC (inter-process communication) method for multimodal tensors. */
  mm_tensor_ipc?: "direct_rpc" | "torch_shm";
  /** Override the model class used for one or more architectures, mapping the architecture name to a `"module:class"` target (the same format accepted by `ModelRegistry.register_model`). */
  model_class_overrides?: Record<string, string>;
  /** Which implementation of the model to use */
  model_impl?: string;
  /** Extra config for model loader. */
  model_loader_extra_config?: Record<string, unknown>;
  model_weights?: string;
  /** Backend for MoE expert computation kernels. */
  moe_backend?: "auto" | "triton" | "batched_triton" | "deep_gemm" | "deep_gemm_mega_moe" | "cutlass" | "flashinfer_trtllm" | "flashinfer_cutlass" | "flashinfer_cutedsl" | "flashinfer_moe_ep_cutedsl" | "flashinfer_b12x" | "b12x" | "flashinfer_moe_ep_mega_deep_gemm" | "marlin" | "humming" | "triton_unfused" | "aiter" | "aiter_mega_moe" | "aiter_triton_mxfp4_bf16" | "flydsl" | "hpc" | "emulation" | "rdna3";
  /** num of nodes for multi-node distributed inference when distributed_executor_backend is mp. */
  nnodes?: number;
  /** distributed node rank for multi-node distributed inference when distributed_executor_backend is mp. */
  node_rank?: number;
  /** Number of GPU blocks to use. */
  num_gpu_blocks_override?: number | null;
  /** Enable NUMA binding for GPU worker subprocesses. */
  numa_bind?: boolean;
  /** Optional CPU lists to bind each GPU worker to. */
  numa_bind_cpus?: string[] | null;
  /** NUMA node to bind each GPU worker to. */
  numa_bind_nodes?: number[] | null;
  /** The backend for weight offloading. */
  offload_backend?: string;
  /** Group every N layers together. */
  offload_group_size?: number;
  /** Number of layers to offload per group. */
  offload_num_in_group?: number;
  /** The set of parameter name segments to target for prefetch offloading. */
  offload_params?: string[];
  /** Number of layers to prefetch ahead. */
  offload_prefetch_step?: number;
  /** The optimization level. */
  optimization_level?: number;
  /** Target URL to which OpenTelemetry traces will be sent. */
  otlp_traces_endpoint?: string | null;
  /** Overrides or sets generation config. */
  override_generation_config?: Record<string, unknown>;
  /** Include per-request speculative-decoding acceptance metrics in the response under `metrics.speculative_decoding`. */
  per_request_spec_decode_metrics?: "none" | "summary" | "detailed";
  /** Performance mode for runtime behavior, 'balanced' is the default. */
  performance_mode?: "balanced" | "interactivity" | "throughput";
  /** Number of pipeline parallel groups. */
  pipeline_parallel_size?: number;
  /** Pooler config which controls the behaviour of output pooling in pooling models. */
  pooler_config?: Record<string, unknown> | null;
  /** Number of ranks that split prefill sequence computation. */
  prefill_context_parallel_size?: number;
  /** For data-parallel deployments, only admit new prefill requests once every N engine steps, aligned across DP ranks, to better balance per-step forward-pass times. */
  prefill_schedule_interval?: number;
  /** Token interval between retained sliding-window and Mamba prefix-cache checkpoints. */
  prefix_cache_retention_interval?: number | null;
  /** Set the hash algorithm for prefix caching */
  prefix_caching_hash_algo?: "sha256" | "sha256_cbor" | "xxhash" | "xxhash_cbor";
  /** The finest token boundary (in tokens) a prefix-cache hit can land on. */
  prefix_match_unit?: number | null;
  /** Profiling configuration. */
  profiler_config?: Record<string, unknown>;
  /** The map location for loading pytorch checkpoint, to support loading checkpoints can only be loaded on certain devices like "cuda", this is equivalent to `{"" */
  pt_load_map_location?: string | Record<string, string>;
  /** Method used to quantize the weights. */
  quantization?: string | null;
  /** User-facing quantization configuration. */
  quantization_config?: Record<string, unknown> | null;
  /** Whether to profile Ray workers with nsight, see https://docs.ray.io/en/latest/ray-observability/user-guides/profiling.html#profiling-nsight-profiler. */
  ray_workers_use_nsight?: boolean;
  /** The configurations for reasoning model. */
  reasoning_config?: Record<string, unknown> | null;
  /** Select the reasoning parser depending on the model that you're using. */
  reasoning_parser?: string;
  /** Path to a dynamically reasoning parser plugin that can be dynamically loaded and registered. */
  reasoning_parser_plugin?: string | null;
  /** Number of worker threads in the renderer thread pool. */
  renderer_num_workers?: number;
  /** ReplaySSM logical history length B for Mamba2. */
  replayssm_buffer_len?: number;
  /** Whether to return the post-processing token support for each sample. */
  return_sampling_mask?: boolean;
  /** The specific model version to use. */
  revision?: string | null;
  /** The type of model runner to use. */
  runner?: "auto" | "generate" | "pooling" | "draft";
  /** Specifies the loading strategy for safetensors weights. */
  safetensors_load_strategy?: "lazy" | "eager" | "prefetch" | "torchao" | null;
  /** Read size in bytes for each safetensors checkpoint file prefetch. */
  safetensors_prefetch_block_size?: number;
  /** Number of worker threads used to prefetch safetensors checkpoint files into the OS page cache when safetensors prefetching is enabled. */
  safetensors_prefetch_num_threads?: number;
  /** The scheduler class to use. */
  scheduler_cls?: string | null;
  /** If True, the scheduler checks whether the full input sequence length fits in the KV cache before admitting a new request, rather than only checking the first chunk. */
  scheduler_reserve_full_isl?: boolean;
  /** The scheduling policy to use */
  scheduling_policy?: "fcfs" | "priority";
  /** Random seed for reproducibility. */
  seed?: number;
  /** The model name(s) used in the API. */
  served_model_name?: string | string[] | null;
  /** Enable deprecated Prometheus metrics that have been hidden since the specified version. */
  show_hidden_metrics_for_version?: string | null;
  /** Shutdown timeout in seconds. */
  shutdown_timeout?: number;
  /** When enabled, skips multimodal memory profiling and only profiles with language backbone model during engine initialization. */
  skip_mm_profiling?: boolean;
  /** Skip initialization of tokenizer and detokenizer. */
  skip_tokenizer_init?: boolean;
  /** Back up CUDA graph memory to CPU during sleep, restored in place on wake. */
  sleep_mode_offload_cudagraph?: boolean;
  /** Parameter-name globs to preserve across level-2 sleep. */
  sleep_preserve_parameter_names?: string[];
  /** Backend for the DSA sparse indexer decode top-k kernel. */
  sparse_indexer_topk_backend?: "auto" | "deep_select" | "cooperative" | "persistent" | "per_row" | "flashinfer" | "torch" | "aiter";
  /** The name of the speculative method to use. */
  spec_method?: string | null;
  /** The name of the draft model, eagle head, or additional weights, if provided. */
  spec_model?: string | null;
  /** The number of speculative tokens, if provided. */
  spec_tokens?: number | null;
  /** Whether to construct lora kernel grid by the number of active LoRA adapters. */
  specialize_active_lora?: boolean;
  /** Speculative decoding configuration. */
  speculative_config?: Record<string, unknown> | null;
  /** The interval (or buffer size) for streaming in terms of token length. */
  stream_interval?: number;
  /** Structured outputs configuration. */
  structured_outputs_config?: Record<string, unknown>;
  /** Keep the sliding-window KV of models that support it (DeepSeek-V4.1) out of prefix caching and rebuild it after a prefix hit by recomputing the hit's last window. */
  swa_bounded_replay?: boolean;
  /** Number of tensor parallel groups. */
  tensor_parallel_size?: number;
  /** Name or path of the Hugging Face tokenizer to use. */
  tokenizer?: string | null;
  /** Tokenizer mode */
  tokenizer_mode?: "auto" | "hf" | "mistral" | "deepseek_v32" | "deepseek_v4" | "inkling" | "kimi_k3" | "cohere" | string;
  /** The specific revision to use for the tokenizer on the Hugging Face Hub. */
  tokenizer_revision?: string | null;
  tokens_only?: boolean;
  /** Trust remote code (e.g., from HuggingFace) when downloading the model and tokenizer. */
  trust_remote_code?: boolean;
  /** Number of ubatch size. */
  ubatch_size?: number;
  /** Whether to use FP64 (instead of FP32) random noise for Gumbel-max and equivalent exponential-race sampling. */
  use_fp64_gumbel?: boolean;
  /** Use the ReplaySSM Mamba2 decode kernel */
  use_replayssm?: boolean;
  /** Whether to enable tqdm for showing progress bar when loading model weights. */
  use_tqdm_on_load?: boolean;
  /** Video token pruning algorithm applied when `video_pruning_rate` > 0 */
  video_pruning_method?: string;
  /** Fraction of video tokens to prune from each video. */
  video_pruning_rate?: number | null;
  /** Fraction of total KV cache blocks to keep free (the watermark) when admitting waiting or preempted requests into the running queue. */
  watermark?: number;
  /** Text watermarking configuration. */
  watermark_config?: Record<string, unknown> | null;
  /** The configurations for weight transfer during RL training. */
  weight_transfer_config?: Record<string, unknown> | null;
  /** The full name of the worker class to use. */
  worker_cls?: string;
  /** The full name of the worker extension class to use. */
  worker_extension_cls?: string;
}
