"""What vLLM has removed and what stands in its place: old names are mapped, or refused.

Pure data and functions; the pool applies them to engine arguments, the worker to parameters of
calls. Nothing old is dropped without a note, and no constraint ever gets lost.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from vllmport.bridge.errors import InvalidRequest, shown

Modern = tuple[dict[str, Any], list[str]]
"""Arguments as today's vLLM takes them, and a note for each one that was changed."""

_MODEL_SAYS = "the model's own configuration says it; see hf_overrides"
_SPECULATION = 'see speculative_config, such as {"method": …, "num_speculative_tokens": …}'

REFUSED_ENGINE: Final[Mapping[str, str]] = {
    "best_of": "it is gone; ask for n sequences in the sampling parameters",
    "calculate_kv_scales": "it is gone; use a checkpoint that has scales",
    "device": "vLLM's build decides it; choose GPUs by device_ids or env CUDA_VISIBLE_DEVICES",
    "disable_async_output_proc": "it is gone; see async_scheduling",
    "disable_image_processor": "images are always processed; see mm_processor_kwargs",
    "disable_log_requests": "requests are not logged unless enable_log_requests is true",
    "disable_logprobs_during_spec_decoding": _SPECULATION,
    "enable_prompt_adapter": "prompt adapters are gone; use enable_lora",
    "enable_reasoning": "naming a reasoning_parser is enough",
    "engine_use_ray": 'see distributed_executor_backend="ray"',
    "full_cuda_graph": 'see compilation_config={"cudagraph_mode": "FULL"}',
    "guided_decoding_disable_fallback": 'name one: structured_outputs_config={"backend": …}',
    "image_feature_size": _MODEL_SAYS,
    "image_input_shape": _MODEL_SAYS,
    "image_input_type": _MODEL_SAYS,
    "image_token_id": _MODEL_SAYS,
    "logits_processor_pattern": "see logits_processors, which names the processors",
    "long_lora_scaling_factors": "it is gone; merge such an adapter into a checkpoint",
    "max_context_len_to_capture": "see max_cudagraph_capture_size",
    "max_long_partial_prefills": "it is gone; see long_prefill_token_threshold",
    "max_num_partial_prefills": "it is gone; see long_prefill_token_threshold",
    "max_paddings": "nothing is padded any more; see max_num_batched_tokens",
    "max_prompt_adapter_token": "prompt adapters are gone; use enable_lora",
    "max_prompt_adapters": "prompt adapters are gone; use enable_lora",
    "max_seq_len_to_capture": "see max_cudagraph_capture_size",
    "ngram_prompt_lookup_max": 'see speculative_config={"prompt_lookup_max": …}',
    "ngram_prompt_lookup_min": 'see speculative_config={"prompt_lookup_min": …}',
    "num_lookahead_slots": "see speculative_config",
    "num_scheduler_steps": "it is gone; see async_scheduling",
    "num_speculative_tokens": "see spec_tokens",
    "override_attention_dtype": "it is gone; see attention_config",
    "override_neuron_config": "see additional_config",
    "override_pooler_config": "see pooler_config",
    "preemption_mode": "it is gone: preempted requests are always computed again",
    "qlora_adapter_name_or_path": "give the adapter to a call as its lora_request",
    "quantization_param_path": "it is gone; use a checkpoint that has scales",
    "rope_scaling": 'see hf_overrides={"rope_parameters": …}',
    "rope_theta": 'see hf_overrides={"rope_parameters": …}',
    "sliding_window": _MODEL_SAYS,
    "spec_decoding_acceptance_method": _SPECULATION,
    "speculative_disable_by_batch_size": _SPECULATION,
    "speculative_disable_mqa_scorer": _SPECULATION,
    "speculative_draft_tensor_parallel_size": "see speculative_config="
    '{"draft_tensor_parallel_size": …}',
    "speculative_max_model_len": 'see speculative_config={"max_model_len": …}',
    "speculative_model": "see spec_model",
    "speculative_model_quantization": 'see speculative_config={"quantization": …}',
    "typical_acceptance_sampler_posterior_alpha": _SPECULATION,
    "typical_acceptance_sampler_posterior_threshold": _SPECULATION,
    "use_v2_block_manager": "it is gone: there is only one block manager",
    "worker_use_ray": 'see distributed_executor_backend="ray"',
}
"""Engine argument → what to use instead."""

REFUSED_QUANTIZATION: Final[Mapping[str, str]] = {
    "squeezellm": 'use a checkpoint made for "awq", "gptq" or "compressed-tensors"',
    "bitsandbytes": 'quantize while loading with "fp8_per_tensor" or "int8_per_channel_weight_only"'
    ', or use a checkpoint made for "awq" or "gptq"',
    "gguf": 'use a checkpoint made for "awq", "gptq" or "compressed-tensors"',
    "aqlm": 'use a checkpoint made for "compressed-tensors"',
    "marlin": 'use a checkpoint made for "gptq_marlin" or "awq_marlin"',
}
"""Quantization method → what to use instead."""

