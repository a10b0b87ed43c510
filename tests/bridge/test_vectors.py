"""The conformance vectors, replayed as any client has to: read from the files, never from code."""

import datetime as dt
import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllmport.bridge.codec import Array, Packed, Ref, Symbol, pack, unpack
from vllmport.bridge.errors import ERRORS, ProtocolError, VllmportError
from vllmport.bridge.messages import (
    KINDS,
    Bye,
    Call,
    Cancel,
    End,
    Error,
    Items,
    Message,
    Result,
    decode,
    decode_header,
    encode,
    error_from,
)
from vllmport.bridge.packets import PacketReader, to_packet
from wire_strategies import same

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "bridge" / "vectors"

Vector = dict[str, Any]

CLASSES: dict[str, type[Message]] = {kind.name: cls for cls, kind in KINDS.items()}


def vectors(file: str, group: str) -> pytest.MarkDecorator:
    """Return the vectors of one group as parameters of a test."""
    listed = json.loads((VECTORS / f"{file}.json").read_text(encoding="utf-8"))[group]
    return pytest.mark.parametrize(
        "vector", listed, ids=lambda v: str(v.get("name", v.get("code")))
    )


def raw(frames: list[str]) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in frames]


def real(text: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(text))[0])


MEANINGS: dict[str, Callable[..., Any]] = {
    "nil": lambda: None,
    "bool": bool,
    "int": int,
    "float": real,
    "text": str,
    "binary": bytes.fromhex,
    "symbol": Symbol,
    "array": lambda items: [value_of(item) for item in items],
    "tuple": lambda items: tuple(value_of(item) for item in items),
    "set": lambda items: {value_of(item) for item in items},
    "frozenset": lambda items: frozenset(value_of(item) for item in items),
    "map": lambda pairs: {value_of(key): value_of(item) for key, item in pairs},
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "timedelta": lambda parts: dt.timedelta(*parts),
    "complex": lambda parts: complex(*map(real, parts)),
    "ref": lambda parts: Ref(parts[0], parts[1], int(parts[2]), parts[3]),
    "ndarray": lambda dtype, shape, data: Array(dtype, tuple(shape), bytes.fromhex(data)),
}


def value_of(tagged: list[Any]) -> Any:
    return MEANINGS[tagged[0]](*tagged[1:])


def message_of(vector: Vector) -> Message:
    return CLASSES[vector["kind"]](**vector["fields"])


