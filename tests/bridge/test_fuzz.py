"""Any bytes are a message or a ProtocolError, and cost no more memory than their size explains.

The bytes are valid frames that were damaged. They are read in a child process with little address
space, so that a frame that asks for too much is seen, and hurts nobody.
"""

import contextlib
import json
import math
import os
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from vllmport.bridge.codec import Array, Ext, Packed, Symbol, pack, unpack
from vllmport.bridge.errors import ProtocolError, error_from_code, shown
from vllmport.bridge.limits import MAX_DEPTH, MAX_HEADER
from vllmport.bridge.messages import (
    Call,
    Credit,
    End,
    Error,
    Hello,
    Items,
    Message,
    Ready,
    decode,
    decode_header,
    encode,
    error_from,
)

SECONDS: Final = float(os.environ.get("VLLMPORT_FUZZ_SECONDS", "2"))
"""How long each target is tried; raise it to search for longer."""

ADDRESS_SPACE: Final = 1 << 30
SMALL_GROWTH: Final = 128 << 20
AMPLIFICATION: Final = 100
"""Bytes of objects for each byte of payload: an empty map is one byte, and 64 with its slot."""


# What is damaged.


def _values(rng: random.Random) -> Any:
    """Make a value with every kind of thing in it."""
    tokens = [rng.randrange(200_000) for _ in range(rng.randrange(30))]
    return {
        "prompt": "héllo " * rng.randrange(5),
        "token_ids": tokens,
        "nested": [[(1, {2, 3}), frozenset({("a", 4)})], {"k": {1: None, (2,): 0.5}}],
        "symbol": Symbol("ok"),
        "numbers": [rng.getrandbits(200), -(2**63), 2**64 - 1, 1e300, math.inf, complex(1, 2)],
        "array": Array("int16", (2, 3), rng.randbytes(12)),
        "buffer": Array("float32", (32, 32), bytes(4096)),
        "bytes": rng.randbytes(rng.randrange(40)),
        rng.choice(["a", 1, b"b", (1, 2)]): rng.choice([True, None, "x" * 300]),
    }


def _header(rng: random.Random) -> bytes:
    messages: list[Message] = [
        Hello([1, 2], "0.1.0", 42, "ruby"),
        Ready(256, "echo"),
        Call(rng.randrange(1, 2**40), "tiny", "generate", 30_000, 256, -1, "r-1"),
        Credit(7, 128),
        Items([[n, rng.randrange(1000)] for n in range(rng.randrange(40))], 3),
        End([[7, 1], [9, 2]], 3, "tiny/0"),
        Error(7, "overloaded", "füll", retryable=True, phase="queue", worker="tiny/0"),
    ]
    return bytes(encode(rng.choice(messages))[0])


# How it is damaged.


def _flip(rng: random.Random, data: bytearray, _other: bytes) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray, _other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(rng: random.Random, data: bytearray, _other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 9))


def _delete(rng: random.Random, data: bytearray, _other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _repeat(rng: random.Random, data: bytearray, _other: bytes) -> None:
    """Nest or repeat a piece many times."""
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randrange(1, 7)]
    data[at:at] = piece * rng.choice([2, 64, 600, 2000])


def _lie(rng: random.Random, data: bytearray, _other: bytes) -> None:
    """Put a header that claims a length where none was, or change one that is there."""
    code = rng.choice(b"\xc4\xc5\xc6\xc7\xc8\xc9\xd9\xda\xdb\xdc\xdd\xde\xdf\x8f\x9f\xbf")
    claim = rng.choice([0, 1, 255, 65535, 2**20, len(data), 2**31 - 1, 2**32 - 1])
    at = rng.randrange(len(data))
    lie = bytes([code]) + struct.pack(">I", claim)[-rng.choice([1, 2, 4]) :]
    if rng.random() < 0.3:
        lie *= rng.choice([10, 500, 1000])
    data[at : at + len(lie) * rng.randrange(2)] = lie


def _extend(rng: random.Random, data: bytearray, _other: bytes) -> None:
    """Make an extension type of a piece, with any code."""
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice([0, 1, 2, 8, 40, 1000])]
    code = rng.choice([*Ext, -1, 0, 13, 127, -128])
    data[at : at + len(piece)] = struct.pack(">BIb", 0xC9, len(piece), code) + piece


_DAMAGES: Final[list[Callable[[random.Random, bytearray, bytes], None]]] = [
    _flip,
    _truncate,
    _insert,
    _delete,
    _splice,
    _repeat,
    _lie,
    _extend,
]


