"""`bridge/PROTOCOL.md` says what the code does, table by table and byte by byte."""

import dataclasses
import datetime as dt
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import Mock

import pytest

from vllmport.bridge import limits, universal
from vllmport.bridge.codec import (
    ITEM_SIZES,
    MAX_OUTLINE,
    Array,
    Ext,
    Packed,
    Ref,
    Symbol,
    pack,
    unpack,
)
from vllmport.bridge.errors import ERRORS
from vllmport.bridge.events import EVENTS
from vllmport.bridge.messages import (
    KINDS,
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Hello,
    Items,
    Kind,
    Message,
    Ping,
    Result,
    Welcome,
    decode,
    encode,
)
from vllmport.bridge.packets import PacketReader
from vllmport.bridge.states import CALL_TRANSITIONS, WORKER_TRANSITIONS
from vllmport.bridge.timeouts import PROFILES
from vllmport.bridge.universal import Affinity, Verb
from vllmport.pool.client.params import SamplingParams
from vllmport.pool.client.requests import chat_requests, generate_requests, load_arguments
from vllmport.pool.plan import TINY_MODEL, ModelSpec, Policy
from vllmport.pool.supervisor.access import (
    ADMIN_ARGUMENTS,
    CALL_ENGINE_VERBS,
    CALL_POOL_VERBS,
    Guest,
    Role,
)
from vllmport.pool.supervisor.control import MAX_NESTED, Control
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.hangups import HELLO_TIME, LAST_WORDS
from vllmport.pool.supervisor.specification import MAX_MODEL_NAME, spec_from
from vllmport.worker.engines.echo import EchoEngine

DOCUMENT = Path(__file__).parents[2] / "bridge" / "PROTOCOL.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
LINES = TEXT.splitlines()

Rows = list[tuple[str, ...]]


def cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _tables() -> list[tuple[tuple[str, ...], str, Rows]]:
    """Return each table: its head, the heading it stands under, its rows."""
    found = []
    heading = ""
    for is_table, lines in groupby(LINES, key=lambda line: line.startswith("|")):
        block = list(lines)
        if is_table:
            found.append((cells(block[0]), heading, [cells(line) for line in block[2:]]))
        else:
            heading = next((line for line in reversed(block) if line.startswith("#")), heading)
    return found


TABLES = _tables()


def table(*head: str, under: str = "") -> Rows:
    """Return the rows of the one table with this head."""
    matching = [rows for names, where, rows in TABLES if names == head and under in where]
    assert len(matching) == 1, f"{len(matching)} tables with the head {head}"
    return matching[0]


def code(cell: str) -> str:
    """Return what stands between the backticks of a cell."""
    assert re.fullmatch(r"`[^`]*`", cell), cell
    return cell.strip("`")


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


# Numbers.


def test_limits() -> None:
    documented = {
        code(name): int(value) for name, value, _ in table("name", "value", "what it bounds")
    }
    assert documented == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_title_names_the_version() -> None:
    assert LINES[0] == f"# The vllmport protocol, version {limits.PROTOCOL_VERSION}"


def test_timeout_profiles() -> None:
    documented = {code(name): float(value) for name, value in table("timeout profile", "seconds")}
    assert documented == PROFILES


def test_numbers_in_the_text() -> None:
    assert f"nest {MAX_NESTED} levels deep" in TEXT
    assert f"at most {MAX_MODEL_NAME} bytes" in TEXT
    assert Policy().max_client_bytes == 64 * 2**20
    assert "64 MiB unless configured" in TEXT
    assert f"no HELLO within {HELLO_TIME:g} s" in TEXT
    assert f"still there {LAST_WORDS:g} s later" in TEXT


# Messages.


def test_kinds() -> None:
    documented = {name: int(number) for number, name, *_ in table("code", "name", "way", "payload")}
    assert documented == {kind.name: int(kind) for kind in Kind}


TYPES: dict[Any, str] = {
    int: "int",
    str: "name",
    bool: "bool",
    int | None: "budget",
    list[int]: "ints",
    list[list[int]]: "pairs",
}
OWN_TYPES = {
    (Error, "message"): "text",
    (Call, "id"): "call id",
    (Call, "window"): "window",
    (Call, "ttl_ms"): "window",
}


