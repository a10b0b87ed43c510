"""Values ↔ bytes."""

import datetime as dt
import enum
import math
import struct
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings

from vllmport.bridge.codec import (
    ITEM_SIZES,
    Array,
    Ext,
    Symbol,
    pack,
    pack_header,
    unpack,
    unpack_header,
)
from vllmport.bridge.errors import InvalidRequest, ProtocolError
from vllmport.bridge.limits import (
    BUFFER_THRESHOLD,
    MAX_BIGINT,
    MAX_BUFFERS,
    MAX_DEPTH,
    MAX_FRAME,
    MAX_PAYLOAD,
)
from wire_strategies import same, values


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)
    HUGE = 2**80


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


def round_trip(value: Any) -> Any:
    return unpack(*pack(value))


def ext(code: int, body: bytes) -> bytes:
    return struct.pack(">BIb", 0xC9, len(body), code) + body


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = (value,)
    return value


@given(values)
@settings(max_examples=150, deadline=None)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (Colour.RED, "red"),
        (Colour.PAIR, (1, 2)),
        (Colour.HUGE, 2**80),
        (Level.HIGH, 3),
        (Point(1, 2), (1, 2)),
        (Text("a"), "a"),
        (OrderedDict(a=1), {"a": 1}),
        (True, True),
    ],
)
def test_what_is_like_a_plain_type_arrives_as_that(value: Any, arrives: Any) -> None:
    assert same(round_trip(value), arrives)


def test_no_map_of_a_user_is_taken_for_anything_else() -> None:
    value = {"__type__": "tuple", "ext": 1, "__ext__": [1, b"\x90"]}
    assert same(round_trip(value), value)


def test_a_symbol_is_not_text_on_the_wire() -> None:
    assert pack(Symbol("a")).payload != pack("a").payload
    assert repr(round_trip(Symbol("a"))) == "Symbol('a')"


def test_numpy_arrays_and_scalars_travel() -> None:
    np = pytest.importorskip("numpy")
    for dtype in sorted(ITEM_SIZES.keys() - {"bfloat16"}):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        back = round_trip({"a": array})["a"]
        assert (back.dtype, back.shape) == (dtype, (2, 3))
        assert np.array_equal(back.numpy(), array)
    assert round_trip(np.float32(0.5)) == 0.5
    assert round_trip(np.complex64(1 - 2j)) == 1 - 2j
    assert round_trip(np.arange(3, dtype=">i4")).numpy().tolist() == [0, 1, 2]
    assert round_trip(np.asfortranarray(np.eye(3))).numpy().tolist() == np.eye(3).tolist()


def test_tensors_travel_as_arrays_and_their_types_as_names() -> None:
    torch = pytest.importorskip("torch")
    assert round_trip([torch.float16, torch.bfloat16]) == ["float16", "bfloat16"]
    for dtype in ("float32", "float16", "int64", "bool"):
        tensor = torch.tensor([[0, 1], [1, 0]], dtype=getattr(torch, dtype), requires_grad=False)
        back = round_trip(tensor.T)
        assert (back.dtype, back.shape) == (dtype, (2, 2))
        assert back.numpy().tolist() == tensor.T.tolist()
    exact = torch.tensor([1.5, -3.0], dtype=torch.bfloat16)
    assert round_trip(exact).numpy().tolist() == [1.5, -3.0], "as float32, which has all of them"
    assert round_trip(torch.ones(2, requires_grad=True)).numpy().tolist() == [1.0, 1.0]
    assert round_trip(torch.tensor(3)) == 3


def test_only_large_arrays_become_buffers() -> None:
    small = Array("int8", (BUFFER_THRESHOLD - 1,), bytes(BUFFER_THRESHOLD - 1))
    large = Array("int8", (BUFFER_THRESHOLD,), bytes(BUFFER_THRESHOLD))
    packed = pack([small, large, large])
    assert packed.buffers == [large.data, large.data]
    assert len(packed.payload) < 2 * BUFFER_THRESHOLD


def test_arrays_stay_in_the_payload_when_the_buffers_are_used_up() -> None:
    large = Array("int8", (BUFFER_THRESHOLD,), bytes(BUFFER_THRESHOLD))
    packed = pack([large] * (MAX_BUFFERS + 2))
    assert len(packed.buffers) == MAX_BUFFERS
    assert unpack(*packed) == [large] * (MAX_BUFFERS + 2)


