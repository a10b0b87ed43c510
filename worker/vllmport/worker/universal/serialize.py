"""What travels and what stays: results as values, with refs for the leaves that cannot travel.

One pass over the result. Nothing is converted by trying: what has no form on the wire is held.
"""

import datetime as dt
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from vllmport.bridge.codec import ITEM_SIZES, Array, Ref
from vllmport.bridge.limits import MAX_BIGINT
from vllmport.bridge.universal import MAX_NESTED
from vllmport.worker.universal.allow import check_handed_out
from vllmport.worker.universal.refs import Held, Refs

_ATOMS: Final = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
)


def to_wire(result: Any, refs: Refs, view: type | None = None) -> Any:
    """Return a result as it travels; what cannot is held in `refs`.

    Args:
        result: Anything.
        refs: The session's.
        view: The class as which the result itself may be used.

    Raises:
        NotAllowed: There is a module, a function or a class in it.
        QuotaExceeded: The session would hold too many objects; then nothing of it is held.
    """
    return _Pass(refs).whole(result, view)


def from_wire(value: Any, refs: Refs) -> Any:
    """Return arguments with the objects that their refs name.

    Raises:
        SessionLost: A ref names nothing that this session holds.
    """
    match value:
        case Ref():
            return refs.find(value).thing
        case Array():
            return value.numpy()
        case dict():
            return {from_wire(key, refs): from_wire(item, refs) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return type(value)(from_wire(item, refs) for item in value)
    return value


class _Pass:
    """One result: which objects were held for it, and which containers are open."""

    def __init__(self, refs: Refs) -> None:
        self._refs = refs
        self._made: dict[int, tuple[Ref, Any]] = {}  # the object stays, and so does its id
        self._open: set[int] = set()

    def whole(self, result: Any, view: type | None) -> Any:
        try:
            return self._value(result) if view is None else self._hold(result, view)
        except BaseException:
            self._refs.release(ref.number for ref, _ in self._made.values())
            raise

    def _value(self, value: Any) -> Any:
        if isinstance(value, Enum):
            value = value.value
        if type(value) in _ATOMS or _is_plain_subclass(value):
            return value if _has_form(value) else self._hold(value)
        container = _CONTAINERS.get(_base_of(value))
        if container is not None:
            return self._container(value, container)
        array = _array_of(value)
        return self._hold(value) if array is None else array

    def _container(self, value: Any, rebuild: "Callable[[_Pass, Any], Any]") -> Any:
        """Go into a container, unless it contains itself or lies too deep."""
        if id(value) in self._open or len(self._open) >= MAX_NESTED:
            return self._hold(value)
        self._open.add(id(value))
        try:
            return rebuild(self, value)
        finally:
            self._open.discard(id(value))

    def _list(self, value: Any) -> Any:
        return [self._value(item) for item in value]

    def _tuple(self, value: Any) -> Any:
        return tuple(self._value(item) for item in value)

    def _dict(self, value: Any) -> Any:
        if not all(_is_key(key) for key in value):
            return self._hold(value)
        return {_plain_key(key): self._value(item) for key, item in value.items()}

    def _set(self, value: Any) -> Any:
        return value if all(_is_key(item) for item in value) else self._hold(value)

    def _hold(self, value: Any, view: type | None = None) -> Ref:
        check_handed_out(value)
        if id(value) not in self._made:
            self._made[id(value)] = (self._refs.add(Held(value, view)), value)
        return self._made[id(value)][0]


_CONTAINERS: Final[dict[type, Callable[[_Pass, Any], Any]]] = {
    list: _Pass._list,  # noqa: SLF001  # its own table
    tuple: _Pass._tuple,  # noqa: SLF001
    dict: _Pass._dict,  # noqa: SLF001
    set: _Pass._set,  # noqa: SLF001
    frozenset: _Pass._set,  # noqa: SLF001
}


def _base_of(value: Any) -> type:
    """Return the container that a value is a plain kind of, else its own class."""
    kind = type(value)
    return next((base for base in kind.__mro__ if base in _CONTAINERS), kind)


def _is_plain_subclass(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | bytes)


def _has_form(value: Any) -> bool:
    return type(value) is not int or value.bit_length() // 8 < MAX_BIGINT


def _is_key(key: Any) -> bool:
    """Tell whether a key or an element of a set travels, all the way down."""
    if isinstance(key, tuple | frozenset):
        return all(map(_is_key, key))
    return isinstance(key, Enum) or (
        (type(key) in _ATOMS or _is_plain_subclass(key)) and _has_form(key)
    )


def _plain_key(key: Any) -> Any:
    return key.value if isinstance(key, Enum) else key


def _array_of(value: Any) -> Any:
    """Return what travels for an array of numpy's or torch's kind; None for anything else."""
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if kind not in ITEM_SIZES:
        return None
    if hasattr(value, "detach"):
        import torch

        tensor = value.detach().cpu().contiguous()
        flat = tensor.reshape(-1).view(torch.uint8)
        return Array(kind, tuple(tensor.shape), flat.numpy().tobytes())
    return value if hasattr(value, "tobytes") else None
