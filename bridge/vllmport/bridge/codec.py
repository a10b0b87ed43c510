"""Values ↔ bytes: msgpack, with extension types for what msgpack lacks.

Pure. The only file that touches the msgpack library. A value that has no type of its own here is
refused when packed; bytes that are not a value raise ProtocolError and nothing else.
"""

import datetime as dt
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final, NamedTuple

import msgpack

from vllmport.bridge.errors import InvalidRequest, ProtocolError
from vllmport.bridge.limits import (
    BUFFER_THRESHOLD,
    MAX_BIGINT,
    MAX_BUFFERS,
    MAX_DEPTH,
    MAX_FRAME,
    MAX_HEADER,
    MAX_NAME,
    MAX_PAYLOAD,
)


class Ext(IntEnum):
    """Extension type codes; the body of each is described in `bridge/PROTOCOL.md`."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    SYMBOL = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    COMPLEX = 9
    BIGINT = 10
    ARRAY = 11
    BUFFER = 12
    REF = 13


ITEM_SIZES: Final[dict[str, int]] = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}
"""Array element types that may travel, with their size in bytes."""

Bytes = bytes | bytearray | memoryview


class Symbol(str):
    """A name as an atom or symbol of the host's language, kept apart from text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Symbol({str(self)!r})"


@dataclass(frozen=True)
class Ref:
    """An object that stays in its worker, and is named here.

    Attributes:
        session: The session that owns it; the supervisor's name for it.
        worker: Where it is.
        number: Which of the session's objects, from 1.
        type: Its class, for people.
    """

    session: str
    worker: str
    number: int
    type: str


class Array(NamedTuple):
    """An n-dimensional array as plain bytes: C order, little-endian.

    `memoryview(array.data)` is free of copies; `array.numpy()` needs numpy installed.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def numpy(self) -> Any:
        """Return a read-only numpy view of the data.

        Raises:
            ImportError: numpy is not installed.
        """
        import numpy as np  # optional: the client must import without it

        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


MAX_OUTLINE: Final = 64
"""Keys in a map that `outline` looks at."""


class Packed(NamedTuple):
    """A payload and the buffers it points into, ready to be sent as frames."""

    payload: bytes
    buffers: list[Bytes]


def pack(value: Any) -> Packed:
    """Turn a value into a payload frame and its buffers.

    Raises:
        InvalidRequest: The value holds something that has no form on the wire, or is too large.
    """
    packer = _Packer()
    try:
        payload = packer.pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidRequest(f"this value cannot travel: {exc}") from exc
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(
            f"the arguments take {len(payload)} bytes, the limit is {MAX_PAYLOAD}; "
            "send large data as arrays, or in several calls"
        )
    for buffer in packer.buffers:
        if memoryview(buffer).nbytes > MAX_FRAME:
            size = memoryview(buffer).nbytes
            raise InvalidRequest(f"an array takes {size} bytes, the limit is {MAX_FRAME}; split it")
    return Packed(payload, packer.buffers)


def unpack(payload: Bytes, buffers: Sequence[Bytes] = ()) -> Any:
    """Turn a payload frame and its buffers back into the value.

    Raises:
        ProtocolError: The bytes are not one complete value within the limits.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {len(payload)} bytes, the limit is {MAX_PAYLOAD}")
    return _Unpacker(buffers).unpack(payload, 0)


class Shape(StrEnum):
    """What a value is, as far as its first byte tells."""

    NOTHING = "nothing"
    TEXT = "text"
    OTHER = "other"


