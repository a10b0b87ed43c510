"""Keys, roles and quotas, and the file that says them."""

import os
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from vllmport.bridge.codec import MAX_OUTLINE, Packed, Shape, outline, pack, unpack
from vllmport.bridge.errors import InvalidRequest, PermissionDenied, ProtocolError
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import UNIVERSAL
from vllmport.pool.supervisor.access import (
    OWNER,
    Guest,
    Role,
    Usage,
    forbidden,
    guests_from,
    sum_of,
    too_much,
)
from vllmport.pool.supervisor.clients import Clients
from vllmport.pool.supervisor.door import read_guests
from wire_strategies import values

KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
OTHER = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

CALLER = Guest("caller")
ADMIN = Guest("admin", Role.ADMIN)


def call(model: str, verb: str, **fields: Any) -> Call:
    return Call(1, model, verb, None, **fields)


# The file.


def test_a_key_is_for_calls_unless_it_says_otherwise() -> None:
    guests = guests_from({"a": {"key": KEY}, "b": {"key": OTHER, "role": "admin", "max_calls": 3}})
    assert guests == {
        KEY: Guest("a", Role.CALL, KEY),
        OTHER: Guest("b", Role.ADMIN, OTHER, max_calls=3),
    }


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"a": KEY}, "each key has a section"),
        ({"a": {}}, "key is the public key"),
        ({"a": {"key": KEY[1:]}}, "key is the public key"),
        ({"a": {"key": KEY[1:] + "'"}}, "key is the public key"),
        ({"a": {"key": 7}}, "key is the public key"),
        ({"a": {"key": KEY, "role": "guest"}}, "role is one of call, ffi, admin"),
        ({"a": {"key": KEY, "role": []}}, "role is one of call, ffi, admin"),
        ({"a": {"key": KEY, "rolle": "admin"}}, "unknown settings: rolle"),
        ({"a": {"key": KEY, "max_calls": 0}}, "quotas are whole numbers"),
        ({"a": {"key": KEY, "max_bytes": True}}, "quotas are whole numbers"),
        ({"a": {"key": KEY}, "b": {"key": KEY}}, "have the same key"),
    ],
)
def test_what_cannot_be_meant_is_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as caught:
        guests_from(data)
    assert caught.value.parameter == "security.clients"


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="not TOML"):
        read_guests(path)


# Roles.


@pytest.mark.parametrize("guest", [ADMIN, OWNER])
@pytest.mark.parametrize("verb", ["load", "shutdown", "collective_rpc", "anything"])
def test_admin_may_do_everything(guest: Guest, verb: str) -> None:
    packed = pack({"model": "x", "env": {}, "chat_template": "x"})
    for model in ("", "m"):
        assert forbidden(guest, call(model, verb, priority=-9), packed) is None


@pytest.mark.parametrize("verb", ["status", "events", "engine_config", "release"])
def test_call_may_look(verb: str) -> None:
    assert forbidden(CALLER, call("", verb), pack({"name": "m"})) is None


def test_call_attaches_by_name_and_loads_nothing() -> None:
    load = call("", "load")
    args: dict[str, Any]
    for args in ({"name": "m"}, {"name": "m", "model": None}, {"name": "m" * 100, "model": ""}):
        assert forbidden(CALLER, load, pack(args)) is None
    for args in ({}, {"name": ""}, {"name": 7}, {"name": "m", "model": "x"}, {"model": 0}):
        assert isinstance(forbidden(CALLER, load, pack(args)), PermissionDenied)


def test_call_names_adapters_and_no_files() -> None:
    generate = call("m", "generate")
    lora: Any
    for lora in (None, "", "known", "k" * 300):
        assert forbidden(CALLER, generate, pack({"prompt": "x", "lora_request": lora})) is None
    for lora in ({"lora_path": "/etc"}, ["x"], 7, b"x", ("x",)):
        error = forbidden(CALLER, generate, pack({"prompt": "x", "lora_request": lora}))
        assert isinstance(error, PermissionDenied)
        assert error.role == "admin"


@given(values)
def test_no_arguments_at_all_raise_anything_else(value: Any) -> None:
    try:
        error = forbidden(CALLER, call("m", "generate"), pack(value))
    except ProtocolError:
        return
    assert isinstance(value, dict)
    assert error is None or isinstance(error, PermissionDenied)


