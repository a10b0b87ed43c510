"""Write `bridge/vectors/*.json`: what bytes mean, for clients in any language to be checked by.

`python scripts/make_vectors.py` writes them; a test fails when what is there differs from what this
would write, and another one replays them. How to read them says `bridge/PROTOCOL.md`.
"""

import datetime as dt
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllmport.bridge.codec import Array, Bytes, Ref, Symbol, pack
from vllmport.bridge.errors import ERRORS, VllmportError
from vllmport.bridge.limits import BUFFER_THRESHOLD, MAX_FRAME, MAX_PACKET
from vllmport.bridge.messages import (
    KINDS,
    Bundle,
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Forget,
    Hello,
    Holds,
    Items,
    Load,
    Message,
    Ping,
    Pong,
    Progress,
    Ready,
    Register,
    Result,
    Welcome,
    encode,
    error_message,
)
from vllmport.bridge.packets import to_packet

FOLDER = Path(__file__).parents[1] / "bridge" / "vectors"

UTC = dt.UTC
PLUS_TWO = dt.timezone(dt.timedelta(hours=2))

VALUES: dict[str, Any] = {
    "nil": None,
    "true": True,
    "false": False,
    "zero": 0,
    "largest fixint": 127,
    "one byte": 128,
    "two bytes": 65535,
    "four bytes": 2**32 - 1,
    "largest i64": 2**63 - 1,
    "largest u64": 2**64 - 1,
    "negative fixint": -32,
    "negative byte": -33,
    "negative two bytes": -129,
    "negative four bytes": -32769,
    "smallest i64": -(2**63),
    "beyond 64 bits": 2**64,
    "far beyond 64 bits": 3**100,
    "negative beyond 64 bits": -(2**63) - 1,
    "float": 0.5,
    "whole float": 1.0,
    "negative zero": -0.0,
    "infinity": float("inf"),
    "negative infinity": float("-inf"),
    "not a number": float("nan"),
    "empty text": "",
    "text": "Hello",
    "text beyond ASCII": "Zürich 東京 🙂",
    "text of 31 bytes": "x" * 31,
    "text of 32 bytes": "x" * 32,
    "text of 256 bytes": "x" * 256,
    "empty binary": b"",
    "binary": b"\x00\xff",
    "empty array": [],
    "array": [1, "a", None],
    "array of 16": list(range(16)),
    "nested array": [[[1]], []],
    "empty map": {},
    "map": {"a": 1, "b": [True]},
    "map of 16": {f"key {n:02}": n for n in range(16)},
    "map with whole numbers as keys": {7: "seven"},
    "map with a tuple as key": {(1, 2): 3},
    "map that looks like a tag": {"__type__": "tuple", "elements": [1]},
    "empty tuple": (),
    "tuple": (1, "a"),
    "nested tuple": ((1,), [(2,)]),
    "set": {1, 2, 3},
    "frozenset": frozenset({2}),
    "symbol": Symbol("ok"),
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5),  # naive on purpose
    "datetime with a fraction": dt.datetime(2026, 1, 2, 3, 4, 5, 60),
    "datetime in UTC": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "datetime with an offset": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=PLUS_TWO),
    "date": dt.date(2026, 1, 2),
    "time": dt.time(3, 4, 5),
    "time with a fraction": dt.time(3, 4, 5, 600000),
    "timedelta": dt.timedelta(days=1, seconds=2, microseconds=3),
    "negative timedelta": dt.timedelta(microseconds=-1),
    "complex": 1 - 2j,
    "array of int16": Array("int16", (2,), struct.pack("<2h", 1, 2)),
    "array of float32": Array("float32", (2, 1), struct.pack("<2f", 0.5, -1)),
    "array without elements": Array("uint8", (0,), b""),
    "array as a buffer": Array("uint8", (BUFFER_THRESHOLD,), bytes(BUFFER_THRESHOLD)),
    "two buffers": [
        Array("uint8", (BUFFER_THRESHOLD,), b"\1" * BUFFER_THRESHOLD),
        Array("int64", (BUFFER_THRESHOLD // 8,), b"\2" * BUFFER_THRESHOLD),
    ],
    "ref": Ref("5f0c", "tiny/0", 7, "vllm.sampling_params.SamplingParams"),
    "refs in a map": {"both": [Ref("s", "m/0", 2**40, "T"), Ref("s", "m/0", 1, "")]},
    "arguments of generate": {
        "prompt": "Hi",
        "sampling_params": {"max_tokens": 2, "temperature": 0.5},
    },
}
"""Name → value. Keys of maps are in order, so that every packer makes the same bytes."""

MOMENT = 0x695734A5
"""Seconds since 1970."""


def ext(code: int, body: bytes) -> bytes:
    """Return an extension value in its longest form."""
    return struct.pack(">BIb", 0xC9, len(body), code) + body


def timestamp(body: bytes) -> bytes:
    """Return a timestamp of msgpack's own kind."""
    head = {4: b"\xd6", 8: b"\xd7"}.get(len(body), b"\xc7" + bytes([len(body)]))
    return head + b"\xff" + body


ALSO_READ: dict[str, tuple[bytes, Any]] = {
    "integer in a longer form": (b"\xcd\x00\x01", 1),
    "signed where unsigned would do": (b"\xd3" + struct.pack(">q", 2**56), 2**56),
    "float32": (b"\xca" + struct.pack(">f", 0.5), 0.5),
    "text in a longer form": (b"\xd9\x01a", "a"),
    "array in a longer form": (b"\xdc\x00\x01\x01", [1]),
    "map in a longer form": (b"\xde\x00\x01\xa1a\x01", {"a": 1}),
    "tuple in a longer form": (ext(1, b"\x91\x01"), (1,)),
    "integer as BIGINT though it fits": (ext(10, b"\x01"), 1),
    "timestamp of 32 bits": (
        timestamp(struct.pack(">I", MOMENT)),
        dt.datetime.fromtimestamp(MOMENT, UTC),
    ),
    "timestamp of 64 bits": (
        timestamp(struct.pack(">Q", (500_000_000 << 34) | MOMENT)),
        dt.datetime.fromtimestamp(MOMENT + 0.5, UTC),
    ),
    "timestamp of 96 bits": (
        timestamp(struct.pack(">Iq", 0, MOMENT)),
        dt.datetime.fromtimestamp(MOMENT, UTC),
    ),
}
"""Forms that no vector above has; a reader must take them all the same."""

REFUSED_VALUES: dict[str, bytes] = {
    "nothing": b"",
    "the byte that msgpack never uses": b"\xc1",
    "half an array": b"\x92\x01",
    "two values": b"\x01\x01",
    "text that is no UTF-8": b"\xa2\xff\xff",
    "an array longer than the payload": b"\xdd\xff\xff\xff\xff",
    "unknown extension type": ext(14, b""),
    "unknown negative extension type": ext(-2, b""),
    "tuple whose body is a map": ext(1, b"\x80"),
    "tuple with two bodies": ext(1, b"\x90\x90"),
    "symbol that is no UTF-8": ext(4, b"\xff"),
    "datetime that is none": ext(5, b"yesterday"),
    "date that is none": ext(6, b"2026-02-30"),
    "time that is none": ext(7, b"25:00"),
    "timedelta that is too short": ext(8, bytes(15)),
    "complex number that is too short": ext(9, bytes(15)),
    "integer of no bytes": ext(10, b""),
    "array of an unknown type": ext(11, pack(["float7", [1], b"a"]).payload),
    "array with too few bytes": ext(11, pack(["int8", [2], b"a"]).payload),
    "array whose data is text": ext(11, pack(["int8", [1], "a"]).payload),
    "ref of three parts": ext(13, pack(["s", "m/0", 1]).payload),
    "ref whose number is 0": ext(13, pack(["s", "m/0", 0, "T"]).payload),
    "ref whose number is text": ext(13, pack(["s", "m/0", "1", "T"]).payload),
    "ref whose session is a number": ext(13, pack([1, "m/0", 1, "T"]).payload),
    "buffer that is not there": ext(12, pack(["int8", [2], 0]).payload),
}

MESSAGES: dict[str, tuple[Message, Any]] = {
    "hello": (Hello([1], "0.1.0", 4242, "ruby"), None),
    "welcome": (
        Welcome(1, "0.1.0", "5f0c", 99),
        {"max_buffers": 64, "max_frame": 67108864, "max_header": 262144, "max_payload": 16777216},
    ),
    "register": (Register("nonce", 1, "0.1.0", 5, 5), None),
    "load": (
        Load("tiny/0"),
        {"model": "/m", "engine": "vllm", "v1_multiprocessing": "off", "engine_args": {}},
    ),
    "progress": (Progress("loading", "weights"), None),
    "ready": (Ready(512, "off"), {"max_model_len": 256}),
    "call for a result": (Call(1, "tiny", "generate", 30_000), {"prompt": "Hi"}),
    "call for a stream": (
        Call(7, "tiny", "generate", None, 256, -1, "r-1"),
        {"prompt": [1, 2], "sampling_params": None},
    ),
    "call with an array": (
        Call(8, "tiny", "generate", 0),
        {"prompt": Array("uint8", (BUFFER_THRESHOLD,), bytes(BUFFER_THRESHOLD))},
    ),
    "call to the pool": (Call(2, "", "status", 60_000), {}),
    "call to a worker": (Call(7, "tiny", "chat", 5, 0, 3, "r", 4, 2), {"messages": []}),
    "call of a session": (
        Call(9, "tiny", "ffi.call", 1000, session="s", affinity="strict_queue", ttl_ms=60_000),
        {"args": [], "kwargs": {"max_tokens": 8}, "module": "vllm", "name": "SamplingParams"},
    ),
    "holds": (Holds("5f0c", 3), None),
    "forget": (Forget("5f0c"), None),
    "bundle": (Bundle([4, 1, 6, 1]), bytes.fromhex("930b0700 c0 940c07cc8000 c0")),
    "cancel": (Cancel(7), None),
    "credit": (Credit(7, 128), None),
    "result": (Result(1, 3, "tiny/0", 1), {"text": "Paris"}),
    "result of nothing": (Result(1), None),
    "items": (Items([[7, 0], [9, 3]], 1), [{"outputs": []}, {"outputs": []}]),
    "end": (End([[7, 1], [9, 2]], 1, "tiny/0"), [{"finished": True}, None]),
    "error": (
        Error(7, "overloaded", "queue full", retryable=True, phase="queue"),
        {"queued": 4096, "retry_after": 0.5},
    ),
    "ping": (Ping(-1), None),
    "pong": (Pong(-1), None),
    "pong of a worker": (Pong(5), {"steps": 3, "unfinished": 0}),
    "bye": (Bye("closed"), None),
    "largest numbers": (Credit(2**63 - 1, -(2**63)), None),
}

ALSO_READ_HEADERS: dict[str, tuple[bytes, Message]] = {
    "defaults left out": (pack([1, [1], "0.1.0"]).payload, Hello([1], "0.1.0")),
    "fields of a newer peer": (pack([12, 7, 128, 0, True, None]).payload, Credit(7, 128)),
}

REFUSED_HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "no array": pack({"kind": 1}).payload,
    "an empty array": pack([]).payload,
    "an unknown kind": pack([99]).payload,
    "a kind that is text": pack(["HELLO", [1], "0.1.0"]).payload,
    "a kind that is a boolean": pack([True, [1], "0.1.0"]).payload,
    "a field without default left out": pack([12, 7]).payload,
    "text for a number": pack([12, "7", 1]).payload,
    "a boolean for a number": pack([12, True, 1]).payload,
    "a float for a number": pack([12, 7.0, 1]).payload,
    "a number of 64 bits without sign": pack([12, 2**63, 1]).payload,
    "a call without id": pack([10, 0, "m", "v", None]).payload,
    "a negative time to live": pack([10, 1, "m", "v", 1, 0, 0, "", 0, 0, "", "", "", -1]).payload,
    "a negative budget": pack([10, 1, "m", "v", -1]).payload,
    "an entry of three numbers": pack([14, [[1, 0, 0]]]).payload,
    "an extension type": pack([22, (1,)]).payload,
}


