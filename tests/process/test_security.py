"""Pools that listen on TCP: who comes in, what a key may do, and that secrets stay secret."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import (
    PATIENCE,
    at_most,
    endless,
    environment,
    eventually,
    read_line,
    script,
    unfinished,
    vllmport,
)
from tcp_service import ROLES, SECRET, TOKEN, Connect, Served, Wire, serves_others
from vllmport.bridge.codec import pack
from vllmport.bridge.limits import PROTOCOL_VERSION
from vllmport.bridge.messages import Call, Error, Hello, Ping, Pong, Welcome, decode, encode
from vllmport.bridge.packets import PacketReader, to_packet
from vllmport.pool import (
    LLM,
    AsyncPool,
    ConnectFailed,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    Pool,
    PoolLost,
    SessionLost,
    VllmportError,
)
from vllmport.pool.client.connection import Connection
from vllmport.pool.keys import ClientKeys, Pair, keys_for, make_pair, read_pair
from vllmport.pool.supervisor.door import LOOK_EVERY

ROOT = Path(__file__).parents[2]


@pytest.fixture
def boss(served: Served) -> Iterator[Pool]:
    """Joined with the role admin."""
    with served.connect("boss") as pool:
        yield pool


@pytest.fixture
def stranger(served: Served) -> Iterator[LLM]:
    """The echo model, attached to with a key that is known for a while."""
    served.write_clients(**ROLES, stranger="call")
    try:
        with served.connect("stranger") as pool:
            yield pool.llm(name="echo")
    finally:
        served.write_clients(**ROLES)


# Who comes in.


def test_a_known_key_is_served(guest: LLM) -> None:
    assert serves_others(guest)
    assert "".join(delta.text for delta in guest.stream("abc", {"max_tokens": 5})) == "abc"


async def test_a_known_key_is_served_in_coroutines(served: Served) -> None:
    key = served.folder / "guest.key"
    pool = await AsyncPool.connect(served.endpoint, server_key=served.server.public, key=key)
    async with pool, pool.llm(name="echo") as llm:
        assert (await llm.generate("a"))[0].outputs[0].text == "a"


def test_an_unknown_key_is_refused_and_others_are_served(served: Served, guest: LLM) -> None:
    with pytest.raises(PermissionDenied, match="does not know this key") as caught:
        served.connect("stranger")
    assert not caught.value.retryable
    assert caught.value.details["endpoint"] == served.endpoint
    assert serves_others(guest)


def test_a_server_with_another_key_is_not_spoken_to(served: Served, guest: LLM) -> None:
    other = served.pairs["stranger"].public
    with pytest.raises(PermissionDenied, match="server_key"):
        Pool.connect(served.endpoint, server_key=other, key=served.folder / "boss.key")
    assert serves_others(guest)


def test_nobody_comes_in_without_encryption(served: Served, guest: LLM) -> None:
    with pytest.raises(PermissionDenied):
        Connection(served.endpoint)
    assert serves_others(guest)


def test_a_public_key_alone_opens_nothing(served: Served, guest: LLM) -> None:
    """Who knows the boss's public key has to prove that it is the boss's."""
    forged = Pair(served.pairs["boss"].public, served.pairs["stranger"].secret)
    with pytest.raises((PermissionDenied, ConnectFailed)):
        Connection(served.endpoint, 2.0, ClientKeys(forged, served.server.public))
    assert serves_others(guest)


def test_a_key_can_be_added_while_the_pool_runs(stranger: LLM, guest: LLM) -> None:
    assert serves_others(stranger)
    assert serves_others(guest)


def test_a_key_that_is_taken_away_ends_its_connections_with_the_reason(
    served: Served, stranger: LLM, guest: LLM, boss: Pool
) -> None:
    with guest.stream("b", endless()) as other, stranger.stream("a", endless()) as stream:
        assert next(stream).text, next(other).text
        served.write_clients(**ROLES)
        with at_most(2 * LOOK_EVERY), pytest.raises(PermissionDenied, match="was taken out"):
            for _ in stream:
                pass
        eventually(lambda: unfinished(boss) == 1)
        assert next(other).text, "others go on"
    with pytest.raises(PermissionDenied, match="does not know this key"):
        stranger.tokenize("a")
    with boss.events(last=50) as events, contextlib.suppress(TimeoutError):
        while "was taken out" not in str((event := events.get(PATIENCE) or {}).get("reason")):
            pass
    assert event["event"] == "client.gone"


def test_who_stays_after_its_key_was_taken_away_is_shown_out(
    served: Served, guest: LLM, stranger: LLM, connect: Connect
) -> None:
    own = connect("stranger").admitted()
    assert serves_others(stranger)
    served.write_clients(**ROLES)
    message, _ = own.hear()
    assert isinstance(message, Error)
    assert (message.id, message.code) == (0, "permission_denied")
    assert own.was_ended()
    assert serves_others(guest)


def test_another_role_holds_for_connections_that_are_open(
    served: Served, stranger: LLM, guest: LLM
) -> None:
    pool = stranger._pool
    with pytest.raises(PermissionDenied, match="takes the role admin"):
        pool.unload("nothing")
    served.write_clients(**ROLES, stranger="admin")
    eventually(lambda: error_of(pool, "unload", name="nothing") == "invalid_request")
    served.write_clients(**ROLES, stranger="call")
    eventually(lambda: error_of(pool, "unload", name="nothing") == "permission_denied")
    assert serves_others(stranger)
    assert serves_others(guest)


def error_of(pool: Pool, verb: str, **args: Any) -> str:
    with pytest.raises(VllmportError) as caught:
        pool.call(verb, args)
    return caught.value.code


def test_a_broken_file_of_keys_changes_nothing(served: Served, guest: LLM) -> None:
    try:
        served.clients.write_text("[boss]\nkey = 'short'\n")
        with served.connect("guest") as pool:
            pool.status()
        assert "the keys stay as they were" in served.log()
    finally:
        served.write_clients(**ROLES)


def test_the_command_takes_its_keys_from_the_environment(served: Served) -> None:
    done = vllmport("generate", "Hello", env=served.environment("guest"))
    assert (done.returncode, done.stdout) == (0, "Hello\n"), done.stderr
    done = vllmport("stop", env=served.environment("guest"))
    assert done.returncode == 1
    assert "takes the role admin" in done.stderr
    done = vllmport("status", env=served.environment("stranger"))
    assert done.returncode == 1
    assert "does not know this key" in done.stderr


def test_the_program_in_the_guide_for_operators_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for placeholder, value in (
        ("tcp://10.0.0.7:5555", served.endpoint),
        ("THE PUBLIC KEY OF server.key", served.server.public),
        ("notebook.key", "guest.key"),
        ("main", "echo"),
    ):
        assert placeholder in example
        example = example.replace(placeholder, value)
    monkeypatch.chdir(served.folder)
    names: dict[str, Any] = {"Pool": Pool}
    exec(example, names)  # noqa: S102  # our own text
    with names["pool"], names["llm"] as llm:
        assert serves_others(llm)


def test_nobody_at_the_address_is_said(served: Served) -> None:
    with pytest.raises(ConnectFailed, match="vllmport serve"):
        Pool.connect(
            "tcp://127.0.0.1:9", server_key=served.server.public, key=served.folder / "boss.key"
        )


def test_a_second_pool_at_the_same_address_is_refused(served: Served, guest: LLM) -> None:
    done = vllmport("serve", str(served.config))
    assert done.returncode == 6
    assert f"a pool is running at {served.endpoint}" in done.stderr
    assert serves_others(guest)


def test_an_address_that_another_program_has_is_refused(tmp_path: Path) -> None:
    service = Served(tmp_path)
    port = int(service.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        done = vllmport("serve", str(service.config))
    assert done.returncode == 6
    assert "Address already in use" in done.stderr


# What is needed to listen on TCP at all.


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("no keys", r"takes keys: give \[security\]"),
        ("no server key", "cannot read the key"),
        ("open server key", "chmod 600"),
        ("no clients", "cannot read the keys"),
        ("open clients", "others may write"),
        ("wrong role", "role is one of call, ffi, admin"),
    ],
)
def test_a_pool_without_proper_keys_does_not_start(
    tmp_path: Path, spoil: str, complaint: str
) -> None:
    service = Served(tmp_path)
    match spoil:
        case "no keys":
            service.config.write_text(f'endpoint = "{service.endpoint}"\n')
        case "no server key":
            (tmp_path / "server.key").unlink()
        case "open server key":
            (tmp_path / "server.key").chmod(0o644)
        case "no clients":
            service.clients.unlink()
        case "open clients":
            service.clients.chmod(0o666)
        case "wrong role":
            service.clients.write_text(service.clients.read_text().replace("admin", "root"))
    done = vllmport("serve", str(service.config))
    assert done.returncode == 1
    assert re.search(complaint, done.stderr), done.stderr


def test_a_pool_that_a_program_owns_stays_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="vllmport serve"):
        Pool(Served(tmp_path).config)


def test_a_client_without_keys_is_told_what_to_give(served: Served) -> None:
    with pytest.raises(InvalidRequest, match="VLLMPORT_SERVER_KEY") as caught:
        Pool.connect(served.endpoint)
    assert caught.value.parameter == "server_key"
    with pytest.raises(InvalidRequest, match="VLLMPORT_KEY") as caught:
        Pool.connect(served.endpoint, server_key=served.server.public)
    assert caught.value.parameter == "key"
    with pytest.raises(InvalidRequest, match="40 characters"):
        Pool.connect(served.endpoint, server_key="short", key=served.folder / "boss.key")


def test_keygen_writes_a_private_pair_once(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    done = vllmport("keygen", str(path))
    assert done.returncode == 0, done.stderr
    pair = read_pair(path)
    assert done.stdout == f"{pair.public}\n"
    assert pair.secret not in done.stdout + done.stderr + repr(pair)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert vllmport("keygen", str(path)).returncode == 1
    assert path.read_text() == before
    assert tomllib.loads(before) == {"public_key": pair.public, "secret_key": pair.secret}


def test_a_key_file_that_is_wrong_is_refused_without_quoting_it(tmp_path: Path) -> None:
    pair, other = make_pair(tmp_path / "a"), make_pair(tmp_path / "b")
    path = tmp_path / "a"
    for text in (
        f'public_key = "{other.public}"\nsecret_key = "{pair.secret}"\n',
        f'secret_key = "{pair.secret}"\n',
        f"secret_key = {pair.secret}\n",
        f'public_key = 7\nsecret_key = ["{pair.secret}"]\n',
    ):
        path.write_text(text)
        with pytest.raises(InvalidRequest, match="no key pair") as caught:
            keys_for("tcp://h:1", other.public, path)
        assert pair.secret not in f"{caught.value!r} {caught.value.details}"
        assert caught.value.__suppress_context__
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        read_pair(path)


# Roles.


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("load", {"model": "echo", "name": "mine"}),
        ("load", {"model": "echo", "name": "mine", "env": {"LD_PRELOAD": "x.so"}}),
        ("load", {}),
        ("load", {"name": ""}),
        ("load", {"name": None}),
        ("unload", {"name": "echo"}),
        ("restart", {"name": "echo"}),
        ("shutdown", {}),
        ("new verb", {}),
    ],
)
def test_call_may_not_change_what_the_pool_runs(
    served: Served, guest: LLM, verb: str, args: dict[str, Any]
) -> None:
    with served.connect("guest") as pool, pytest.raises(PermissionDenied, match="admin") as caught:
        pool.call(verb, args)
    assert (caught.value.role, caught.value.retryable) == ("admin", False)
    assert serves_others(guest)


def test_call_may_look_and_attach(served: Served) -> None:
    with served.connect("guest") as pool, pool.events(last=1) as events:
        assert events.get(PATIENCE) is not None
        assert [model["name"] for model in pool.status()["models"]] == ["echo"]
        assert pool.call("engine_config", {"name": "echo"})["model"] == "echo"
        with pool.llm(name="echo") as llm:
            assert llm.tokenize("a") == [97]
        with pytest.raises(InvalidRequest, match="no model 'other'"):
            pool.llm(name="other")


def test_admin_may_load_and_unload(boss: Pool) -> None:
    with boss.llm("echo", name="second") as llm:
        assert serves_others(llm)
        boss.unload("second")


# Universal calls.


def test_universal_calls_take_the_role_ffi(served: Served, guest: LLM) -> None:
    with pytest.raises(PermissionDenied) as caught:
        guest.session().call("decimal", "Decimal", "2")
    assert caught.value.role == "ffi"
    with served.connect("ffi") as pool:
        llm = pool.llm(name="echo")
        with llm.session() as session:
            assert session.call("decimal", "Decimal", "2").method("is_signed") is False
        assert serves_others(llm)
        with pytest.raises(PermissionDenied):
            pool.unload("echo")


def test_sessions_of_one_name_are_apart_for_different_keys(served: Served, boss: Pool) -> None:
    with served.connect("ffi") as pool, boss.llm(name="echo") as llm:
        theirs = pool.llm(name="echo").session("one name", ttl=5.0)
        mine = llm.session("one name", ttl=5.0)
        ref = theirs.call("decimal", "Decimal", "2")
        with pytest.raises(SessionLost):
            mine.attr(ref, "real")
        mine.end()
        assert theirs.method(ref, "is_signed") is False
        theirs.end()


@pytest.fixture
def wire(connect: Connect) -> Wire:
    """A connection with the role call."""
    return connect("guest").admitted()


@pytest.mark.parametrize(
    ("verb", "args", "fields"),
    [
        ("generate", {"prompt": "a", "lora_request": {"lora_name": "x", "lora_path": "/etc"}}, {}),
        ("chat", {"messages": [], "chat_template": "{{ x }}"}, {}),
        ("generate", {"prompt": "a", "mm_processor_kwargs": {"code": "x"}}, {}),
        ("generate", {"prompt": "a"}, {"priority": -1}),
        ("add_lora", {"lora_request": "x"}, {}),
        ("collective_rpc", {"method": "x"}, {}),
        ("sleep", {}, {}),
        ("fault", {}, {}),
        ("start_profile", {}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_call_may_not_name_code_or_files(
    wire: Wire, guest: LLM, verb: str, args: dict[str, Any], fields: dict[str, Any]
) -> None:
    payload = pack(args).payload
    assert wire.code_of(Call(1, "echo", verb, 1000, **fields), payload) == "permission_denied"
    assert serves_others(guest)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x82" + b"\xaclora_request" + b"\x80" + b"\xaclora_request" + b"\xc0",
        b"\x82" + b"\xa4name" + b"\xa1x" + b"\xa4name" + b"\xc0",
        b"\x81" + b"\xc4\x0clora_request" + b"\x80",
        b"\x81" + b"\xc7\x0c\x04lora_request" + b"\x80",
        b"\x90",
        b"\xdf\xff\xff\xff\xff",
        b"\xde\x01\x00" + b"\xa1a\xc0" * 256,
        b"\x81\xa1a" + b"\x91" * 2_000_000,
        b"\x81\xa1a\xdd\x00\xff\xff\xff" + b"\x90" * 0xFFFFFF,
        b"",
    ],
    ids=[
        "twice",
        "name twice",
        "bin",
        "symbol",
        "array",
        "huge",
        "many",
        "nested",
        "array",
        "none",
    ],
)
@pytest.mark.parametrize("model", ["echo", ""])
def test_arguments_made_to_get_past_the_check_do_not(
    wire: Wire, guest: LLM, payload: bytes, model: str
) -> None:
    verb = "generate" if model else "load"
    start = time.monotonic()
    code = wire.code_of(Call(1, model, verb, 10_000), payload[: 16 * 2**20])
    assert code in ("protocol_error", "permission_denied", "invalid_request")
    assert time.monotonic() - start < PATIENCE
    assert serves_others(guest)


# Quotas.


def test_no_key_has_more_calls_open_than_it_may(served: Served, guest: LLM) -> None:
    with served.connect("small") as pool, pool.llm(name="echo") as llm, pool.events() as events:
        with llm.stream("a", endless()) as first, llm.stream("b", endless()) as second:
            assert next(first).text, next(second).text
            with pytest.raises(Overloaded, match="max_calls = 3") as caught:
                llm.tokenize("c")
            assert caught.value.retry_after > 0
            assert caught.value.details["quota"] == "max_calls"
        events.close()
        eventually(lambda: unfinished(guest._pool) == 0)
        assert llm.tokenize("a") == [97]
    assert serves_others(guest)


def test_no_key_has_more_calls_waiting_than_it_may(connect: Connect, served: Served) -> None:
    own = connect("small").admitted()
    args = pack({"prompt": "a", "sampling_params": endless()}).payload
    codes = []
    with served.connect("boss") as pool, pool.llm(name="echo") as llm:
        busy = [llm.stream("a", endless()) for _ in range(8)]  # all the places of the worker
        eventually(lambda: pool.status()["workers"][0]["in_flight"] == 8)
        for number in (1, 2):
            own.say(Call(number, "echo", "generate", None), args)
        codes.append(own.code_of(Call(3, "echo", "generate", None), args))
        own.socket.close(linger=0)
        for stream in busy:
            stream.close()
        eventually(lambda: unfinished(pool) == 0)
    assert codes == ["overloaded"]


def test_no_key_has_more_bytes_open_than_it_may(connect: Connect, guest: LLM) -> None:
    own = connect("small").admitted()
    payload = pack({"prompt": "a" * 6000}).payload
    own.say(Call(1, "echo", "tokenize", None), payload)
    message, details = own.hear()
    assert isinstance(message, Error)
    assert (message.code, message.retryable) == ("overloaded", True)
    assert details["quota"] == "max_bytes"
    assert details["retry_after"] > 0
    assert own.code_of(Call(2, "echo", "tokenize", None), pack({"prompt": "a"}).payload) == "none"
    assert serves_others(guest)


def test_a_quota_is_for_the_key_and_not_for_each_connection(connect: Connect, guest: LLM) -> None:
    wires = [connect("small").admitted() for _ in range(4)]
    call = Call(1, "", "events", None, window=1)
    for own in wires[:3]:
        own.say(call, b"\x80")
        own.say(Ping(1))
        while not isinstance(own.hear()[0], Pong):  # by then the pool has the call
            pass
    assert wires[3].code_of(call, b"\x80") == "overloaded"
    assert serves_others(guest)


def test_no_key_has_more_connections_than_it_may(
    served: Served, connect: Connect, guest: LLM
) -> None:
    wires = [connect("small").admitted() for _ in range(5)]
    with pytest.raises(Overloaded, match="max_connections = 5") as caught:
        served.connect("small")
    assert caught.value.details["quota"] == "max_connections"
    assert caught.value.retry_after > 0
    assert serves_others(guest)
    wires[0].socket.close(linger=0)
    eventually(lambda: connects(served, "small"))
    assert serves_others(guest)


def connects(served: Served, name: str) -> bool:
    with contextlib.suppress(Overloaded), served.connect(name):
        return True
    return False


# Another user.

AS_NOBODY = """
import os, sys
from importlib.metadata import version
from vllmport.bridge.errors import VllmportError
from vllmport.pool.client.connection import Connection
version("vllmport")  # what it imports may not be readable later
os.chdir("/")
os.setuid(65534)
try:
    Connection(sys.argv[1])
