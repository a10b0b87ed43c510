"""A call's arguments: a caller's plain dict → what vLLM's engines take.

Owns which verbs there are and which arguments each one has. `engine` is an LLMEngine or an
AsyncLLM; what is used of it here, both have. Imports vLLM: only for workers that run it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest
from vllm.renderers import ChatParams, merge_kwargs
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.utils.mistral import is_mistral_tokenizer

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import (
    as_request_error,
    blaming,
    plain,
    refuse_missing,
    unknown,
)

_CHAT_TEMPLATE = ("chat_template", "chat_template_kwargs", "tools")
_CHAT_PROMPT = ("add_generation_prompt", "continue_final_message")

VERBS: Mapping[str, frozenset[str]] = {
    "generate": frozenset({"prompt", "sampling_params", "lora_request"}),
    "chat": frozenset(
        {"messages", "sampling_params", "lora_request", *_CHAT_TEMPLATE, *_CHAT_PROMPT}
    ),
    "tokenize": frozenset({"prompt", "add_special_tokens"}),
    "detokenize": frozenset({"token_ids"}),
}
"""Verb → the names of its arguments."""

_REQUIRED = {
    "generate": "prompt",
    "chat": "messages",
    "tokenize": "prompt",
    "detokenize": "token_ids",
}
_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})

# Set by the driver or by vLLM itself, never by a caller.
_NOT_OURS = {"output_kind", "skip_clone", "output_text_buffer_length"}
_SAMPLING = {
    name for name in SamplingParams.__struct_fields__ if not name.startswith("_")
} - _NOT_OURS
_STRUCTURED = {
    name for name in StructuredOutputsParams.__dataclass_fields__ if not name.startswith("_")
}
_LORA = {"lora_name": str, "lora_int_id": int, "lora_path": str}


def check_arguments(verb: str, args: Mapping[str, Any]) -> None:
    """Refuse verbs and arguments that do not exist, and calls that lack the one that matters."""
    known = VERBS.get(verb)
    if known is None:
        names = ", ".join(sorted(VERBS))
        raise InvalidRequest.of("verb", verb, f"unknown verb {verb!r}; known: {names}")
    for name, value in args.items():
        if name not in known:
            raise unknown(f"argument of {verb}", name, value, known)
    if args.get(_REQUIRED[verb]) is None:
        raise InvalidRequest.of(_REQUIRED[verb], None, f"{verb} needs {_REQUIRED[verb]!r}")


def completion_prompt(engine: Any, prompt: Any) -> Any:
    """Tokenize and check one prompt, as `LLM.generate` does."""
    if isinstance(prompt, Mapping):
        for name, value in prompt.items():
            if name not in _PROMPT_KEYS:
                raise unknown("key of a prompt", name, value, _PROMPT_KEYS)
    renderer = engine.renderer
    with blaming("prompt"):
        parsed = parse_model_prompt(engine.model_config, prompt)
        (rendered,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
        _check_tokens(engine, rendered, "prompt")
    return rendered


def chat_prompt(engine: Any, args: Mapping[str, Any]) -> Any:
    """Apply the chat template and tokenize, as `LLM.chat` does."""
    renderer, model = engine.renderer, engine.model_config
    _check_messages(args["messages"])
    with blaming("messages"):
        fixed = {
            "add_generation_prompt": args.get("add_generation_prompt", True),
            "continue_final_message": args.get("continue_final_message", False),
            "tools": args.get("tools"),
            "tokenize": is_mistral_tokenizer(renderer.tokenizer) or model.enable_prompt_embeds,
        }
        params = ChatParams(
            chat_template=args.get("chat_template"),
            chat_template_kwargs=merge_kwargs(args.get("chat_template_kwargs"), fixed),
        )
        # The template writes the special tokens itself; a second BOS would change the answer.
        tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        _, (rendered,) = renderer.render_chat([args["messages"]], params, tokenization)
        _check_tokens(engine, rendered, "messages")
    return rendered


def sampling_params(engine: Any, given: Any, *, stream: bool) -> SamplingParams:
    """Build the sampling parameters of one call; None stands for the model's own defaults."""
    if given is None:
        params = SamplingParams.from_optional(**engine.model_config.get_diff_sampling_param())
    else:
        params = _converted(given)
    params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return params