def _delta(text: str, token: int, finish_reason: str | None = None) -> dict[str, Any]:
    output = {
        "index": 0,
        "text": text,
        "token_ids": [token],
        "cumulative_logprob": None,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
    }
    return {"outputs": [output]}


HANDSHAKE: list[tuple[str, Message, Any]] = [
    ("client", *MESSAGES["hello"]),
    ("supervisor", *MESSAGES["welcome"]),
]

LOST = Error(2, "worker_lost", "killed", retryable=True, phase="decode", worker="m/0", attempt=1)

SEQUENCES: dict[str, list[tuple[str, Message, Any]]] = {
    "a result": [
        *HANDSHAKE,
        ("client", Call(1, "m", "tokenize", 30_000), {"prompt": "Hi"}),
        ("supervisor", Result(1, 1, "m/0", 1), {"count": 1, "token_ids": [7]}),
    ],
    "a result that comes as an entry of an END": [
        *HANDSHAKE,
        ("client", Call(1, "m", "generate", 30_000), {"prompt": "Hi"}),
        ("client", Call(2, "m", "generate", 30_000), {"prompt": "Yo"}),
        ("supervisor", End([[2, 1], [1, 1]], 1, "m/0"), ["second", "first"]),
    ],
    "two streams in one batch, one of them with credit granted": [
        *HANDSHAKE,
        ("client", Call(1, "m", "generate", 30_000, 2), {"prompt": "Hi"}),
        ("client", Call(2, "m", "generate", 30_000, 256), {"prompt": "Yo"}),
        ("supervisor", Items([[1, 0], [2, 0]], 1), [_delta("a", 1), _delta("b", 2)]),
        ("client", Credit(1, 1), None),
        ("supervisor", Items([[1, 1]], 1), [_delta("c", 3, "stop")]),
        ("supervisor", End([[1, 1]], 1, "m/0"), [{"finished": True}]),
        ("supervisor", Items([[2, 1]], 1), [_delta("d", 4, "length")]),
        ("supervisor", End([[2, 1]], 1, "m/0"), [{"finished": True}]),
    ],
    "a cancel whose call had items on their way": [
        *HANDSHAKE,
        ("client", Call(1, "m", "generate", 30_000, 256), {"prompt": "Hi"}),
        ("supervisor", Items([[1, 0]], 1), [_delta("a", 1)]),
        ("client", Cancel(1), None),
        ("supervisor", Items([[1, 1]], 1), [_delta("b", 2)]),
        (
            "supervisor",
            Error(1, "cancelled", "given up", phase="decode", worker="m/0", attempt=1),
            {"partial": None, "tokens": 2},
        ),
    ],
    "a deadline": [
        *HANDSHAKE,
        ("client", Call(1, "m", "generate", 100), {"prompt": "Hi"}),
        (
            "supervisor",
            Error(1, "deadline_exceeded", "too late", phase="decode", worker="m/0", attempt=1),
            {"partial": None, "tokens": 5},
        ),
    ],
    "a worker that dies, and what comes of calls that nobody knows": [
        *HANDSHAKE,
        ("client", Call(2, "m", "generate", 30_000, 256), {"prompt": "Hi"}),
        ("supervisor", Items([[2, 0], [1, 5]], 1), [_delta("a", 1), _delta("z", 9)]),
        ("supervisor", LOST, {"exit": "was killed by SIGKILL"}),
        ("supervisor", End([[2, 1], [1, 1]], 1), [None, None]),
        ("supervisor", Pong(3), None),
    ],
    "the supervisor leaves": [
        *HANDSHAKE,
        ("client", Call(1, "m", "generate", 30_000), {"prompt": "Hi"}),
        ("supervisor", Bye("stopping"), None),
    ],
    "the connection is refused": [
        ("client", *MESSAGES["hello"]),
        ("supervisor", Error(0, "protocol_error", "no common version"), {}),
    ],
}

