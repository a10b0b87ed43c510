"""Says which argument of a call cannot leave this process, and what to give instead. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vllmport.bridge.codec import Packed, pack
from vllmport.bridge.errors import InvalidRequest

_HOLDERS: Final = ("engine_args", "sampling_params", "pooling_params", "params", "args")
"""Arguments that only hold what the caller gave by its own name."""

_PLAIN: Final = "give plain data: numbers, text, lists, maps, arrays"
_FUNCTION: Final = (
    "functions and classes stay in this process: where vLLM takes a name (logits_processors, "
    'worker_extension_cls), give it as text, "module.Name"; else plain data'
)
_CONFIG: Final = "give its fields as a map"


def pack_arguments(args: Mapping[str, Any]) -> Packed:
    """Pack the arguments of a call.

    Raises:
        InvalidRequest: One of them has no form on the wire, and is named; or all are too large.
    """
    try:
        return pack(args)
    except InvalidRequest as exc:
        for path, value in _leaves(args, ()):
            if not _travels(value):
                raise _refusal(path, value) from exc
        raise


def full_name(cls: type) -> str:
    """Return the name of a class with its module, unless it is Python's own."""
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what holds nothing itself, with the way to it; not deeper than can be packed."""
    if isinstance(value, Mapping) and len(path) < _DEPTH:
        for key, item in value.items():
            yield (*path, "a key"), key
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list | tuple | set | frozenset) and len(path) < _DEPTH:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path, value


_DEPTH: Final = 32


def _travels(value: Any) -> bool:
    try:
        pack(value)
    except InvalidRequest:
        return False
    return True


def _refusal(path: tuple[str, ...], value: Any) -> InvalidRequest:
    own = path[1:] if path[0] in _HOLDERS and len(path) > 1 else path
    kind = full_name(value if isinstance(value, type) else type(value))
    if callable(value):
        advice = _FUNCTION
    elif kind.startswith("vllm.") or hasattr(value, "__dataclass_fields__"):
        advice = _CONFIG
    else:
        advice = _PLAIN
    what = f"the class {kind}" if isinstance(value, type) else f"a {kind}"
    text = f"{'.'.join(own)} is {what}, which cannot travel to the engine's process: {advice}"
    return InvalidRequest.of(own[0], kind, text)