def documented_fields() -> list[tuple[str, ...]]:
    return [row[:4] for row in table("kind", "field", "type", "default", "meaning")]


def test_fields_their_order_types_and_defaults() -> None:
    expected = []
    for cls, kind in KINDS.items():
        hints = get_type_hints(cls)
        for name in cls._fields:
            typ = OWN_TYPES.get((cls, name), TYPES[hints[name]])
            default = cls._field_defaults.get(name, ...)
            shown = "—" if default is ... else f"`{json.dumps(default)}`"
            expected.append((kind.name, f"`{name}`", typ, shown))
    assert documented_fields() == expected


def test_every_field_type_is_explained() -> None:
    explained = {code(name) for name, _ in table("type", "means")}
    assert explained == {*TYPES.values(), *OWN_TYPES.values()}


def test_every_field_has_a_meaning() -> None:
    assert all(row[4] for row in table("kind", "field", "type", "default", "meaning"))


@pytest.mark.parametrize(
    ("message", "is_bad"),
    [
        (Call(1, "", "", None, 0), False),
        (Call(0, "", "", None, 0), True),
        (Call(1, "", "", None, -1), True),
        (Call(1, "x" * limits.MAX_NAME, "", limits.MAX_TIMEOUT_MS), False),
        (Call(1, "x" * (limits.MAX_NAME + 1), "", None), True),
        (Call(1, "", "", limits.MAX_TIMEOUT_MS + 1), True),
        (Error(1, "", "x" * limits.MAX_TEXT), False),
        (Error(1, "", "x" * (limits.MAX_TEXT + 1)), True),
    ],
    ids=["plain", "id 0", "window -1", "name", "long name", "budget", "text", "long text"],
)
def test_field_types_bound_what_they_say(message: Message, *, is_bad: bool) -> None:
    if is_bad:
        with pytest.raises(Exception, match="cannot be"):
            decode(encode(message))
    else:
        assert decode(encode(message))[0] == message


# Values.

EXAMPLES: dict[Ext, Any] = {
    Ext.TUPLE: (1, "a"),
    Ext.SET: {1},
    Ext.FROZENSET: frozenset({2}),
    Ext.SYMBOL: Symbol("ok"),
    Ext.DATETIME: dt.datetime(2026, 1, 2, 3, 4, 5),
    Ext.DATE: dt.date(2026, 1, 2),
    Ext.TIME: dt.time(3, 4, 5),
    Ext.TIMEDELTA: dt.timedelta(1, 2, 3),
    Ext.COMPLEX: 1 - 2j,
    Ext.BIGINT: 2**64,
    Ext.ARRAY: Array("int16", (2,), b"\x01\x00\x02\x00"),
    Ext.BUFFER: Array("int8", (2,), b"ab"),
    Ext.REF: Ref("s", "m/0", 1, "T"),
}


def extensions() -> Rows:
    return table("code", "name", "body", "example", "its value")


def test_extension_types() -> None:
    documented = [(int(number), name) for number, name, *_ in extensions()]
    assert documented == [(int(ext), ext.name) for ext in Ext]


@pytest.mark.parametrize("row", extensions(), ids=lambda row: row[1])
def test_extension_type_examples(row: tuple[str, ...]) -> None:
    number, _, body, example, its_value = row
    ext, payload = Ext(int(number)), bytes.fromhex(code(example))
    assert body
    value = unpack(payload, [b"ab"])
    assert (type(value), value) == (type(EXAMPLES[ext]), EXAMPLES[ext])
    if ext is not Ext.BUFFER:  # that small, it is never sent as one
        assert pack(value).payload == payload
        assert code(its_value) == repr(value)


def test_array_types() -> None:
    documented = {
        code(name): int(size) for name, size in table("array type", "bytes for each element")
    }
    assert documented == ITEM_SIZES


# Errors.


def errors() -> Rows:
    return table("code", "class", "retryable", "details", "when")


def test_error_codes_classes_and_retryable() -> None:
    documented = [(code(name), cls, retry) for name, cls, retry, *_ in errors()]
    assert documented == [
        (name, cls.__name__, "yes" if cls.retryable else "no") for name, cls in ERRORS.items()
    ]