OUTCOMES: dict[str, dict[int, Any]] = {
    "a result": {1: ("result", {"count": 1, "token_ids": [7]})},
    "a result that comes as an entry of an END": {
        1: ("result", "first"),
        2: ("result", "second"),
    },
    "two streams in one batch, one of them with credit granted": {
        1: ("result", {"finished": True}, [_delta("a", 1), _delta("c", 3, "stop")]),
        2: ("result", {"finished": True}, [_delta("b", 2), _delta("d", 4, "length")]),
    },
    "a cancel whose call had items on their way": {1: ("error", "cancelled")},
    "a deadline": {1: ("error", "deadline_exceeded")},
    "a worker that dies, and what comes of calls that nobody knows": {
        2: ("error", "worker_lost", [_delta("a", 1)]),
    },
    "the supervisor leaves": {1: ("error", "pool_lost")},
    "the connection is refused": {},
}
"""Sequence → call id → how it ended: a result or the code of an error, and its items."""


def tagged(value: Any) -> list[Any]:  # noqa: C901, PLR0911, PLR0912  # one flat table of types
    """Describe a value in a way that no JSON reader can blur: `[type, …]`."""
    match value:
        case None:
            return ["nil"]
        case bool():
            return ["bool", value]
        case int():
            return ["int", str(value)]
        case float():
            return ["float", struct.pack(">d", value).hex()]
        case Symbol():
            return ["symbol", str(value)]
        case str():
            return ["text", value]
        case bytes():
            return ["binary", value.hex()]
        case Array():
            return ["ndarray", value.dtype, list(value.shape), bytes(value.data).hex()]
        case list():
            return ["array", [tagged(item) for item in value]]
        case tuple():
            return ["tuple", [tagged(item) for item in value]]
        case frozenset():
            return ["frozenset", [tagged(item) for item in value]]
        case set():
            return ["set", [tagged(item) for item in value]]
        case dict():
            return ["map", [[tagged(key), tagged(item)] for key, item in value.items()]]
        case dt.datetime():
            return ["datetime", value.isoformat()]
        case dt.date():
            return ["date", value.isoformat()]
        case dt.time():
            return ["time", value.isoformat()]
        case dt.timedelta():
            return ["timedelta", [value.days, value.seconds, value.microseconds]]
        case Ref():
            return ["ref", [value.session, value.worker, str(value.number), value.type]]
        case complex():
            return ["complex", [tagged(value.real)[1], tagged(value.imag)[1]]]
    raise TypeError(type(value).__name__)


