"""Values and messages for property tests: everything that may travel, and a strict comparison."""

import datetime as dt
import math
from typing import Any, get_type_hints

from hypothesis import strategies as st

from vllmport.bridge.codec import ITEM_SIZES, Array, Ref, Symbol
from vllmport.bridge.limits import MAX_NAME, MAX_TEXT, MAX_TIMEOUT_MS
from vllmport.bridge.messages import KINDS, Call, Error, Message

_offsets = st.integers(-23 * 3600, 23 * 3600).map(lambda seconds: dt.timedelta(seconds=seconds))
_zones = st.none() | _offsets.map(dt.timezone)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.text(max_size=8).map(Symbol),
    st.datetimes(timezones=_zones),
    st.dates(),
    st.times(timezones=_zones),
    st.timedeltas(),
    st.complex_numbers(allow_nan=False),
    st.builds(Ref, st.text(max_size=8), st.text(max_size=8), st.integers(1, 2**63 - 1), st.text()),
)

hashables = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Draw an array of up to three dimensions, on either side of the buffer threshold."""
    dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
    size = math.prod(shape) * ITEM_SIZES[dtype]
    seed = draw(st.binary(min_size=1, max_size=8))
    return Array(dtype, shape, (seed * (size // len(seed) + 1))[:size])


values = st.recursive(
    scalars | st.just(math.nan) | arrays(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=12,
)

_int64 = st.integers(-(2**63), 2**63 - 1)
_names = st.text(max_size=30) | st.just("x" * MAX_NAME)
_fields: dict[Any, st.SearchStrategy[Any]] = {
    int: _int64,
    str: _names,
    bool: st.booleans(),
    int | None: st.none() | st.integers(0, MAX_TIMEOUT_MS),
    list[int]: st.lists(_int64, max_size=5),
    list[list[int]]: st.lists(st.lists(_int64, min_size=2, max_size=2), max_size=5),
}
_own_fields: dict[tuple[type[Message], str], st.SearchStrategy[Any]] = {
    (Call, "id"): st.integers(1, 2**63 - 1),
    (Call, "window"): st.integers(0, 2**63 - 1),
    (Call, "ttl_ms"): st.integers(0, 2**63 - 1),
    (Error, "message"): _names | st.just("x" * MAX_TEXT),
}


def _messages_of(cls: type[Message]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(cls)
    drawn = [_own_fields.get((cls, name), _fields[hints[name]]) for name in cls._fields]
    return st.tuples(*drawn).map(cls._make)


messages = st.one_of([_messages_of(cls) for cls in KINDS])
"""Any message of any kind, with any fields it may have."""


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type as well, all the way down; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    match one:
        case Array():
            return (one.dtype, one.shape, bytes(one.data)) == (
                other.dtype,
                other.shape,
                bytes(other.data),
            )
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case dict():
            return same(list(one.items()), list(other.items()))
        case float() if math.isnan(one):
            return math.isnan(other)
    return bool(one == other)
