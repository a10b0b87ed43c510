"""A call's arguments: which verbs there are, which arguments each has, and its parameters.

Prompts are the matter of `vllm_prompts.py`, adapters that of `vllm_lora.py`. Imports vLLM: only for
workers that run it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import (
    BeamSearchParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.removed import (
    REFUSED_CALL,
    gone,
    modern_pooling_params,
    modern_sampling_params,
)
from vllmport.worker.engines.vllm_errors import as_request_error, plain, unknown
from vllmport.worker.engines.vllm_inputs import check_tokenization

_TOKENS = {"tokenization_kwargs", "mm_processor_kwargs"}
_TEMPLATE = {
    "chat_template",
    "chat_template_content_format",
    "chat_template_kwargs",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
}
_GENERATION = {"sampling_params", "guided_decoding_params", "lora_request"}
_POOLING = {"pooling_params", "lora_request", "tokenization_kwargs"}

VERBS: Mapping[str, frozenset[str]] = {
    name: frozenset(arguments)
    for name, arguments in {
        "generate": {"prompt", *_GENERATION, *_TOKENS},
        "chat": {"messages", *_GENERATION, *_TEMPLATE, *_TOKENS},
        "tokenize": {"prompt", "add_special_tokens"},
        "detokenize": {"token_ids", "skip_special_tokens"},
        "apply_chat_template": {"messages", *_TEMPLATE, *_TOKENS},
        "vocabulary": set(),
        "beam_search": {"prompt", "params", "lora_request"},
        "embed": {"prompt", *_POOLING},
        "classify": {"prompt", *_POOLING},
        "pool": {"prompt", "pooling_task", *_POOLING},
        "score": {"data_1", "data_2", "chat_template", *_POOLING},
        "add_lora": {"lora_request"},
        "remove_lora": {"name"},
        "list_loras": set(),
        "pin_lora": {"name"},
        "reset_prefix_cache": {"reset_running_requests", "reset_connector"},
        "reset_mm_cache": set(),
        "metrics": set(),
        "sleep": {"level", "mode"},
        "wake_up": {"tags"},
        "is_sleeping": set(),
        "collective_rpc": {"method", "timeout", "args", "kwargs"},
        "start_profile": {"profile_prefix", "delay_iterations", "max_iterations"},
        "stop_profile": set(),
    }.items()
}
"""Verb → the names of its arguments."""

_REQUIRED = {
    "generate": ("prompt",),
    "chat": ("messages",),
    "tokenize": ("prompt",),
    "detokenize": ("token_ids",),
    "apply_chat_template": ("messages",),
    "beam_search": ("prompt", "params"),
    "embed": ("prompt",),
    "classify": ("prompt",),
    "pool": ("prompt", "pooling_task"),
    "score": ("data_1", "data_2"),
    "add_lora": ("lora_request",),
    "remove_lora": ("name",),
    "pin_lora": ("name",),
    "collective_rpc": ("method",),
}

# Set by the driver or by vLLM itself, never by a caller.
_NOT_OURS = {"output_kind", "skip_clone", "output_text_buffer_length"}
_SAMPLING = {
    name for name in SamplingParams.__struct_fields__ if not name.startswith("_")
} - _NOT_OURS
_STRUCTURED = {
    name for name in StructuredOutputsParams.__dataclass_fields__ if not name.startswith("_")
}
_POOLED = set(PoolingParams.__struct_fields__) - {
    "output_kind",
    "requires_token_ids",
    "late_interaction_params",
}


def check_arguments(verb: str, args: Mapping[str, Any]) -> None:
    """Refuse verbs and arguments that do not exist, and calls that lack the one that matters."""
    known = VERBS.get(verb)
    if known is None:
        names = ", ".join(sorted(VERBS))
        raise InvalidRequest.of("verb", verb, f"unknown verb {verb!r}; known: {names}")
    for name, value in args.items():
        if name not in known and name in REFUSED_CALL:
            raise gone(f"argument of {verb}", name, plain(value), REFUSED_CALL[name])
        if name not in known:
            raise unknown(f"argument of {verb}", name, value, known)
    for name in _REQUIRED.get(verb, ()):
        if args.get(name) is None:
            raise InvalidRequest.of(name, None, f"{verb} needs {name!r}")
    if args.get("tokenization_kwargs") is not None:
        check_tokenization(args["tokenization_kwargs"])


def sampling_params(
    engine: Any, args: Mapping[str, Any], *, stream: bool
) -> tuple[SamplingParams, list[str]]:
    """Build the sampling parameters of one call, with notes on what was translated.

    None stands for the model's own defaults.
    """
    given, guided = args.get("sampling_params"), args.get("guided_decoding_params")
    notes: list[str] = []
    if given is None and guided is None:
        params = SamplingParams.from_optional(**engine.model_config.get_diff_sampling_param())
    else:
        given = {} if given is None else given
        _check_map("sampling_params", given)
        old = {"guided_decoding": guided} if guided is not None else {}
        modern, notes = modern_sampling_params({**given, **old})
        params = _sampling(modern)
    params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    params.skip_clone = True  # they are of this call alone; a deep copy is a quarter of its start
    return params, notes


def pooling_params(given: Any) -> tuple[PoolingParams, list[str]]:
    """Build the pooling parameters of one call, with notes on what was translated."""
    given = {} if given is None else given
    _check_map("pooling_params", given)
    modern, notes = modern_pooling_params(given)
    _check_names("pooling parameter", modern, _POOLED)
    return _built(PoolingParams, modern, "pooling_params"), notes


def beam_params(given: Any) -> BeamSearchParams:
    """Build the parameters of a beam search."""
    _check_map("params", given)
    _check_names("parameter of beam_search", given, BeamSearchParams.__struct_fields__)
    params = _built(BeamSearchParams, given, "params")
    if params.structured_outputs is not None:
        text = "beam_search takes no structured_outputs here; call generate with them"
        raise InvalidRequest.of("structured_outputs", None, text)
    if params.beam_width < 1 or params.max_tokens < 1:
        name = "beam_width" if params.beam_width < 1 else "max_tokens"
        raise InvalidRequest.of(name, given[name], f"{name} must be at least 1")
    return params


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    _check_names("sampling parameter", given, _SAMPLING)
    if given.get("structured_outputs") is not None:
        _check_map("structured_outputs", given["structured_outputs"])
        _check_names("key of structured_outputs", given["structured_outputs"], _STRUCTURED)
    rows = given.get("prompt_logprob_token_ids")
    plainly = {name: value for name, value in given.items() if name != "prompt_logprob_token_ids"}
    params: SamplingParams = _built(SamplingParams, plainly, "sampling_params")
    if rows is not None:
        params.prompt_logprob_token_ids = np.asarray(getattr(rows, "numpy", lambda: rows)())
    return params


def _built(cls: Any, given: Mapping[str, Any], parameter: str) -> Any:
    """Convert a map to one of vLLM's structs, and blame the one parameter that is wrong."""
    try:
        # Hosts that know JSON maps only send integer keys as text: str_keys.
        return msgspec.convert(_shaped(cls, given), cls, str_keys=True)
    except Exception as exc:  # msgspec's and vLLM's alike; all classes are mapped
        name = _culprit(cls, given, exc) or parameter
        raise as_request_error(exc, name, given.get(name)) from exc


def _shaped(cls: Any, given: Mapping[str, Any]) -> Any:
    """Put the values into the order of a struct that is read from an array."""
    if not cls.__struct_config__.array_like:
        return given
    defaults = dict(zip(cls.__struct_fields__, cls.__struct_defaults__, strict=True))
    return [given.get(name, msgspec.to_builtins(default)) for name, default in defaults.items()]


def _culprit(cls: Any, given: Mapping[str, Any], error: Exception) -> str:
    """Find the one parameter that is refused in the same way when it stands alone."""
    for name, value in given.items():
        try:
            msgspec.convert(_shaped(cls, {name: value}), cls, str_keys=True)
        except Exception as exc:  # noqa: BLE001  # the same classes as in the whole
            if str(exc) == str(error):
                return name
    return ""


def _check_map(parameter: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise InvalidRequest.of(parameter, plain(given), f"{parameter} must be a map")


def _check_names(kind: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for name, value in given.items():
        if name not in known:
            raise unknown(kind, str(name), value, known)