def lora_request(engine: Any, given: Any) -> LoRARequest | None:
    """Build the LoRA adapter that a call names, if it names one."""
    if given is None:
        return None
    if engine.vllm_config.lora_config is None:
        text = "this model takes no adapters; load it with enable_lora=True"
        raise InvalidRequest.of("lora_request", plain(given), text)
    _check_names("key of lora_request", given, _LORA, "lora_request")
    for name, kind in _LORA.items():
        if type(given.get(name)) is not kind:
            raise InvalidRequest.of(name, plain(given.get(name)), f"lora_request needs {name!r}")
    refuse_missing("lora_path", given["lora_path"])
    with blaming("lora_request"):
        return LoRARequest(**given)


def tokenize(engine: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Turn text into token ids."""
    prompt = args["prompt"]
    if not isinstance(prompt, str):
        raise InvalidRequest.of("prompt", plain(prompt), "tokenize needs a text")
    with blaming("prompt"):
        ids = engine.get_tokenizer().encode(
            prompt, add_special_tokens=bool(args.get("add_special_tokens", True))
        )
    return {"token_ids": list(ids), "count": len(ids)}


def detokenize(engine: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Turn token ids back into text."""
    ids = args["token_ids"]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise InvalidRequest.of("token_ids", plain(ids), "token_ids must be a list of integers")
    with blaming("token_ids"):
        engine.renderer.validate_token_ids(ids, parameter="token_ids")
        return {"text": engine.get_tokenizer().decode(ids)}


def _check_messages(messages: Any) -> None:
    """Refuse what templates and renderers would stumble over with any odd exception."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest.of("messages", plain(messages), "messages must be a list of maps")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            text = "each message must be a map with a 'role'"
            raise InvalidRequest.of("messages", plain(message), text)


def _check_tokens(engine: Any, rendered: Mapping[str, Any], parameter: str) -> None:
    """Refuse what the engine would refuse, before it gets there and with a name."""
    ids = rendered.get("prompt_token_ids")
    if ids is None:
        return
    room = engine.model_config.max_model_len - 1  # for one token at least
    if not 0 < len(ids) <= room:
        text = f"the prompt has {len(ids)} tokens; 1 to {room} are possible"
        raise InvalidRequest.of(parameter, len(ids), text)
    engine.renderer.validate_token_ids(ids, parameter=parameter)


def _converted(given: Any) -> SamplingParams:
    _check_names("sampling parameter", given, _SAMPLING, "sampling_params")
    if given.get("structured_outputs") is not None:
        kind = "key of structured_outputs"
        _check_names(kind, given["structured_outputs"], _STRUCTURED, "structured_outputs")
    try:
        # Hosts that know JSON maps only send integer keys as text: str_keys.
        return msgspec.convert(given, SamplingParams, str_keys=True)
    except Exception as exc:  # msgspec's and vLLM's alike; all classes are mapped
        name = _culprit(given, exc)
        raise as_request_error(exc, name, given.get(name)) from exc


def _culprit(given: Mapping[str, Any], error: Exception) -> str:
    """Find the one parameter that is refused in the same way when it stands alone."""
    for name, value in given.items():
        try:
            msgspec.convert({name: value}, SamplingParams, str_keys=True)
        except Exception as exc:  # noqa: BLE001  # the same classes as in the whole
            if str(exc) == str(error):
                return name
    return "sampling_params"


def _check_names(kind: str, given: Any, known: Collection[str], parameter: str) -> None:
    if not isinstance(given, Mapping):
        raise InvalidRequest.of(parameter, plain(given), f"{parameter} must be a map")
    for name, value in given.items():
        if name not in known:
            raise unknown(kind, str(name), value, known)