def outline(payload: Bytes) -> dict[str, Shape]:
    """Return the keys of a map and what their values are; nil and "" are nothing.

    No value is built, so that this is quick whatever they hold.

    Raises:
        ProtocolError: It is no map with at most `MAX_OUTLINE` keys, all of them text, none twice.
    """
    found: dict[str, Shape] = {}
    try:
        reader = msgpack.Unpacker(max_buffer_size=max(len(payload), 1))
        reader.feed(payload)
        size = reader.read_map_header()
        if size > MAX_OUTLINE:
            raise ProtocolError(f"a map of {size} arguments, the limit is {MAX_OUTLINE} here")
        for _ in range(size):
            if _shape_at(payload, reader.tell()) is Shape.OTHER:
                raise ProtocolError("the names of arguments are text")
            key = reader.unpack()
            if not isinstance(key, str) or key in found:
                raise ProtocolError("the names of arguments are text, and none is there twice")
            found[key] = _shape_at(payload, reader.tell())
            reader.skip()
    except ProtocolError:
        raise
    except Exception as exc:  # msgpack documents no closed set of errors
        raise ProtocolError(f"payload is not a msgpack map: {exc}") from exc
    return found


def _shape_at(payload: Bytes, position: int) -> Shape:
    first = payload[position]
    if first in (0xA0, 0xC0):
        return Shape.NOTHING
    if first in (0xD9, 0xDA, 0xDB):
        width = 1 << (first - 0xD9)
        is_empty = not any(payload[position + 1 : position + 1 + width])
        return Shape.NOTHING if is_empty else Shape.TEXT
    return Shape.TEXT if 0xA0 < first < 0xC0 else Shape.OTHER


def pack_header(fields: tuple[Any, ...]) -> bytes:
    """Turn the fields of a header into its frame: a plain msgpack array.

    Raises:
        InvalidRequest: A field holds text that is no Unicode, or a number beyond 64 bits.
    """
    try:
        return msgpack.packb(fields)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidRequest(f"this message cannot travel: {exc}") from exc


def unpack_header(frame: Bytes) -> Any:
    """Turn a header frame into its fields; extension types have no place in a header.

    Raises:
        ProtocolError: The bytes are not one msgpack value.
    """
    try:
        return msgpack.unpackb(
            frame,
            ext_hook=_no_ext,
            use_list=True,
            # A header has arrays, text and numbers, and no array with more than its pairs.
            max_array_len=MAX_HEADER // 3,
            max_map_len=0,
            max_bin_len=0,
        )
    except Exception as exc:  # msgpack documents no closed set of errors
        raise ProtocolError(f"header is not msgpack: {exc}") from exc


def _no_ext(code: int, data: bytes) -> Any:
    raise ProtocolError(f"extension type {code} in a header ({len(data)} bytes)")