def test_several_arrays_may_share_a_buffer() -> None:
    body = pack(["int8", [2], 0]).payload
    shared = b"\x92" + ext(Ext.BUFFER, body) * 2
    assert unpack(shared, [b"ab"]) == [Array("int8", (2,), b"ab")] * 2


def test_timestamps_of_msgpack_itself_are_read() -> None:
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    assert unpack(b"\xd6\xff" + struct.pack(">I", int(moment.timestamp()))) == moment
    assert unpack(b"\xc7\x0c\xff" + struct.pack(">Iq", 0, int(moment.timestamp()))) == moment


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (object(), "builtins.object has no form on the wire"),
        (lambda: None, "builtins.function has no form"),
        (nested(MAX_DEPTH + 1), "levels deep"),
        (2 ** (8 * MAX_BIGINT), "integer of 1025 bytes"),
        ("\ud800", "surrogates not allowed"),
        (dt.time(1, tzinfo=dt.timezone(dt.timedelta(microseconds=1))), "whole seconds"),
        (b"x" * (MAX_PAYLOAD + 1), "send large data as arrays"),
        (Array("float128", (1,), bytes(16)), "array type 'float128'"),
        (Array("int8", (3,), b"ab"), "takes 3 bytes, got 2"),
        (Array("int8", (-1,), b""), "bad array shape"),
        (Array("int8", (MAX_FRAME + 1,), bytes(MAX_FRAME + 1)), "split it"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else "",
)
def test_what_has_no_form_on_the_wire_is_refused_when_packed(value: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        pack(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest):
        pack(endless)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\xa2\xff\xff",
        b"\x81\x90\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 2000,
        ext(0, b""),
        ext(13, b""),
        ext(-2, b""),
        ext(Ext.TUPLE, b"\x80"),
        ext(Ext.TUPLE, b"\x90\x90"),
        ext(Ext.SET, b"\x91\x90"),
        ext(Ext.SYMBOL, b"\xff"),
        ext(Ext.DATETIME, b"yesterday"),
        ext(Ext.DATE, b"2026-02-30"),
        ext(Ext.TIME, b"25:00"),
        ext(Ext.TIMEDELTA, struct.pack("<qii", 10**12, 0, 0)),
        ext(Ext.COMPLEX, bytes(15)),
        ext(Ext.BIGINT, b""),
        ext(Ext.BIGINT, bytes(MAX_BIGINT + 1)),
        ext(Ext.ARRAY, b"\x90"),
        ext(Ext.ARRAY, pack(["int8", [2], b"a"]).payload),
        ext(Ext.ARRAY, pack(["int8", [1], "a"]).payload),
        ext(Ext.ARRAY, pack([["int8"], [1], b"a"]).payload),
        ext(Ext.ARRAY, pack(["int64", [2**40, 2**40], b""]).payload),
        ext(Ext.BUFFER, pack(["int8", [2], 1]).payload),
        ext(Ext.BUFFER, pack(["int8", [2], -1]).payload),
        ext(Ext.BUFFER, pack(["int8", [2], True]).payload),
        ext(Ext.BUFFER, pack(["int8", [3], 0]).payload),
        bytes(MAX_PAYLOAD + 1),
    ],
    ids=lambda payload: payload[:12].hex(" "),
)
def test_bytes_that_are_no_value_are_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(payload, [b"ab"])


def test_extension_types_nest_to_the_limit_and_no_further() -> None:
    assert same(round_trip(nested(MAX_DEPTH - 1)), nested(MAX_DEPTH - 1))
    payload = b"\xc0"
    for _ in range(MAX_DEPTH + 1):
        payload = ext(Ext.TUPLE, b"\x91" + payload)
    with pytest.raises(ProtocolError, match="levels deep"):
        unpack(payload)


def test_every_integer_that_travels_can_be_printed() -> None:
    """Python refuses to print very long ones, and errors quote what they are about."""
    assert len(str(round_trip(1 - 2 ** (8 * MAX_BIGINT - 1)))) > 2000


def test_not_a_number_and_infinity_travel() -> None:
    back = round_trip([math.inf, -math.inf, math.nan])
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


@pytest.mark.parametrize("value", ["\ud800", 2**64, object()])
def test_a_header_that_cannot_travel_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        pack_header((10, value))


@pytest.mark.parametrize("frame", [b"", b"\x91\xd4\x01\x90", b"\x91\x81\x01\x02", b"\x91\xc4\x01a"])
def test_headers_hold_no_extension_types_maps_or_binary(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_header(frame)
