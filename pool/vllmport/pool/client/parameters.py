"""What the generated parameter classes have in common: what travels, and which names exist.

Pure.
"""

import difflib
from dataclasses import fields
from typing import Any, Self

from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.removed import (
    ACTIVATIONS,
    REFUSED_POOLING,
    REFUSED_SAMPLING,
    gone,
)


class Parameters:
    """Parameters of a call; the worker checks their values against the engine.

    Raises:
        InvalidRequest: A parameter does not exist, or vLLM has removed it; the message says what
            to use instead.
    """

    __slots__ = ()

    def __new__(cls, *_args: Any, **given: Any) -> Self:
        """Refuse unknown names before the constructor does, and with better words."""
        known: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name, value in given.items():
            if name not in known:
                raise _unknown(cls.__name__, name, value, list(known))
        return super().__new__(cls)

    def to_wire(self) -> dict[str, Any]:
        """Return what differs from the defaults, as plain data."""
        found = {}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            differs = value is not None if field.default is None else value != field.default
            if differs:  # an array cannot be compared with nothing
                found[field.name] = value.to_wire() if isinstance(value, Parameters) else value
        return found


def _unknown(cls: str, name: str, value: Any, known: list[str]) -> InvalidRequest:
    removed = {"SamplingParams": REFUSED_SAMPLING, "PoolingParams": REFUSED_POOLING}.get(cls, {})
    if name in removed:
        return gone("parameter", name, value, removed[name])
    if cls == "PoolingParams" and name in ACTIVATIONS:
        return gone("parameter", name, value, "see use_activation")
    if cls == "SamplingParams" and name.startswith("guided_"):
        instead = f'structured_outputs={{"{name.removeprefix("guided_")}": …}}'
        return gone("parameter", name, value, f"see {instead}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest.of(name, shown(value), f"unknown parameter {name!r} of {cls}{hint}")