@pytest.mark.parametrize("row", errors(), ids=lambda row: code(row[0]))
def test_error_details(row: tuple[str, ...]) -> None:
    """Whatever a class reads from its details is documented."""
    cls = ERRORS[code(row[0])]
    readable = {name for name, member in vars(cls).items() if isinstance(member, property)}
    assert readable <= set(codes(row[3]))
    assert row[4]


# States.


@pytest.mark.parametrize(
    ("heading", "transitions"),
    [("Worker", WORKER_TRANSITIONS), ("Call", CALL_TRANSITIONS)],
    ids=["worker", "call"],
)
def test_states(heading: str, transitions: dict[tuple[Any, Any], Any]) -> None:
    documented = table("state", "event", "next", under=heading)
    assert documented == [(s.value, e.value, after.value) for (s, e), after in transitions.items()]


# Events.


def test_events() -> None:
    documented = {code(name): tuple(codes(fields)) for name, fields in table("event", "fields")}
    assert documented == EVENTS


# Verbs.


@pytest.fixture
def control() -> Control:
    events = EventLog(lambda: 0.0)
    fleet = Fleet(Policy(), events, lambda: "nonce")
    standby = {"id": "standby/0", "pid": 1, "waiting": True}
    identity: dict[str, Any] = {
        "supervisor": {},
        "spawner": {},
        "standbys": [standby],
        "starts": {},
    }
    dispatcher = Dispatcher(1, 1, 1.0, events)
    control = Control(fleet, dispatcher, events, {}, lambda: identity, lambda _: None)
    fleet.load(ModelSpec("m", "echo"), 0.0)
    dispatcher.add_model("m")
    return control


def pool_verbs() -> dict[str, list[str]]:
    rows = table("verb", "arguments", "result")
    return {code(verb): codes(arguments) for verb, arguments, _ in rows}


def test_verbs_of_the_pool(control: Control) -> None:
    assert list(pool_verbs()) == list(control._verbs)


def test_arguments_of_load() -> None:
    sent = load_arguments(
        "m",
        "n",
        v1_multiprocessing="auto",
        env={},
        replicas=1,
        loras={},
        preset=None,
        engine_args={},
    )
    assert pool_verbs()["load"] == [*sent, "wait"]
    documented = table("argument", "default", "meaning")
    assert [code(name) for name, *_ in documented] == [*sent, "wait"]


def test_defaults_of_load() -> None:
    assert spec_from({}, {}) == ModelSpec(TINY_MODEL, TINY_MODEL)
    defaults = {
        code(name): code(value) for name, value, _ in table("argument", "default", "meaning")
    }
    spec = ModelSpec("m", "m")
    assert defaults == {
        "model": f'"{TINY_MODEL}"',
        "name": "model",
        "v1_multiprocessing": f'"{spec.v1_multiprocessing}"',
        "env": str(spec.env),
        "replicas": str(spec.replicas),
        "loras": str(spec.loras),
        "preset": "nil",
        "engine_args": str(spec.engine_args),
        "wait": "true",
    }


def test_keys_of_status(control: Control) -> None:
    documented = {part: codes(keys) for part, keys in table("part", "keys")}
    status = control.status()
    assert documented["each of `models`"] == list(status["models"][0])
    assert documented["each of `workers`"] == list(status["workers"][0])
    assert documented["`counters`"] == list(status["counters"])
    assert {codes(part)[0] for part in documented} == set(status)


def engine_verbs() -> dict[str, list[str]]:
    rows = table("verb", "arguments", "result", "stream")
    return {code(verb): codes(arguments) for verb, arguments, *_ in rows}


def test_verbs_of_an_engine() -> None:
    """The echo engine has them all, two more for tests, and two of vLLM's."""
    more = {"echo", "fault", "sleep", "wake_up"}
    assert engine_verbs().keys() == EchoEngine({}, Mock())._verbs.keys() - more


def test_arguments_of_the_engine_verbs() -> None:
    verbs = engine_verbs()
    (generate,) = generate_requests("a", None, {"lora_request": {}})
    (chat,) = chat_requests([{"role": "user", "content": "a"}], None, {})
    assert verbs["generate"] == list(generate)
    assert verbs["chat"][:2] == list(chat)