class _Packer:
    """One pack: walks the value once and collects the buffers on the way."""

    def __init__(self) -> None:
        self.buffers: list[Bytes] = []
        self._depth = 0

    def pack(self, value: Any) -> bytes:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        packed: bytes = msgpack.packb(value, default=self._default, strict_types=True)
        self._depth -= 1
        return packed

    def _default(self, value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912  # one flat table of types
        match value:
            case Symbol():
                return msgpack.ExtType(Ext.SYMBOL, value.encode())
            case Enum():
                return self._again(value.value)
            case bool() | str() | bytes() | dict() | list():  # subclasses travel as their base
                return _base_of(value)
            case int():
                return _pack_int(int(value))
            case float():
                return float(value)
            case Array():
                return self._array(value)
            case Ref():
                body = [value.session, value.worker, value.number, value.type]
                return msgpack.ExtType(Ext.REF, msgpack.packb(body))
            case tuple():
                return msgpack.ExtType(Ext.TUPLE, self.pack(list(value)))
            case frozenset():
                return msgpack.ExtType(Ext.FROZENSET, self.pack(list(value)))
            case set():
                return msgpack.ExtType(Ext.SET, self.pack(list(value)))
            case dt.datetime():
                return msgpack.ExtType(Ext.DATETIME, _iso(value))
            case dt.date():
                return msgpack.ExtType(Ext.DATE, value.isoformat().encode())
            case dt.time():
                return msgpack.ExtType(Ext.TIME, _iso(value))
            case dt.timedelta():
                return msgpack.ExtType(
                    Ext.TIMEDELTA,
                    struct.pack("<qii", value.days, value.seconds, value.microseconds),
                )
            case complex():
                return msgpack.ExtType(Ext.COMPLEX, struct.pack("<dd", value.real, value.imag))
        return self._foreign(value)

    def _foreign(self, value: Any) -> Any:
        """What numpy and torch have is known by what it offers and is called, not by import."""
        cls = type(value)
        if cls.__module__ == "torch" and cls.__name__ == "dtype":
            return str(value).removeprefix("torch.")
        if hasattr(value, "detach") and hasattr(value, "numpy"):
            tensor = value.detach().cpu()
            # numpy lacks bfloat16; float32 has all its numbers.
            value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        if hasattr(value, "dtype") and hasattr(value, "tobytes"):
            if getattr(value, "shape", None) == ():
                return self._again(value.item())
            if value.dtype.byteorder == ">":
                value = value.astype(value.dtype.newbyteorder("<"))
            return self._array(Array(str(value.dtype), tuple(value.shape), value.tobytes()))
        raise TypeError(
            f"{type(value).__module__}.{type(value).__qualname__} has no form on the wire"
        )

    def _again(self, value: Any) -> Any:
        """Return what stands for a value that stood for another; msgpack asks only once."""
        plain = value is None or type(value) in (bool, int, float, str, bytes, list, dict)
        in_range = type(value) is not int or -(2**63) <= value < 2**64
        return value if plain and in_range else self._default(value)

    def _array(self, array: Array) -> Any:
        _check_array(array.dtype, array.shape, memoryview(array.data).nbytes, ValueError)
        if memoryview(array.data).nbytes < BUFFER_THRESHOLD or len(self.buffers) >= MAX_BUFFERS:
            body = [array.dtype, list(array.shape), bytes(array.data)]
            return msgpack.ExtType(Ext.ARRAY, msgpack.packb(body))
        self.buffers.append(array.data)
        where = [array.dtype, list(array.shape), len(self.buffers) - 1]
        return msgpack.ExtType(Ext.BUFFER, msgpack.packb(where))


class _Unpacker:
    """One unpack: holds the buffers and the depth reached."""

    def __init__(self, buffers: Sequence[Bytes]) -> None:
        self._buffers = buffers

    def unpack(self, data: Bytes, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ProtocolError(f"nested more than {MAX_DEPTH} levels deep")

        def ext_hook(code: int, body: bytes) -> Any:
            return self._ext(code, body, depth + 1)

        try:
            # timestamp=3: msgpack's own timestamp, which other hosts send, is read as a datetime.
            return msgpack.unpackb(data, ext_hook=ext_hook, strict_map_key=False, timestamp=3)
        except ProtocolError:
            raise
        except Exception as exc:  # msgpack documents no closed set of errors
            raise ProtocolError(f"payload is not msgpack: {exc}") from exc

    def _ext(self, code: int, body: bytes, depth: int) -> Any:
        try:
            reader = _READERS[Ext(code)]
        except ValueError:
            raise ProtocolError(f"unknown extension type {code}") from None
        try:
            return reader(self, body, depth)
        except ProtocolError:
            raise
        except (ValueError, TypeError, struct.error, OverflowError, LookupError) as exc:
            raise ProtocolError(f"bad body of extension type {Ext(code).name}: {exc}") from exc

    def list_of(self, body: bytes, depth: int) -> list[Any]:
        value = self.unpack(body, depth)
        if not isinstance(value, list):
            raise ProtocolError("the body of a tuple or set must be a msgpack array")
        return value

    def array(self, body: bytes, _depth: int) -> Array:
        dtype, shape, data = _array_body(body)
        if not isinstance(data, bytes):
            raise ProtocolError("the data of an array must be binary")
        _check_array(dtype, shape, len(data), ProtocolError)
        return Array(dtype, shape, data)

    def buffer(self, body: bytes, _depth: int) -> Array:
        dtype, shape, index = _array_body(body)
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise ProtocolError(f"buffer {index!r} of {len(self._buffers)}")
        data = self._buffers[index]
        _check_array(dtype, shape, memoryview(data).nbytes, ProtocolError)
        return Array(dtype, shape, data)


_READERS: Final[dict[Ext, Callable[[_Unpacker, bytes, int], Any]]] = {
    Ext.TUPLE: lambda u, body, depth: tuple(u.list_of(body, depth)),
    Ext.SET: lambda u, body, depth: set(u.list_of(body, depth)),
    Ext.FROZENSET: lambda u, body, depth: frozenset(u.list_of(body, depth)),
    Ext.SYMBOL: lambda _u, body, _d: Symbol(body.decode()),
    Ext.DATETIME: lambda _u, body, _d: dt.datetime.fromisoformat(body.decode()),
    Ext.DATE: lambda _u, body, _d: dt.date.fromisoformat(body.decode()),
    Ext.TIME: lambda _u, body, _d: dt.time.fromisoformat(body.decode()),
    Ext.TIMEDELTA: lambda _u, body, _d: _read_timedelta(body),
    Ext.COMPLEX: lambda _u, body, _d: complex(*struct.unpack("<dd", body)),
    Ext.BIGINT: lambda _u, body, _d: _read_bigint(body),
    Ext.ARRAY: _Unpacker.array,
    Ext.BUFFER: _Unpacker.buffer,
    Ext.REF: lambda _u, body, _d: _read_ref(body),
}


def _base_of(value: Any) -> Any:
    bases: tuple[Any, ...] = (bool, str, bytes, dict, list)
    for base in bases:
        if isinstance(value, base):
            return base(value)
    raise AssertionError("called with one of these bases only")


def _pack_int(value: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    size = value.bit_length() // 8 + 1
    if size > MAX_BIGINT:
        raise ValueError(f"integer of {size} bytes, the limit is {MAX_BIGINT}")
    return msgpack.ExtType(Ext.BIGINT, value.to_bytes(size, "big", signed=True))


def _read_bigint(body: bytes) -> int:
    if not 0 < len(body) <= MAX_BIGINT:
        raise ProtocolError(f"integer of {len(body)} bytes, the limit is {MAX_BIGINT}")
    return int.from_bytes(body, "big", signed=True)


def _iso(value: dt.datetime | dt.time) -> bytes:
    offset = value.utcoffset()
    if offset is not None and offset.microseconds:  # ISO 8601 has no word for it
        raise InvalidRequest(f"an offset from UTC is whole seconds, not {offset}")
    return value.isoformat().encode()


def _read_timedelta(body: bytes) -> dt.timedelta:
    days, seconds, microseconds = struct.unpack("<qii", body)
    return dt.timedelta(days, seconds, microseconds)


def _read_ref(body: bytes) -> Ref:
    fields = msgpack.unpackb(body, ext_hook=_no_ext)
    if not isinstance(fields, list) or len(fields) != 4:
        raise ProtocolError("a ref is [session, worker, number, type]")
    session, worker, number, kind = fields
    if not all(type(name) is str and len(name) <= MAX_NAME for name in (session, worker, kind)):
        raise ProtocolError("session, worker and type of a ref are names")
    if type(number) is not int or not 1 <= number < 2**63:
        raise ProtocolError(f"the number of a ref cannot be {number!r}")
    return Ref(session, worker, number, kind)


def _array_body(body: bytes) -> tuple[Any, tuple[Any, ...], Any]:
    fields = msgpack.unpackb(body, ext_hook=_no_ext)
    if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[1], list):
        raise ProtocolError("an array is [dtype, shape, data]")
    return fields[0], tuple(fields[1]), fields[2]


def _check_array(dtype: Any, shape: tuple[Any, ...], size: int, error: type[Exception]) -> None:
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise error(f"array type {dtype!r} has no form on the wire; known: {', '.join(ITEM_SIZES)}")
    if len(shape) > MAX_DEPTH or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise error(f"bad array shape {shape!r}")
    expected = math.prod(shape) * ITEM_SIZES[dtype]
    if expected != size:
        raise error(f"{dtype} array of shape {shape} takes {expected} bytes, got {size}")
