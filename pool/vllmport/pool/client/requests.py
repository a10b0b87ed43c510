"""What callers write → the arguments that travel: prompts, messages, parameters.

Pure. Shared by the sync and the async client.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.messages import Call
from vllmport.pool.client.media import message_with_media, prompt_with_media
from vllmport.pool.client.parameters import Parameters
from vllmport.pool.client.params import BeamSearchParams, LoRARequest, PoolingParams, SamplingParams
from vllmport.pool.client.request_ids import new_request_id
from vllmport.pool.client.travel import full_name

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or a map with `prompt` or `prompt_token_ids`."""

Prompts = Prompt | Sequence[Prompt]
"""One prompt or several."""

Params = SamplingParams | Mapping[str, Any] | None
"""Sampling parameters, or a map of them."""

PoolParams = PoolingParams | Mapping[str, Any] | None
"""Pooling parameters, or a map of them."""

Lora = LoRARequest | Mapping[str, Any] | str | None
"""An adapter: a LoRARequest, a map like it, or the name of one that the model knows."""

PAIRS = 64
"""Pairs of texts in one call of `score`: as many as travel together and are scored together."""

Retry = Literal["resume"] | None
"""What becomes of a call whose worker is lost after it started it: None lets it fail."""

Priority = int | Sequence[int] | None
"""Lower runs first; for all prompts, or a list with one for each."""

Message = Mapping[str, Any]
"""One chat message: `role` and `content`, and what the model's template knows besides."""


class Limits(TypedDict, total=False):
    """What every call takes; see `LLM.generate`."""

    timeout: float | None
    timeout_profile: str | None
    priority: Priority
    request_id: str | None
    retry: Retry
    use_tqdm: bool | Callable[..., Any]


class Extras(TypedDict, total=False):
    """What generation takes besides prompts and sampling parameters."""

    lora_request: Lora | Sequence[Lora]
    """An adapter: a LoRARequest, a map like it, or a name that `add_lora` or the model's
    specification made known. For all prompts, or a list with one for each."""
    guided_decoding_params: Params
    """Old name of `structured_outputs` in the sampling parameters."""
    tokenization_kwargs: Mapping[str, Any] | None
    """How to tokenize: vLLM's add_special_tokens, truncate_prompt_tokens and the like."""
    mm_processor_kwargs: Mapping[str, Any] | None
    """For the processor of images and the like."""


def check_limits(limits: Mapping[str, Any], verb: str) -> None:
    """Refuse what is none of the `Limits`; a misspelt timeout would be no timeout.

    Raises:
        InvalidRequest: There is one.
    """
    for name, value in limits.items():
        if name not in Limits.__annotations__:
            close = difflib.get_close_matches(name, Limits.__annotations__, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidRequest.of(name, shown(value), f"{verb} has no argument {name!r}{hint}")


def prompt_list(prompts: Prompts) -> list[Prompt]:
    """Return the prompts one by one: a list of numbers is one prompt of token ids.

    Raises:
        InvalidRequest: Something in it is no prompt.
    """
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, (bytes, bytearray)) or not isinstance(prompts, Sequence):
        text = f"a prompt is text, token ids or a map, not {type(prompts).__name__}"
        raise InvalidRequest.of("prompts", repr(prompts)[:200], text)
    if prompts and all(isinstance(item, int) for item in prompts):
        return [list(prompts)]  # type: ignore[arg-type]  # all of them are token ids
    for item in prompts:
        if not isinstance(item, (str, Mapping, Sequence)):
            text = f"a prompt is text, token ids or a map, not {type(item).__name__}"
            raise InvalidRequest.of("prompts", repr(item)[:200], text)
    return list(prompts)  # type: ignore[arg-type]  # checked just now


