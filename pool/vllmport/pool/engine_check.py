"""Looks at engine arguments before a worker is started: names, kinds, what vLLM has removed.

Pure. Ranges, and what depends on the model, are vLLM's to check, in the worker.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.removed import Modern, modern_engine_args
from vllmport.pool.engine_args import VLLM_VERSION, EngineArgs
from vllmport.pool.layers import HIDDEN, is_secret

OWN_OPTIONS: Final = ("name", "v1_multiprocessing", "env", "replicas", "loras", "preset", "wait")
"""What a model takes besides engine arguments: a misspelt one of them arrives here."""


def check_engine_args(given: Mapping[str, Any]) -> Modern:
    """Return the arguments as vLLM takes them today, and a note for each that was translated.

    Raises:
        InvalidRequest: An argument does not exist, is of a wrong kind, or vLLM has removed it.
    """
    args, notes = modern_engine_args(given)
    kinds = _kinds()
    for name, value in args.items():
        if name not in kinds:
            close = difflib.get_close_matches(name, [*kinds, *OWN_OPTIONS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            text = f"vLLM {VLLM_VERSION} has no engine argument {name!r}{hint}"
            raise InvalidRequest.of(name, _shown_of(name, value), text)
        if not _fits(value, kinds[name]):
            seen = _shown_of(name, value)
            text = f"{name} is {_described(kinds[name])}, not {seen}"
            raise InvalidRequest.of(name, seen, text)
    _check_executor(args.get("distributed_executor_backend"))
    return args, notes


def _shown_of(name: str, value: Any) -> str:
    """Show a value in an error, unless it may be secret."""
    return HIDDEN if is_secret(name) else shown(value)


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(EngineArgs)


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a plain value is of a kind; what is in a map is not looked at."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in get_args(kind))
    if origin is list:
        listed = isinstance(value, list | tuple | set | frozenset)
        return listed and all(_fits(item, *get_args(kind)) for item in value)
    if kind is Any or value is None:
        return kind in (Any, NoneType)
    if kind is float:
        return type(value) in (int, float)
    return isinstance(value, bool) == (kind is bool) and isinstance(value, origin or kind)


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(part) for part in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(repr(part) for part in get_args(kind))
    return _WORDS.get(origin or kind, str(kind))


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a map",
    NoneType: "nothing",
}


def _check_executor(value: Any) -> None:
    """Refuse a misspelt backend, which vLLM would take for the path of a class."""
    named = ("ray", "mp", "uni", "external_launcher", None)
    if value not in named and "." not in value:
        text = "distributed_executor_backend is one of ray, mp, uni, external_launcher, or the "
        text += f"full name of a class, not {shown(value)}"
        raise InvalidRequest.of("distributed_executor_backend", shown(value), text)