except VllmportError as exc:
    print(exc.code, exc)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_where_the_folder_is_open(runtime_dir: Path) -> None:
    with Pool() as pool, pool.llm("echo") as llm:
        path = Path(pool.endpoint.removeprefix("ipc://"))
        with script(AS_NOBODY, pool.endpoint) as process:
            assert read_line(process).startswith("connect_failed"), "the folder is shut"
        folders = [path.parent, path.parent.parent, path.parent.parent.parent]
        modes = [stat.S_IMODE(folder.stat().st_mode) for folder in folders]
        path.chmod(0o777)
        for folder in folders:
            folder.chmod(0o711)
        try:
            with script(AS_NOBODY, pool.endpoint) as process:
                assert read_line(process).startswith("permission_denied this pool belongs to")
        finally:
            for folder, mode in zip(folders, modes, strict=True):
                folder.chmod(mode)
        assert serves_others(llm)


# Hosts that speak through a port.


def test_a_port_joins_with_the_keys_of_its_environment(served: Served) -> None:
    hello = to_packet(encode(Hello([PROTOCOL_VERSION], "test")))
    for name, kind in (("guest", Welcome), ("stranger", Error)):
        command = [sys.executable, "-m", "vllmport.pool.cli", "port", "--connect", served.endpoint]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(served.environment(name)),
        ) as port:
            assert port.stdin is not None
            assert port.stdout is not None
            port.stdin.write(hello)
            port.stdin.flush()
            size = port.stdout.read(4)
            (frames,) = PacketReader().feed(size + port.stdout.read(int.from_bytes(size, "big")))
            port.stdin.close()
            assert port.wait(PATIENCE) == (0 if kind is Welcome else 1)
        message, _, _ = decode(frames)
        assert isinstance(message, kind)
        if isinstance(message, Error):
            assert (message.id, message.code) == (0, "permission_denied")