def fields_of(message: Message) -> dict[str, Any]:
    """Describe a header: its kind and all its fields by name."""
    return {"kind": KINDS[type(message)].name, "fields": message._asdict()}


def hex_of(frames: Iterable[Any]) -> list[str]:
    """Return frames as hexadecimal text."""
    return [bytes(frame).hex() for frame in frames]


def message_vector(message: Message, value: Any) -> dict[str, Any]:
    """Describe a message: header, payload and bytes."""
    frames = encode(message, None if value is None else pack(value))
    return {**fields_of(message), "payload": tagged(value), "frames": hex_of(frames)}


def values() -> dict[str, Any]:
    """Make the vectors of section 4."""
    same = []
    for name, value in VALUES.items():
        payload, buffers = pack(value)
        vector = {"name": name, "value": tagged(value), "payload": payload.hex()}
        same.append(vector | ({"buffers": hex_of(buffers)} if buffers else {}))
    return {
        "same": same,
        "read": [
            {"name": name, "value": tagged(value), "payload": payload.hex()}
            for name, (payload, value) in ALSO_READ.items()
        ],
        "refused": [
            {"name": name, "payload": payload.hex()} for name, payload in REFUSED_VALUES.items()
        ],
    }


def messages() -> dict[str, Any]:
    """Make the vectors of section 2."""
    return {
        "same": [
            {"name": name, **message_vector(message, value)}
            for name, (message, value) in MESSAGES.items()
        ],
        "read": [
            {"name": name, **fields_of(message), "header": header.hex()}
            for name, (header, message) in ALSO_READ_HEADERS.items()
        ],
        "refused": [
            {"name": name, "header": header.hex()} for name, header in REFUSED_HEADERS.items()
        ],
    }


