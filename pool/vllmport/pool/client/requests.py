"""What callers write → the arguments that travel: prompts, messages, parameters.

Pure. Shared by the sync and the async client.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.messages import Call
from vllmport.pool.client.params import SamplingParams

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or a map with `prompt` or `prompt_token_ids`."""

Prompts = Prompt | Sequence[Prompt]
"""One prompt or several."""

Params = SamplingParams | Mapping[str, Any] | None
"""Sampling parameters, or a map of them."""

Retry = Literal["resume"] | None
"""What becomes of a call whose worker is lost after it started it: None lets it fail."""

Message = Mapping[str, Any]
"""One chat message: `role` and `content`, and what the model's template knows besides."""


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


def params_list(params: Params | Sequence[Params], count: int) -> list[dict[str, Any] | None]:
    """Return the parameters of each of `count` prompts.

    Raises:
        InvalidRequest: There is a list of them, but of another length.
    """
    if isinstance(params, Sequence):
        if len(params) != count:
            text = (
                f"{len(params)} sampling parameters for {count} prompts; give one, or one for each"
            )
            raise InvalidRequest.of("sampling_params", len(params), text)
        return [_params_to_wire(item) for item in params]
    return [_params_to_wire(params)] * count


def generate_requests(
    prompts: Prompts, params: Params | Sequence[Params], extra: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Build the arguments of the `generate` calls, one for each prompt."""
    listed = prompt_list(prompts)
    given = params_list(params, len(listed))
    wanted = _given(extra)
    return [
        {"prompt": _plain(prompt), "sampling_params": own, **wanted}
        for prompt, own in zip(listed, given, strict=True)
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
    wanted = _given(extra)
    return [
        {"messages": [dict(message) for message in conversation], "sampling_params": own, **wanted}
        for conversation, own in zip(conversations, given, strict=True)
    ]


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
        request_id=request_id or secrets.token_hex(6),
        retry=retry or "",
    )


def numbered(call: Call, index: int, count: int) -> Call:
    """Tell the prompts of a batch apart in logs and results."""
    return call if count == 1 else call._replace(request_id=f"{call.request_id}-{index}")


def load_arguments(
    model: str | None,
    name: str | None,
    v1_multiprocessing: str,
    env: Mapping[str, str] | None,
    replicas: int,
    engine_args: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the arguments of the pool's `load`."""
    return {
        "model": model,
        "name": name,
        "v1_multiprocessing": v1_multiprocessing,
        "env": dict(env or {}),
        "replicas": replicas,
        "engine_args": dict(engine_args),
    }


def _is_conversation(value: Any) -> bool:
    """Tell whether this is a list of maps, and not empty."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return listed and bool(value) and all(isinstance(message, Mapping) for message in value)


def _params_to_wire(params: Params) -> dict[str, Any] | None:
    match params:
        case None:
            return None
        case SamplingParams():
            return params.to_wire()
        case Mapping():
            return dict(params)
    text = f"sampling_params is a SamplingParams or a map, not {type(params).__name__}"
    raise InvalidRequest.of("sampling_params", repr(params)[:200], text)


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return dict(prompt) if isinstance(prompt, Mapping) else list(prompt)


def _given(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if value is not None}