CLIENT = """
import sys
from vllmport.pool import Pool
endpoint, server_key, key = sys.argv[1:]
with Pool.connect(endpoint, server_key=server_key, key=key) as pool, pool.llm(name="echo") as llm:
    stream = llm.stream("abc", {"max_tokens": 10**6, "ignore_eos": True})
    next(stream)
    print("runs", flush=True)
    for delta in stream:
        pass
"""


def test_a_pool_on_tcp_that_was_restarted_is_found_again(tmp_path: Path) -> None:
    service = Served(tmp_path)
    with contextlib.ExitStack() as clients:
        with service.running():
            pool = clients.enter_context(service.connect("guest"))
            llm = clients.enter_context(pool.llm(name="echo"))
            stream = clients.enter_context(llm.stream("abc", endless()))
            assert next(stream).text
            os.kill(pool.status()["supervisor"]["pid"], signal.SIGKILL)
            with pytest.raises(PoolLost):
                for _ in stream:
                    pass
        with service.running():
            assert serves_others(llm), "the keys are shown again, the model is attached to again"


def test_calls_of_a_client_that_was_killed_are_aborted(served: Served, boss: Pool) -> None:
    before = boss.status()["supervisor"]["clients"]
    args = (served.endpoint, served.server.public, str(served.folder / "guest.key"))
    with script(CLIENT, *args) as client:
        assert read_line(client) == "runs"
        assert unfinished(boss) == 1
        os.kill(client.pid, signal.SIGKILL)
        eventually(lambda: unfinished(boss) == 0)
    assert boss.status()["supervisor"]["clients"] == before