def generator() -> ModuleType:
    path = ROOT / "scripts" / "make_vectors.py"
    spec = importlib.util.spec_from_file_location("make_vectors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_makes_of_the_code_today() -> None:
    script = generator()
    assert {path.stem for path in VECTORS.glob("*.json")} == set(script.FILES)
    for name, make in script.FILES.items():
        text = (VECTORS / f"{name}.json").read_text(encoding="utf-8")
        assert text == script.render(make()), f"run scripts/make_vectors.py: {name} differs"


# Values.


@vectors("values", "same")
def test_a_value_has_these_bytes_and_these_bytes_this_value(vector: Vector) -> None:
    value = value_of(vector["value"])
    packed = Packed(bytes.fromhex(vector["payload"]), list(raw(vector.get("buffers", []))))
    assert pack(value) == packed
    assert same(unpack(*packed), value)


@vectors("values", "read")
def test_other_forms_of_a_value_are_read_as_well(vector: Vector) -> None:
    assert same(unpack(bytes.fromhex(vector["payload"])), value_of(vector["value"]))


@vectors("values", "refused")
def test_what_is_no_value_is_refused(vector: Vector) -> None:
    with pytest.raises(ProtocolError):
        unpack(bytes.fromhex(vector["payload"]))


# Messages.


@vectors("messages", "same")
def test_a_message_has_these_frames_and_these_frames_this_message(vector: Vector) -> None:
    frames = raw(vector["frames"])
    message, value = message_of(vector), value_of(vector["payload"])
    assert encode(message, None if value is None else pack(value)) == frames
    decoded, payload, buffers = decode(frames)
    assert decoded == message
    assert same(unpack(payload, buffers), value)


@vectors("messages", "read")
def test_shorter_and_longer_headers_are_read_as_well(vector: Vector) -> None:
    assert decode_header(bytes.fromhex(vector["header"])) == message_of(vector)


@vectors("messages", "refused")
def test_what_is_no_header_is_refused(vector: Vector) -> None:
    with pytest.raises(ProtocolError):
        decode_header(bytes.fromhex(vector["header"]))


def test_every_kind_has_a_vector() -> None:
    listed = json.loads((VECTORS / "messages.json").read_text(encoding="utf-8"))["same"]
    assert {vector["kind"] for vector in listed} == set(CLASSES)


# Errors.


@vectors("errors", "codes")
def test_a_code_names_its_class(vector: Vector) -> None:
    cls = ERRORS[vector["code"]]
    assert (cls.__name__, cls.retryable) == (vector["class"], vector["retryable"])


@vectors("errors", "messages")
def test_an_error_arrives_with_all_its_parts(vector: Vector) -> None:
    message, payload, buffers = decode(raw(vector["frames"]))
    assert isinstance(message, Error)
    error = error_from(message, unpack(payload, buffers))
    assert type(error) is ERRORS.get(vector["code"], VllmportError)
    parts = {name: getattr(error, name) for name in ("code", "message", "retryable", "phase")}
    assert parts.items() <= vector["fields"].items()
    assert error.details == value_of(vector["payload"])


# Sequences.


class Player:
    """Takes a conversation as the rules of the protocol tell a client to."""

    def __init__(self) -> None:
        self.calls: dict[int, dict[str, Any]] = {}

    def take(self, message: Message, value: Any) -> None:  # noqa: C901  # one flat table
        match message:
            case Call(call_id):
                self.calls[call_id] = {"items": []}
            case Cancel(call_id):
                self.calls[call_id]["items"] = None  # the caller takes no more
            case Result(call_id):
                self._end(call_id, "result", value)
            case Error(call_id, code):
                self._end(call_id, "error", code)
            case Bye():
                for call_id in self.calls:
                    self._end(call_id, "error", "pool_lost")
            case Items(entries) | End(entries):
                for (call_id, _), item in zip(entries, value, strict=True):
                    self._take_entry(message, call_id, item)

    def _take_entry(self, message: Message, call_id: int, value: Any) -> None:
        call = self.calls.get(call_id, {})
        if isinstance(message, End):
            self._end(call_id, "result", value)
        elif call.get("items") is not None:
            call["items"].append(value)

    def _end(self, call_id: int, how: str, what: Any) -> None:
        if call_id in self.calls and not self.calls[call_id].keys() & {"result", "error"}:
            self.calls[call_id][how] = what


@vectors("sequences", "sequences")
def test_a_conversation_ends_its_calls_as_it_says(vector: Vector) -> None:
    player = Player()
    for said in vector["messages"]:
        message, payload, buffers = decode(raw(said["frames"]))
        assert message == message_of(said)
        player.take(message, unpack(payload, buffers))
    assert player.calls.keys() == {call["id"] for call in vector["calls"]}
    for expected in vector["calls"]:
        call = player.calls[expected["id"]]
        assert call.get("error") == expected.get("error")
        if "result" in expected:
            assert call["result"] == value_of(expected["result"])
        if call["items"] is not None:
            assert call["items"] == [value_of(item) for item in expected["items"]]


# Packets.


@vectors("packets", "same")
def test_a_packet_holds_these_frames(vector: Vector) -> None:
    frames, packet = raw(vector["frames"]), bytes.fromhex(vector["packet"])
    assert to_packet(frames) == packet
    reader = PacketReader()
    assert list(reader.feed(packet + packet)) == [frames, frames]
    bit_by_bit = PacketReader()
    assert [got for byte in packet for got in bit_by_bit.feed(bytes([byte]))] == [frames]
    assert bit_by_bit.pending == 0


@vectors("packets", "refused")
def test_what_is_no_packet_is_refused(vector: Vector) -> None:
    with pytest.raises(ProtocolError):
        list(PacketReader().feed(bytes.fromhex(vector["bytes"])))