REFUSED_CALL: Final[Mapping[str, str]] = {
    "prompt_token_ids": 'give them as prompts: {"prompt_token_ids": […]}, or lists of numbers',
    "prompt_adapter_request": "prompt adapters are gone; use lora_request",
    "truncate_prompt_tokens": 'give tokenization_kwargs={"truncate_prompt_tokens": …}',
    "add_special_tokens": 'give tokenization_kwargs={"add_special_tokens": …}',
    "guided_options_request": "see structured_outputs in the sampling parameters",
}
"""Argument of a call → what to use instead."""

REFUSED_SAMPLING: Final[Mapping[str, str]] = {
    "best_of": "set n to it with logprobs=0 and keep those with the best cumulative_logprob",
    "use_beam_search": "call beam_search with BeamSearchParams",
    "early_stopping": "call beam_search with BeamSearchParams",
    "length_penalty": "call beam_search with BeamSearchParams",
    "logits_processors": "name them in the engine argument logits_processors",
    "truncate_prompt_tokens": 'give tokenization_kwargs={"truncate_prompt_tokens": …} to the call',
    "guided_decoding_backend": 'load the model with structured_outputs_config={"backend": …}',
}
"""Sampling parameter → what to use instead."""

REFUSED_POOLING: Final[Mapping[str, str]] = {
    "additional_data": "see extra_kwargs",
    "truncate_prompt_tokens": 'give tokenization_kwargs={"truncate_prompt_tokens": …} to the call',
}
"""Pooling parameter → what to use instead."""