def test_sampling_parameters() -> None:
    (item,) = re.findall(r"^- `sampling_params`:.*?(?=^- )", TEXT, re.MULTILINE | re.DOTALL)
    fields = {field.name for field in dataclasses.fields(SamplingParams)} - {"guided_decoding"}
    assert set(codes(item)[1:]) == fields


def test_universal_verbs() -> None:
    rows = table("universal verb", "arguments", "result")
    assert [code(verb) for verb, *_ in rows] == list(Verb)


def test_affinities() -> None:
    rows = table("affinity", "where that worker has no room")
    assert [code(name) for name, _ in rows] == list(Affinity)
    assert f"more than {universal.MAX_NESTED} levels deep" in TEXT


# Bytes.

HEX: dict[str, tuple[Message, Any]] = {
    "HELLO": (Hello([1], "0.1.0", 4242, "ruby"), None),
    "CALL": (
        Call(7, "tiny", "generate", 30_000, 256, 0, "r-1"),
        {"prompt": "Hi", "sampling_params": {"max_tokens": 2}},
    ),
    "ITEMS": (Items([[7, 0], [9, 3]], 1), [{"outputs": []}, {"outputs": []}]),
    "ERROR": (
        Error(7, "overloaded", "queue full", retryable=True, phase="queue"),
        {"retry_after": 0.5, "queued": 4096},
    ),
    "WELCOME": (
        Welcome(1, "0.1.0", "5f0c", 99),
        {"max_header": 262144, "max_payload": 16777216, "max_frame": 67108864, "max_buffers": 64},
    ),
    "CREDIT": (Credit(7, 128), None),
    "CANCEL": (Cancel(7), None),
    "END": (End([[7, 1]], 1, "tiny/0"), [{"finished": True}]),
    "RESULT": (Result(8, 1, "tiny/0", 1), {"token_ids": [7], "count": 1}),
    "BYE": (Bye("closed"), None),
}


def hex_examples() -> dict[str, list[bytes]]:
    found = {}
    for name, block in re.findall(r"^```hex (\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        plain = re.sub(r"#.*", "", block)
        found[name] = [bytes.fromhex(part) for part in plain.split("--")]
    return found


def test_every_example_is_known() -> None:
    assert hex_examples().keys() == {*HEX, "PACKET"}


def test_the_example_of_a_packet() -> None:
    (packet,) = hex_examples()["PACKET"]
    (frames,) = PacketReader().feed(packet)
    assert decode(frames)[0] == Ping(1)


def test_files_and_types_of_the_vectors() -> None:
    files = {code(name): codes(lists) for name, lists, _ in table("file", "lists", "each says")}
    folder = DOCUMENT.parent / "vectors"
    assert files == {path.name: list(json.loads(path.read_text())) for path in folder.iterdir()}
    types = {name for cell, _ in table("type", "described by") for name in codes(cell)}
    used = re.findall(r'\["(\w+)"[,\]]', (folder / "values.json").read_text())
    assert types <= set(used)


@pytest.mark.parametrize("name", HEX)
def test_hexadecimal_examples(name: str) -> None:
    """An example reads as what it says; what it leaves out are trailing defaults."""
    expected, value = HEX[name]
    frames = hex_examples()[name]
    message, payload, buffers = decode(frames)
    assert (message, unpack(payload, buffers)) == (expected, value)
    ours = encode(expected, None if value is None else pack(value))
    assert frames[1] == ours[1]
    assert bytes(ours[0])[1:].startswith(frames[0][1:])
    assert isinstance(pack(value), Packed)


# Roles.


def test_roles() -> None:
    rows = table("role", "verbs of the pool", "verbs of an engine")
    assert [code(role) for role, *_ in rows] == list(Role)
    ((_, of_pool, of_engine), *_) = rows
    named = set(codes(of_pool)) - {"name", "model"}
    assert named == CALL_POOL_VERBS
    assert set(codes(of_engine)) == CALL_ENGINE_VERBS
    assert f"at most {MAX_OUTLINE} keys" in TEXT
    for field in dataclasses.fields(Guest):
        assert not field.name.startswith("max_") or f"`{field.name}`" in TEXT.partition("## 16.")[2]
    for argument in ADMIN_ARGUMENTS:
        assert f"`{argument}`" in TEXT.partition("## 16.")[2]
