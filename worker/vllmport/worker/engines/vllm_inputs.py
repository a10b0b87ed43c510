"""What callers give beside text: how to tokenize it, or embeddings instead of it. Checks both.

vLLM itself ignores tokenization arguments that it does not know, and its engine dies of embeddings
of a wrong shape. Imports torch: only for workers that run vLLM.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from vllmport.bridge.codec import Array
from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import plain, unknown

_Check = tuple[Callable[[Any], bool], str]


def _one_of(values: tuple[Any, ...]) -> _Check:
    return (
        lambda value: any(type(value) is type(one) and value == one for one in values),
        f"one of {', '.join(map(repr, values))}",
    )


_SWITCH: Final[_Check] = (lambda value: type(value) is bool, "true or false")
_LENGTH: Final[_Check] = (
    lambda value: type(value) is int and (value > 0 or value == -1),
    "a number of tokens from 1, or -1 for as many as the model takes",
)

TOKENIZATION: Final[Mapping[str, _Check]] = {
    "add_special_tokens": _SWITCH,
    "do_lower_case": _SWITCH,
    "max_length": (lambda value: type(value) is int and value > 0, "a number of tokens from 1"),
    "needs_detokenization": _SWITCH,
    "pad_prompt_tokens": _LENGTH,
    "padding": _one_of(("max_length", "do_not_pad", False)),
    "truncate_prompt_tokens": _LENGTH,
    "truncation": _one_of(("longest_first", "do_not_truncate", True, False)),
    "truncation_side": _one_of(("left", "right")),
}
"""Tokenization argument → what it may be, besides None."""


def check_tokenization(given: Any) -> None:
    """Check `tokenization_kwargs`.

    Raises:
        InvalidRequest: It is no map, or one of it is unknown or of a wrong kind.
    """
    if not isinstance(given, Mapping):
        text = 'tokenization_kwargs is a map such as {"truncate_prompt_tokens": 100}'
        raise InvalidRequest.of("tokenization_kwargs", plain(given), text)
    for name, value in given.items():
        if name not in TOKENIZATION:
            raise unknown("key of tokenization_kwargs", str(name), value, TOKENIZATION)
        fits, wanted = TOKENIZATION[name]
        if value is not None and not fits(value):
            text = f"{name} in tokenization_kwargs is {wanted}, not {plain(value)!r}"
            raise InvalidRequest.of(name, plain(value), text)


def prompt_embeddings(config: Any, given: Any) -> torch.Tensor:
    """Return the tensor of a prompt that is given as embeddings, in the type of the model.

    Args:
        config: The engine's model configuration.
        given: An array, or lists of numbers: tokens by the width of the model's embeddings.

    Raises:
        InvalidRequest: The model takes none, or they are of a wrong shape or kind.
    """
    if not config.enable_prompt_embeds:
        text = "this model takes no embeddings as prompts; load it with enable_prompt_embeds=True"
        raise InvalidRequest.of("prompt_embeds", None, text)
    width, room = config.get_inputs_embeds_size(), config.max_model_len - 1
    wanted = f"prompt_embeds is an array of numbers, tokens by {width}"
    try:
        array = given.numpy().copy() if isinstance(given, Array) else given
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as exc:
        shown = plain(type(given).__name__)
        raise InvalidRequest.of("prompt_embeds", shown, f"{wanted}, not {shown}") from exc
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    shape = list(tensor.shape)
    if len(shape) != 2 or shape[1] != width or not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InvalidRequest.of("prompt_embeds", str(shape), f"{wanted}, not {shape} of {kind}")
    if not 0 < shape[0] <= room:
        text = f"the prompt has {shape[0]} tokens; 1 to {room} are possible"
        raise InvalidRequest.of("prompt_embeds", shape[0], text)
    return tensor.to(config.dtype)