@given(st.dictionaries(st.text(), values, max_size=8))
def test_an_outline_agrees_with_what_the_worker_will_read(value: dict[str, Any]) -> None:
    packed = pack(value)
    shapes = outline(packed.payload)
    read = unpack(*packed)
    assert shapes.keys() == read.keys()
    for key, shape in shapes.items():
        if read[key] is None or read[key] == "":
            assert shape in (Shape.NOTHING, Shape.OTHER)  # "" may be a symbol
        elif type(read[key]) is str:
            assert shape is Shape.TEXT
        else:
            assert shape is Shape.OTHER


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x81",
        b"\x81\xa1a",
        b"\x81\xa1\xff\xc0",
        b"\x81\x01\xc0",
        b"\x81\xc0\xc0",
        b"\x82\xa1a\xc0\xa1a\xc0",
        b"\xdf\xff\xff\xff\xff",
        pack({str(n): n for n in range(MAX_OUTLINE + 1)}).payload,
    ],
)
def test_what_has_no_outline_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        outline(payload)


@given(st.binary(max_size=200))
def test_any_bytes_have_an_outline_or_are_refused(payload: bytes) -> None:
    try:
        found = outline(payload)
    except ProtocolError:
        return
    assert all(isinstance(key, str) for key in found)


def test_empty_text_in_any_form_is_nothing() -> None:
    for empty in (b"\xa0", b"\xd9\x00", b"\xda\x00\x00", b"\xdb\x00\x00\x00\x00"):
        payload = b"\x81\xa4name" + empty
        assert outline(payload) == {"name": Shape.NOTHING}
        assert isinstance(
            forbidden(CALLER, call("", "load"), Packed(payload, [])), PermissionDenied
        )


# Quotas.


@pytest.mark.parametrize(
    ("used", "quota"),
    [
        (Usage(2, 0, 0), "max_calls"),
        (Usage(1, 1, 0), "max_queued"),
        (Usage(1, 0, 91), "max_bytes"),
    ],
)
def test_one_call_too_many_is_named(used: Usage, quota: str) -> None:
    guest = Guest("g", Role.CALL, max_calls=2, max_queued=1, max_bytes=100)
    error = too_much(guest, used, call("m", "generate"), 10)
    assert error is not None
    assert (error.details["quota"], error.retryable) == (quota, True)
    assert error.retry_after > 0
    assert too_much(guest, Usage(1, 0, 90), call("m", "generate"), 10) is None


def test_a_call_to_the_pool_waits_for_no_worker() -> None:
    guest = Guest("g", max_queued=1)
    assert too_much(guest, Usage(1, 1, 0), call("", "status"), 10) is None


def test_connections_of_a_key_count_together() -> None:
    assert sum_of([Usage(1, 2, 3), Usage(10, 20, 30)]) == Usage(11, 22, 33)
    assert sum_of([]) == Usage(0, 0, 0)


# Local sockets.


class Frame(dict[Any, Any]):
    """What a message of somebody else's process would say of itself."""


@pytest.mark.parametrize(
    "address", [f"{os.getuid() + 1}", "", "localhost", "::"], ids=["other", "none", "name", "few"]
)
def test_another_users_connection_is_refused(runtime_dir: Path, address: str) -> None:
    text = f":{address}:1000:1" if address.isdigit() else address
    with zmq.Context() as context:
        door = Clients(context, f"ipc://{runtime_dir / 'uid.sock'}", 1 << 20)
        try:
            with pytest.raises(PermissionDenied, match="another user"):
                door.admit(b"id", Frame({"Peer-Address": text}), 1)  # type: ignore[arg-type]
            assert len(door) == 0
        finally:
            door.socket.disable_monitor()
            context.destroy(linger=0)
            (runtime_dir / "uid.sock").unlink(missing_ok=True)


# Universal calls.

FFI = Guest("ffi", Role.FFI)


@pytest.mark.parametrize("verb", sorted(UNIVERSAL))
def test_universal_calls_take_the_role_ffi_or_admin(verb: str) -> None:
    made = call("m", verb)
    refused = forbidden(CALLER, made, pack({}))
    assert isinstance(refused, PermissionDenied)
    assert refused.role == "ffi"
    for guest in (FFI, ADMIN, OWNER):
        assert forbidden(guest, made, pack({})) is None
    assert forbidden(FFI, call("", verb), pack({})) is not None, "not of the pool itself"


def test_the_role_ffi_may_do_else_what_call_may() -> None:
    assert forbidden(FFI, call("m", "generate"), pack({"prompt": "Hi"})) is None
    assert forbidden(FFI, call("m", "collective_rpc"), pack({})) is not None
    assert forbidden(FFI, call("", "load"), pack({"model": "m"})) is not None
    assert forbidden(FFI, call("m", "ffi.call", priority=-1), pack({})) is not None