def _damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Damage a frame once, sometimes again; now and then replace it by noise."""
    if rng.random() < 0.03:
        return rng.randbytes(rng.randrange(64))
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if damaged:
            rng.choice(_DAMAGES)(rng, damaged, other)
    return bytes(damaged[: 1 << 16])


# Who has to bear it.


def _try_header(rng: random.Random) -> bytes:
    frame = _damaged(rng, _header(rng), _header(rng))
    decode([frame, b"\xc0"])
    return frame


def _try_payload(rng: random.Random) -> bytes:
    packed, other = pack(_values(rng)), pack(_values(rng))
    payload = _damaged(rng, packed.payload, other.payload)
    buffers = [bytes(buffer)[: rng.choice([4096, 4096, 7])] for buffer in packed.buffers]
    value = unpack(payload, buffers)
    # What was read can be used: quoted in a message, and put into an error.
    shown(value)
    error_from(Error(1, "overloaded", "full"), value)
    return payload


def _fuzz(attempt: Callable[[random.Random], bytes], seed: int, seconds: float) -> dict[str, Any]:
    """Try damaged frames until the time is over; count, and tell of the first surprise."""
    counts = {"accepted": 0, "refused": 0}
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until and number < 200_000:
        number += 1
        try:
            attempt(random.Random(f"{seed}/{number}"))
            counts["accepted"] += 1
        except ProtocolError:
            counts["refused"] += 1
        except BaseException as exc:  # noqa: BLE001  # the surprise this is about
            return {
                **counts,
                "surprise": f"seed {seed}/{number}: {type(exc).__name__}: {exc}"[:500],
            }
    return counts


def _tuples(levels: int, inner: bytes) -> bytes:
    for _ in range(levels):
        inner = b"\x91" + struct.pack(">BIb", 0xC9, len(inner), Ext.TUPLE) + inner
    return inner


def _hostile(name: str) -> bytes:
    """Make a payload that is large once it is read."""
    size = 1 << 20
    binary = struct.pack(">BI", 0xC6, size) + bytes(size)
    return {
        "empty maps": b"\xdd" + struct.pack(">I", size) + b"\x80" * size,
        "empty sets": b"\xdd" + struct.pack(">I", size // 3) + b"\xd4\x02\x90" * (size // 3),
        "symbols": b"\xdd" + struct.pack(">I", size // 3) + b"\xd4\x04a" * (size // 3),
        "tuples in tuples": _tuples(MAX_DEPTH - 1, b"\x91" + binary),
        "arrays that claim much": (b"\xdd" + struct.pack(">I", size)) * 1000 + bytes(size - 5000),
        "arrays in arrays": b"\x91" * 1000 + b"\xdd" + struct.pack(">I", size) + b"\x90" * size,
    }[name]


def _read_hostile(name: str) -> dict[str, Any]:
    payload = _hostile(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ProtocolError):
        unpack(payload)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"size": len(payload), "grown": (after - before) * 1024}


def _main(target: str, name: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    match target:
        case "header":
            outcome = _fuzz(_try_header, int(name), SECONDS)
        case "payload":
            outcome = _fuzz(_try_payload, int(name), SECONDS)
        case _:
            outcome = _read_hostile(name)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    sys.stdout.write(json.dumps({"grown": grown, **outcome}))


def _in_child(target: str, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, target, name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS + 60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert isinstance(outcome, dict)
    return outcome


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("target", ["header", "payload"])
def test_damaged_frames_are_read_or_refused_and_nothing_else(target: str, seed: str) -> None:
    outcome = _in_child(target, seed)
    assert "surprise" not in outcome, outcome["surprise"]
    assert outcome["accepted"] > 50, "too much damage: nothing gets past the first check"
    assert outcome["refused"] > 500
    assert outcome["grown"] < SMALL_GROWTH


@pytest.mark.parametrize(
    "name",
    [
        "empty maps",
        "empty sets",
        "symbols",
        "tuples in tuples",
        "arrays that claim much",
        "arrays in arrays",
    ],
)
def test_memory_stays_in_proportion_to_the_payload(name: str) -> None:
    outcome = _in_child("hostile", name)
    assert outcome["grown"] < AMPLIFICATION * outcome["size"]


def test_a_header_of_lies_is_refused_quickly() -> None:
    lies = (b"\xdd" + struct.pack(">I", MAX_HEADER)) * 1000
    started = time.monotonic()
    with pytest.raises(ProtocolError):
        decode_header(lies.ljust(MAX_HEADER, b"\xc0"))
    assert time.monotonic() - started < 2


def test_details_of_any_shape_make_an_error_that_can_be_printed() -> None:
    """The payload of an ERROR is the peer's, whatever is in it."""
    rng = random.Random(7)
    for _ in range(200):
        details = unpack(*pack(_values(rng)))
        error = error_from_code("engine_error", "text", details=details)
        assert repr(error)
        assert str(error)
        assert isinstance(pack(error.details), Packed)


if __name__ == "__main__":
    _main(*sys.argv[1:])