GUIDED: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Kinds of structured outputs; each was once a sampling parameter `guided_…` too."""

ACTIVATIONS: Final = ("normalize", "softmax", "activation")
"""What is called use_activation today."""

_TASKS: Final[Mapping[str, dict[str, str]]] = {
    "auto": {},
    "generate": {"runner": "generate"},
    "embed": {"runner": "pooling", "convert": "embed"},
    "embedding": {"runner": "pooling", "convert": "embed"},
    "classify": {"runner": "pooling", "convert": "classify"},
    "score": {"runner": "pooling", "convert": "classify"},
    "reward": {"runner": "pooling"},
    "draft": {"runner": "draft"},
}


def modern_engine_args(args: Mapping[str, Any]) -> Modern:
    """Translate engine arguments.

    Raises:
        InvalidRequest: One of them is gone and nothing takes its place by itself.
    """
    modern, notes = dict(args), []
    for name, translate in _ENGINE.items():
        if name in modern:
            value = modern.pop(name)
            if value is None:  # it says nothing
                continue
            instead = translate(value)
            _put(name, instead, modern)
            what = " and ".join(f"{key}={new!r}" for key, new in instead.items())
            done = _NOTES.get(name) or (f"using {what}" if what else "it is what vLLM does anyway")
            notes.append(f"vLLM has removed {name}: {done}")
    for name, value in modern.items():
        if name in REFUSED_ENGINE:
            raise gone("engine argument", name, value, REFUSED_ENGINE[name])
        named = name in ("quantization", "load_format") and isinstance(value, str)
        if named and value in REFUSED_QUANTIZATION:
            raise gone(name, value, value, REFUSED_QUANTIZATION[value], parameter=name)
    return modern, notes


def modern_sampling_params(params: Mapping[str, Any]) -> Modern:
    """Translate sampling parameters; what was `guided_…` becomes structured outputs.

    Raises:
        InvalidRequest: One of them is gone, or there is more than one constraint.
    """
    notes: list[str] = []
    modern = _without("sampling parameter", params, REFUSED_SAMPLING)
    found: dict[str, Any] = {}
    whole = modern.pop("guided_decoding", None)
    if whole is not None:
        if not isinstance(whole, Mapping):
            text = f"guided_decoding is a map, not {shown(whole)}"
            raise InvalidRequest.of("guided_decoding", shown(whole), text)
        given = _without("key of guided_decoding", whole, {"backend": _BACKEND})
        found.update({key: value for key, value in given.items() if value is not None})
        notes.append(_renamed("guided_decoding", "structured_outputs"))
    for kind in (*GUIDED, "whitespace_pattern"):
        value = modern.pop(f"guided_{kind}", None)
        if value is not None:
            _refuse_conflicts(f"guided_{kind}", {kind: value}, found)
            found[kind] = value
            notes.append(_renamed(f"guided_{kind}", f'structured_outputs={{"{kind}": …}}'))
    if found:
        _refuse_conflicts("guided_decoding", {"structured_outputs": found}, modern)
        modern["structured_outputs"] = found
    return modern, notes


def modern_pooling_params(params: Mapping[str, Any]) -> Modern:
    """Translate pooling parameters.

    Raises:
        InvalidRequest: One of them is gone.
    """
    notes: list[str] = []
    modern = _without("pooling parameter", params, REFUSED_POOLING)
    for name in ACTIVATIONS:
        if name in modern:
            instead = {"use_activation": modern.pop(name)}
            _refuse_conflicts(name, instead, modern)
            modern.update(instead)
            notes.append(_renamed(name, "use_activation"))
    return modern, notes


def gone(kind: str, name: str, value: Any, advice: str, parameter: str = "") -> InvalidRequest:
    """Build the refusal of what vLLM has removed."""
    text = f"vLLM has removed the {kind} {name!r}: {advice}"
    return InvalidRequest.of(parameter or name, shown(value), text)


_BACKEND = 'load the model with structured_outputs_config={"backend": …}'

_NOTES: Final = {
    "intial_incremental_detokenization_offset": "nothing needs it",
    "multi_step_stream_outputs": "each step is streamed; see stream_interval",
    "tokenizer_pool_extra_config": "each worker tokenizes by itself; see replicas",
    "tokenizer_pool_size": "each worker tokenizes by itself; see replicas",
    "tokenizer_pool_type": "each worker tokenizes by itself; see replicas",
    "swap_space": "it never swaps, but computes preempted requests again; to keep KV cache in "
    "main memory see kv_offloading_size",
    "lora_extra_vocab_size": "adapters cannot add tokens to the vocabulary any more",
}


def _nothing(_value: Any) -> dict[str, Any]:
    return {}


def _runner(task: Any) -> dict[str, Any]:
    if not isinstance(task, str) or task not in _TASKS:
        raise gone("engine argument", "task", task, "see runner and convert")
    return dict(_TASKS[task])


def _inside(config: str, key: str) -> Callable[[Any], dict[str, Any]]:
    """Translate to a key of a map."""
    return lambda value: {config: {key: value}}


def _as(name: str) -> Callable[[Any], dict[str, Any]]:
    """Translate to another name."""
    return lambda value: {name: value}


def _when_true(**instead: Any) -> Callable[[Any], dict[str, Any]]:
    """Translate a switch that is off unless it is set."""
    return lambda value: instead if value else {}


def _only(old: str, advice: str, *, harmless: Any) -> Callable[[Any], dict[str, Any]]:
    """Drop the value that changed nothing, refuse any other."""

    def translate(value: Any) -> dict[str, Any]:
        if value != harmless:
            raise gone("engine argument", old, value, advice)
        return {}

    return translate


def _graph_sizes(sizes: Any) -> dict[str, Any]:
    """One size was the largest one, several were all of them."""
    if isinstance(sizes, list) and len(sizes) == 1:
        return {"max_cudagraph_capture_size": sizes[0]}
    return {"cudagraph_capture_sizes": sizes} if sizes else {}


_ENGINE: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "swap_space": _nothing,
    "lora_extra_vocab_size": _nothing,
    "task": _runner,
    "guided_decoding_backend": _inside("structured_outputs_config", "backend"),
    **{
        f"guided_decoding_{key}": _inside("structured_outputs_config", key)
        for key in ("disable_any_whitespace", "disable_additional_properties")
    },
    **{
        f"{prefix}{key}": _inside("eplb_config", key)
        for prefix, key in (
            ("eplb_", "window_size"),
            ("eplb_", "step_interval"),
            ("eplb_", "log_balancedness"),
            ("", "num_redundant_experts"),
        )
    },
    "O": _as("optimization_level"),
    "cuda_graph_sizes": _graph_sizes,
    "disable_mm_preprocessor_cache": _when_true(mm_processor_cache_gb=0),
    "enable_multimodal_encoder_data_parallel": _when_true(mm_encoder_tp_mode="data"),
    "enable_lora_bias": _only(
        "enable_lora_bias", "adapters cannot have biases any more", harmless=False
    ),
    "scheduler_delay_factor": _only(
        "scheduler_delay_factor",
        "prompts are scheduled at once, in chunks; see prefill_schedule_interval",
        harmless=0,
    ),
    "intial_incremental_detokenization_offset": _nothing,
    "multi_step_stream_outputs": _nothing,
    "tokenizer_pool_extra_config": _nothing,
    "tokenizer_pool_size": _nothing,
    "tokenizer_pool_type": _nothing,
}


def _renamed(old: str, new: str) -> str:
    return f"vLLM calls {old} {new} now"


def _without(kind: str, given: Mapping[str, Any], refused: Mapping[str, str]) -> dict[str, Any]:
    """Refuse what has no heir; None says nothing, and is left out."""
    for name, value in given.items():
        if name in refused and value is not None:
            raise gone(kind, name, value, refused[name])
    return {name: value for name, value in given.items() if name not in refused}


def _put(old: str, instead: Mapping[str, Any], modern: dict[str, Any]) -> None:
    """Put in what takes the place of an argument; maps are merged key by key."""
    for name, value in instead.items():
        known = modern.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            _refuse_conflicts(old, value, known)
            modern[name] = {**known, **value}
        else:
            _refuse_conflicts(old, {name: value}, modern)
            modern[name] = value


def _refuse_conflicts(old: str, instead: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in instead.items():
        if given.get(name) not in (None, value):
            text = f"{old} means {name}={shown(value)}, but {name} is {shown(given[name])}"
            raise InvalidRequest.of(old, shown(value), text)