# Secrets.


def test_secrets_are_in_no_log_no_status_and_no_error(served: Served, boss: Pool) -> None:
    errors = []
    for args in (
        {"model": "echo", "name": "a", "env": {"SECRET": f"{SECRET}\0"}},
        {"model": "echo", "name": "a", "env": {"SECRET": [SECRET]}},
        {"model": "echo", "name": "a", "env": {"SECRET": SECRET}, "engine_args": {"no": 1}},
        {"model": "echo", "name": "a", "env": {"S": SECRET}, "engine_args": {"fail_load": "why"}},
        {"model": "no/such", "name": "a", "engine_args": {"hf_token": TOKEN, "nonsense": 1}},
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011, PT012  # whatever it is, it is looked at
            boss.call("load", args, timeout=PATIENCE)
            pytest.fail(f"it was loaded: {args}")
        errors.append(f"{caught.value} {caught.value!r} {getattr(caught.value, 'details', '')}")
    with boss.events(last=1000) as stream, contextlib.suppress(TimeoutError):
        while (event := stream.get(0.3)) is not None:
            errors.append(str(event))
    for words in (("status",), ("status", "--json"), ("doctor", str(served.config))):
        done = vllmport(*words, env=served.environment("boss"))
        errors.append(done.stdout + done.stderr)
    status = boss.status()
    logs = [path.read_text() for path in Path(status["supervisor"]["log_dir"]).glob("*")]
    seen = "\n".join([*errors, str(status), served.log(), *logs])
    supervisor = psutil.Process(status["supervisor"]["pid"])
    for process in (supervisor, *supervisor.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            seen += " ".join(process.cmdline())
    for pair in (served.server, *served.pairs.values()):
        assert pair.secret not in seen
    assert SECRET not in seen
    assert TOKEN not in seen
    assert len(errors) > 10