def params_list(
    params: Any, count: int, name: str = "sampling_params"
) -> list[dict[str, Any] | None]:
    """Return the parameters of each of `count` prompts.

    Raises:
        InvalidRequest: There is a list of them, but of another length.
    """
    if isinstance(params, Sequence):
        if len(params) != count:
            what = name.replace("_params", " parameters")
            text = f"{len(params)} {what} for {count} prompts; give one, or one for each"
            raise InvalidRequest.of(name, len(params), text)
        return [_params_to_wire(item) for item in params]
    return [_params_to_wire(params)] * count


def generate_requests(
    prompts: Prompts, params: Params | Sequence[Params], extra: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Build the arguments of the `generate` calls, one for each prompt."""
    listed = prompt_list(prompts)
    given = params_list(params, len(listed))
    wanted, adapters = _shared_and_own(extra, len(listed))
    return [
        {"prompt": _plain(prompt), "sampling_params": own, **wanted, **adapter}
        for prompt, own, adapter in zip(listed, given, adapters, strict=True)
    ]


def chat_requests(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    params: Params | Sequence[Params],
    extra: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Build the arguments of the `chat` calls, one for each conversation.

    Raises:
        InvalidRequest: It is not a list of messages, nor a list of such lists.
    """
    several = isinstance(messages, Sequence) and messages and all(map(_is_conversation, messages))
    if not several and not _is_conversation(messages):
        text = 'messages look like [{"role": "user", "content": "…"}], or are a list of such lists'
        raise InvalidRequest.of("messages", repr(messages)[:200], text)
    conversations: list[Any] = list(messages) if several else [messages]
    given = params_list(params, len(conversations))
    wanted, adapters = _shared_and_own(extra, len(conversations))
    return [
        {
            "messages": [message_with_media(message) for message in conversation],
            "sampling_params": own,
            **wanted,
            **adapter,
        }
        for conversation, own, adapter in zip(conversations, given, adapters, strict=True)
    ]


def pooling_requests(
    prompts: Prompts,
    params: PoolParams | Sequence[PoolParams],
    lora: Lora | Sequence[Lora],
    extra: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Build the arguments of pooling calls, one for each prompt."""
    listed = prompt_list(prompts)
    given = params_list(params, len(listed), "pooling_params")
    adapters = lora_list(lora, len(listed))
    wanted = _given(extra)
    return [
        _given({"prompt": _plain(prompt), "pooling_params": own, "lora_request": name, **wanted})
        for prompt, own, name in zip(listed, given, adapters, strict=True)
    ]


def score_requests(
    data_1: Any, data_2: Any, params: PoolParams, lora: Lora, extra: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Build the arguments of `score` calls: one text with many, or many with as many.

    Raises:
        InvalidRequest: The lengths do not fit, or there is nothing to score.
    """
    first = list(data_1) if isinstance(data_1, list | tuple) else [data_1]
    second = list(data_2) if isinstance(data_2, list | tuple) else [data_2]
    if not second or len(first) not in (1, len(second)):
        text = f"{len(first)} texts cannot be paired with {len(second)}: give 1 and N, or N and N"
        raise InvalidRequest.of("data_1", len(first), text)
    wanted = {"pooling_params": _params_to_wire(params), "lora_request": _lora(lora), **extra}
    return [
        _given(
            {
                "data_1": first if len(first) == 1 else first[start : start + PAIRS],
                "data_2": second[start : start + PAIRS],
                **wanted,
            }
        )
        for start in range(0, len(second), PAIRS)
    ]


def beam_requests(
    prompts: Prompts, params: BeamSearchParams | Mapping[str, Any], lora: Lora | Sequence[Lora]
) -> list[dict[str, Any]]:
    """Build the arguments of `beam_search` calls, one for each prompt."""
    listed = prompt_list(prompts)
    plain = _params_to_wire(params)
    return [
        _given({"prompt": _plain(prompt), "params": plain, "lora_request": name})
        for prompt, name in zip(listed, lora_list(lora, len(listed)), strict=True)
    ]


def lora_list(lora: Lora | Sequence[Lora], count: int) -> list[Any]:
    """Return the adapter of each of `count` prompts.

    Raises:
        InvalidRequest: There is a list of them, but of another length.
    """
    if isinstance(lora, Sequence) and not isinstance(lora, str):
        if len(lora) != count:
            text = f"{len(lora)} adapters for {count} prompts; give one, or one for each"
            raise InvalidRequest.of("lora_request", len(lora), text)
        return [_lora(item) for item in lora]
    return [_lora(lora)] * count


def call_for(
    model: str,
    verb: str,
    priority: int | None,
    request_id: str | None,
    window: int = 0,
    retry: Retry = None,
) -> Call:
    """Build the header of a call; the connection fills in its id and budget.

    Raises:
        InvalidRequest: The priority is no whole number, or there is no such way to retry.
    """
    if retry not in (None, "resume"):
        raise InvalidRequest.of("retry", repr(retry), 'retry is None or "resume"')
    if priority is not None and type(priority) is not int:
        raise InvalidRequest.of(
            "priority", repr(priority), "priority is a whole number; lower runs first"
        )
    return Call(
        0,
        model,
        verb,
        None,
        window=window,
        priority=priority or 0,
        request_id=request_id or new_request_id(),
        retry=retry or "",
    )


def calls_for(
    model: str, verb: str, count: int, priority: Priority, request_id: str | None, retry: Retry
) -> list[Call]:
    """Build the headers of the calls of `count` prompts, told apart in logs and results.

    Raises:
        InvalidRequest: As for `call_for`, or there is a list of priorities of another length.
    """
    if isinstance(priority, list | tuple):
        priorities: list[Any] = list(priority)
    else:
        priorities = [priority] * count
    if len(priorities) != count:
        text = f"{len(priorities)} priorities for {count} prompts; give one, or one for each"
        raise InvalidRequest.of("priority", len(priorities), text)
    first = call_for(model, verb, None, request_id, retry=retry)
    calls = [call_for(model, verb, own, first.request_id, retry=retry) for own in priorities]
    if count == 1:
        return calls
    return [
        call._replace(request_id=f"{first.request_id}-{index}") for index, call in enumerate(calls)
    ]


def load_arguments(
    model: str | None,
    name: str | None,
    *,
    v1_multiprocessing: str,
    env: Mapping[str, str] | None,
    replicas: int,
    loras: Mapping[str, str] | None,
    preset: str | None,
    engine_args: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the arguments of the pool's `load`."""
    return {
        "model": model,
        "name": name,
        "v1_multiprocessing": v1_multiprocessing,
        "env": dict(env or {}),
        "replicas": replicas,
        "loras": dict(loras or {}),
        "preset": preset,
        "engine_args": dict(engine_args),
    }


def _is_conversation(value: Any) -> bool:
    """Tell whether this is a list of maps, and not empty."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and bool(value) and all(isinstance(message, Mapping) for message in value)


def _params_to_wire(params: Any) -> dict[str, Any] | None:
    match params:
        case None:
            return None
        case Parameters():
            return params.to_wire()
        case Mapping():
            return {
                name: value.to_wire() if isinstance(value, Parameters) else value
                for name, value in params.items()
            }
    text = "parameters are of a class of vllmport.pool such as SamplingParams, or a map, not "
    text += full_name(type(params))
    raise InvalidRequest.of("sampling_params", repr(params)[:200], text)


def _lora(lora: Lora) -> Any:
    return lora if lora is None or isinstance(lora, str) else _params_to_wire(lora)


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return prompt_with_media(prompt) if isinstance(prompt, Mapping) else list(prompt)


def _shared_and_own(
    extra: Mapping[str, Any], count: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tell what all requests have in common from the adapter, which each may have its own."""
    shared = _given({name: value for name, value in extra.items() if name != "lora_request"})
    if isinstance(shared.get("guided_decoding_params"), Parameters):
        shared["guided_decoding_params"] = shared["guided_decoding_params"].to_wire()
    own = lora_list(extra.get("lora_request"), count)
    return shared, [{} if lora is None else {"lora_request": lora} for lora in own]


def _given(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}