def sequences() -> dict[str, Any]:
    """Make the vectors of sections 3, 5, 6 and 7."""
    return {
        "sequences": [
            {
                "name": name,
                "messages": [
                    {"from": side, **message_vector(message, value)}
                    for side, message, value in conversation
                ],
                "calls": [
                    {
                        "id": call_id,
                        "items": [tagged(item) for item in (items[0] if items else [])],
                        how: tagged(what) if how == "result" else what,
                    }
                    for call_id, (how, what, *items) in OUTCOMES[name].items()
                ],
            }
            for name, conversation in SEQUENCES.items()
        ]
    }


def errors() -> dict[str, Any]:
    """Make the vectors of section 8."""
    full = VllmportError(
        "of a newer peer", details={"why": "x"}, phase="decode", worker="m/1", attempt=2
    )
    full.code = "not_invented_yet"
    examples = [cls(f"an example of {code}") for code, cls in ERRORS.items()] + [full]
    return {
        "codes": [
            {"code": code, "class": cls.__name__, "retryable": cls.retryable}
            for code, cls in ERRORS.items()
        ],
        "messages": [
            {"code": error.code, **message_vector(error_message(error, 7), error.details)}
            for error in examples
        ],
    }


def packets() -> dict[str, Any]:
    """Make the vectors of the framing that a port speaks."""
    long: list[Bytes] = [b"\x93\x14\x01\xc0", b"\xc0", b"x" * 300]
    whole: dict[str, list[Bytes]] = {
        name: encode(message, None if value is None else pack(value))
        for name, (message, value) in list(MESSAGES.items())[:2]
    }
    whole |= {"three frames": long, "empty frames": [b"", b""]}
    return {
        "same": [
            {"name": name, "frames": hex_of(frames), "packet": to_packet(frames).hex()}
            for name, frames in whole.items()
        ],
        "refused": [
            {"name": name, "bytes": data.hex()}
            for name, data in {
                "a packet of too many bytes": struct.pack(">I", MAX_PACKET + 1),
                "a frame of too many bytes": struct.pack(">II", 4, MAX_FRAME + 1),
                "an empty packet": struct.pack(">I", 0),
                "a message of one frame": struct.pack(">IIc", 5, 1, b"\xc0"),
                "a frame that ends outside its packet": struct.pack(">IIc", 5, 2, b"\xc0"),
                "a length that ends outside its packet": struct.pack(">IIcc", 6, 1, b"\xc0", b"x"),
                "text": b"Hello, world\n",
            }.items()
        ],
    }


FILES = {
    "values": values,
    "messages": messages,
    "sequences": sequences,
    "errors": errors,
    "packets": packets,
}


def render(vectors: dict[str, Any]) -> str:
    """Write vectors down: one to a line, so that a change shows what changed."""
    parts = []
    for name, listed in vectors.items():
        lines = ",\n".join(f"    {json.dumps(vector, ensure_ascii=False)}" for vector in listed)
        parts.append(f"  {json.dumps(name)}: [\n{lines}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in FILES.items():
        (FOLDER / f"{name}.json").write_text(render(make()), encoding="utf-8")


if __name__ == "__main__":
    main()
