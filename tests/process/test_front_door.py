"""Who may come in, and that bad guests do the others no harm."""

import contextlib
import os
import random
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from processes import all_gone, eventually, family, serving, vllmport
from vllmport.bridge.bundles import bundled
from vllmport.bridge.codec import pack, unpack
from vllmport.bridge.limits import MAX_FRAME, PROTOCOL_VERSION
from vllmport.bridge.messages import (
    Bye,
    Call,
    Credit,
    End,
    Error,
    Hello,
    Items,
    Message,
    Ping,
    Pong,
    Result,
    Welcome,
    decode,
    encode,
)
from vllmport.pool import (
    LLM,
    AsyncPool,
    ConnectFailed,
    InvalidRequest,
    Pool,
    PoolLost,
    ProtocolError,
    StartupFailed,
)
from vllmport.pool.client.connection import Connection
from vllmport.pool.supervisor.clients import Client, Clients

Dealer = zmq.Socket[bytes]

WAIT_MS = 10_000
HELLO = Hello([PROTOCOL_VERSION], "test")


@pytest.fixture
def context() -> Iterator[zmq.Context[Dealer]]:
    """A context of a test's own, that ends with all its sockets."""
    own: zmq.Context[Dealer] = zmq.Context()
    yield own
    own.destroy(linger=0)


@pytest.fixture
def door(runtime_dir: Path) -> Iterator[Path]:
    """The path of a socket that a test listens on itself."""
    path = runtime_dir / "door.sock"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def dealer(context: zmq.Context[Dealer], shared_pool: Pool) -> Dealer:
    """A ZMTP connection that has said nothing yet."""
    return connected(context, shared_pool.endpoint)


def connected(context: zmq.Context[Dealer], endpoint: str) -> Dealer:
    own = context.socket(zmq.DEALER)
    own.setsockopt(zmq.LINGER, 0)
    own.connect(endpoint)
    return own


def say(own: Dealer, message: Message, value: object = None) -> None:
    own.send_multipart(encode(message, pack(value)))


def hear(own: Dealer) -> tuple[Message, object]:
    """Return the next message and its payload."""
    assert own.poll(WAIT_MS), "no answer"
    message, payload, buffers = decode(own.recv_multipart())
    return message, unpack(payload, buffers)


def admitted(own: Dealer) -> Dealer:
    say(own, HELLO)
    message, _ = hear(own)
    assert isinstance(message, Welcome)
    return own


def serves_others(llm: LLM) -> bool:
    with Pool.connect(llm._pool.endpoint) as other, other.llm(name="echo") as theirs:
        return llm.generate("a")[0].outputs[0].text + theirs.tokenize("b").__repr__() == "a[98]"


# Bad guests.


def raw(pool: Pool) -> socket.socket:
    own = socket.socket(socket.AF_UNIX)
    own.settimeout(10)
    own.connect(pool.endpoint.removeprefix("ipc://"))
    return own


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n",
        b"\x00" * 4096,
        b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00NULL" + b"\x00" * 48 + b"\xff" * 64,
        random.Random(1).randbytes(1 << 16),
    ],
    ids=["http", "zeros", "bad ZMTP", "random"],
)
def test_garbage_on_the_socket_disturbs_nobody(shared_pool: Pool, echo: LLM, data: bytes) -> None:
    with raw(shared_pool) as own:
        with contextlib.suppress(BrokenPipeError):  # thrown out before it had said it all
            own.sendall(data)
        assert serves_others(echo)


def test_many_guests_who_come_at_once_and_say_nothing_disturb_nobody(
    shared_pool: Pool, echo: LLM
) -> None:
    """More than a socket's usual backlog: a client that finds it full would be turned away."""
    pid = shared_pool.status()["supervisor"]["pid"]
    with contextlib.ExitStack() as silent:
        os.kill(pid, signal.SIGSTOP)  # as if it had much else to do
        try:
            for _ in range(200):
                own = silent.enter_context(socket.socket(socket.AF_UNIX))
                own.settimeout(0)
                own.connect(shared_pool.endpoint.removeprefix("ipc://"))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert serves_others(echo)
        assert shared_pool.status()["supervisor"]["clients"] == 1
    assert serves_others(echo)


def test_client_that_does_not_say_hello_is_told_to(echo: LLM, dealer: Dealer) -> None:
    say(dealer, Call(1, "echo", "tokenize", None), {"prompt": "a"})
    message, _ = hear(dealer)
    assert isinstance(message, Error)
    assert (message.id, message.code) == (0, "protocol_error")
    assert "HELLO" in message.message
    assert serves_others(echo)


def test_client_of_another_protocol_is_told_both_versions(echo: LLM, dealer: Dealer) -> None:
    say(dealer, Hello([77, 78], "9.9.9"))
    message, _ = hear(dealer)
    assert isinstance(message, Error)
    assert (message.id, message.code) == (0, "protocol_error")
    for part in (f"protocol {PROTOCOL_VERSION}", "77", "9.9.9"):
        assert part in message.message
    assert serves_others(echo)


def test_client_may_offer_several_protocol_versions(echo: LLM, dealer: Dealer) -> None:
    say(dealer, Hello([77, PROTOCOL_VERSION], "9.9.9"))
    message, limits = hear(dealer)
    assert isinstance(message, Welcome)
    assert message.version == PROTOCOL_VERSION
    assert isinstance(limits, dict)
    assert limits["max_frame"] == MAX_FRAME


def test_random_frames_from_an_admitted_client_disturb_nobody(echo: LLM, dealer: Dealer) -> None:
    admitted(dealer)
    source = random.Random(7)
    for _ in range(300):
        frames = [source.randbytes(source.randrange(64)) for _ in range(source.randrange(1, 5))]
        dealer.send_multipart(frames)
    assert serves_others(echo)


def test_mutated_messages_from_an_admitted_client_disturb_nobody(echo: LLM, dealer: Dealer) -> None:
    admitted(dealer)
    source = random.Random(8)
    args = {"prompt": "abc", "sampling_params": {"max_tokens": 2}}
    messages = [
        encode(Call(1, "echo", "generate", 1000, window=2), pack(args)),
        encode(Call(1, "", "load", 1000), pack({"model": "echo"})),
        encode(Credit(1, 1)),
        encode(Hello([PROTOCOL_VERSION], "again")),
    ]
    for _ in range(500):
        frames = [bytearray(frame) for frame in source.choice(messages)]
        frame = source.choice(frames)
        frame[source.randrange(len(frame))] = source.randrange(256)
        dealer.send_multipart(frames)
    assert serves_others(echo)


def test_message_that_is_not_a_clients_is_refused(echo: LLM, dealer: Dealer) -> None:
    say(admitted(dealer), Result(1))
    message, _ = hear(dealer)
    assert isinstance(message, Error)
    assert message.code == "protocol_error"
    assert "RESULT" in message.message
    assert serves_others(echo)


def test_too_large_a_frame_ends_its_connection_and_no_other(
    shared_pool: Pool, echo: LLM, dealer: Dealer
) -> None:
    admitted(dealer)
    before = shared_pool.status()["supervisor"]["clients"]
    dealer.send_multipart([*encode(Call(1, "echo", "echo", None)), bytes(MAX_FRAME + 1)])
    eventually(lambda: shared_pool.status()["supervisor"]["clients"] == before - 1)
    assert serves_others(echo)


def test_too_large_a_payload_is_refused(echo: LLM, dealer: Dealer) -> None:
    admitted(dealer)
    payload = bytes(17 * 2**20)
    dealer.send_multipart([encode(Call(1, "echo", "echo", None))[0], payload])
    message, _ = hear(dealer)
    assert isinstance(message, Error)
    assert message.code in ("protocol_error", "invalid_request")
    assert serves_others(echo)


def test_stream_on_the_wire_has_no_gaps_and_one_end(echo: LLM, dealer: Dealer) -> None:
    admitted(dealer)
    args = {"prompt": "abc", "sampling_params": {"max_tokens": 100, "ignore_eos": True}}
    say(dealer, Call(7, "echo", "generate", 10_000, window=1000), args)
    numbers, ends, text = [], 0, ""
    while not ends:
        message, values = hear(dealer)
        assert isinstance(values, list)
        match message:
            case Items(entries):
                assert [call for call, _ in entries] == [7]
                numbers += [sequence for _, sequence in entries]
                text += values[0]["outputs"][0]["text"]
            case End(entries):
                ends += 1
                assert entries == [[7, 1]]
            case _:
                raise AssertionError(message)
    say(dealer, Ping(3))
    assert hear(dealer)[0] == Pong(3), "nothing more came before it"
    assert numbers == list(range(len(numbers)))
    assert len(text) == 100


def test_call_id_that_is_open_already_is_refused_and_the_first_goes_on(
    echo: LLM, dealer: Dealer
) -> None:
    admitted(dealer)
    args = {"prompt": "abc", "sampling_params": {"max_tokens": 200, "ignore_eos": True}}
    say(dealer, Call(7, "echo", "generate", 10_000), args)
    say(dealer, Call(7, "echo", "generate", 10_000), args)
    refused, _ = hear(dealer)
    assert isinstance(refused, Error)
    assert (refused.id, refused.code) == (7, "protocol_error")
    answer, values = hear(dealer)
    assert isinstance(answer, End)
    assert answer.entries == [[7, 1]]
    assert isinstance(values, list)
    assert len(values[0]["outputs"][0]["text"]) == 200


def test_client_that_says_bye_is_forgotten(shared_pool: Pool, echo: LLM, dealer: Dealer) -> None:
    admitted(dealer)
    before = shared_pool.status()["supervisor"]["clients"]
    say(dealer, Bye())
    eventually(lambda: shared_pool.status()["supervisor"]["clients"] == before - 1)


def test_nothing_that_follows_a_bye_in_its_bundle_is_done(
    shared_pool: Pool, echo: LLM, dealer: Dealer
) -> None:
    """What it asked for would be nobody's, and count for no quota."""
    admitted(dealer)
    before = shared_pool.status()["counters"]["calls"]
    call = encode(Call(1, "echo", "echo", None), pack({}))
    ((_, frames),) = bundled([encode(Bye()), call, call])
    dealer.send_multipart(frames)
    eventually(lambda: shared_pool.status()["supervisor"]["clients"] == 1)
    assert shared_pool.status()["counters"]["calls"] == before
    assert serves_others(echo)


def test_client_that_does_not_read_is_dropped_and_others_are_served(
    context: zmq.Context[Dealer],
) -> None:
    """What waits for one client is bounded, beyond what its socket takes."""
    with Pool(policy={"max_client_bytes": 1 << 20}) as pool, pool.llm("echo") as llm:
        deaf = context.socket(zmq.DEALER)
        deaf.setsockopt(zmq.RCVHWM, 1)
        deaf.setsockopt(zmq.SNDTIMEO, 1000)
        deaf.connect(pool.endpoint)
        admitted(deaf)
        assert pool.status()["supervisor"]["clients"] == 2
        with contextlib.suppress(zmq.Again):  # nobody takes them any more
            for call_id in range(1, 3001):
                say(deaf, Call(call_id, "echo", "echo", None), {"value": "x" * 10_000})
        eventually(lambda: pool.status()["supervisor"]["clients"] == 1)
        assert llm.tokenize("a") == [97]
        deaf.close(linger=0)


def test_pool_that_restarted_at_the_same_place_is_found_again(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllmport.pool.client.pool.RECONNECT", 0.5)  # seconds until it is given up
    with (
        serving(endpoint, "--model", "echo") as first,
        Pool.connect(endpoint) as pool,
        pool.llm(name="echo") as llm,
    ):
        everybody = family(pool)
        first.kill()
        eventually(lambda: all_gone(everybody))
        with pytest.raises((ConnectFailed, PoolLost)):
            llm.generate("a")
        with serving(endpoint, "--model", "echo"):
            assert llm.generate("a")[0].outputs[0].text == "a"


# Coming in.


def test_many_clients_come_and_go_while_the_pool_is_busy(shared_pool: Pool, echo: LLM) -> None:
    """Descriptors are reused at once: no end of one connection may be taken for another's."""
    done = threading.Event()

    def keep_busy() -> None:
        while not done.is_set():
            echo.tokenize("busy")

    def visit(_: int) -> bool:
        with Pool.connect(shared_pool.endpoint) as pool:
            for _ in range(3):
                pool.call("status", {}, timeout=5)
            return True

    with ThreadPoolExecutor(10) as executor:
        busy = [executor.submit(keep_busy) for _ in range(4)]
        try:
            assert all(executor.map(visit, range(120)))
        finally:
            done.set()
        for future in busy:
            future.result()


@pytest.fixture
def clients(context: zmq.Context[Dealer], door: Path) -> Iterator[Clients]:
    """The supervisor's front socket alone, so that a test decides when its reports are read."""
    front = Clients(context, f"ipc://{door}", 1 << 20)
    yield front
    front.socket.disable_monitor()
    front.socket.close(linger=0)


def come_in(own: Dealer, clients: Clients) -> Client:
    """Say HELLO and be let in."""
    say(own, HELLO)
    assert clients.socket.poll(WAIT_MS)
    received = clients.receive()
    assert received is not None
    identity, known, _, first = received
    assert known is None
    assert first is not None
    return clients.admit(identity, first, 1)[0]


def test_end_of_an_earlier_connection_is_not_taken_for_the_next_ones(
    context: zmq.Context[Dealer], clients: Clients, door: Path
) -> None:
    """The kernel gives the next connection the same descriptor."""
    with connected(context, f"ipc://{door}") as guest:
        clients.forget(come_in(guest, clients))  # as after BYE
    assert clients.monitor.poll(WAIT_MS), "its end is reported, but not read yet"
    with connected(context, f"ipc://{door}") as guest:
        client = come_in(guest, clients)
        assert client not in clients.disconnected()


def test_second_pool_at_the_same_place_is_refused(shared_pool: Pool, echo: LLM) -> None:
    with ThreadPoolExecutor(1) as executor:
        served = executor.submit(vllmport, "serve", "--endpoint", shared_pool.endpoint)
        with pytest.raises(StartupFailed, match="a pool is running at") as caught:
            Pool(endpoint=shared_pool.endpoint)
        assert shared_pool.endpoint in str(caught.value)
        assert served.result().returncode == 6
        assert shared_pool.endpoint in served.result().stderr
    assert serves_others(echo)


def test_nothing_at_the_endpoint_says_where_and_what_to_do(endpoint: str) -> None:
    with pytest.raises(ConnectFailed, match="vllmport serve") as caught:
        Pool.connect(endpoint)
    assert endpoint in str(caught.value)
    assert caught.value.details["endpoint"] == endpoint
    assert (caught.value.phase, caught.value.retryable) == ("connect", True)


async def test_nothing_at_the_endpoint_from_a_coroutine(endpoint: str) -> None:
    with pytest.raises(ConnectFailed):
        await AsyncPool.connect(endpoint)


def test_something_else_at_the_endpoint_is_said_after_a_while(door: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(door))
        other.listen()
        with pytest.raises(ConnectFailed, match="nobody answered"):
            Connection(f"ipc://{door}", timeout=0.3)


def test_peer_that_speaks_another_protocol_is_a_protocol_error(
    context: zmq.Context[Dealer], door: Path
) -> None:
    router = context.socket(zmq.ROUTER)
    router.bind(f"ipc://{door}")

    def answer() -> None:
        identity = router.recv_multipart()[0]
        router.send_multipart([identity, b"what?", b"who?"])

    with ThreadPoolExecutor(1) as executor:
        executor.submit(answer)
        with pytest.raises(ProtocolError):
            Connection(f"ipc://{door}", timeout=5)
    router.close(linger=0)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1", "tcp://127.0.0.1:0", "ipc://relative", "/tmp/x.sock"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match=r"an endpoint looks like|a port is") as caught:
        Pool.connect(endpoint)
    assert caught.value.parameter == "endpoint"


def test_endpoint_comes_from_the_environment(
    shared_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLMPORT_ENDPOINT", shared_pool.endpoint)
    with Pool.connect() as pool:
        assert pool.endpoint == shared_pool.endpoint
        assert pool.status()["supervisor"]["pid"] == shared_pool.status()["supervisor"]["pid"]
    assert vllmport("status").returncode == 0


def test_only_this_user_can_reach_the_socket(shared_pool: Pool) -> None:
    path = Path(shared_pool.endpoint.removeprefix("ipc://"))
    for folder in (path.parent, path.parent.parent, path.parent / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        assert folder.stat().st_uid == os.getuid()
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == 0o600


def test_folder_that_others_may_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllmport").mkdir(mode=0o700)
    (tmp_path / "vllmport").chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(InvalidRequest, match="chmod 700") as caught:
        Pool()
    assert caught.value.parameter == "endpoint"
    with pytest.raises(InvalidRequest, match="chmod 700"):
        Pool.connect()
    assert vllmport("serve").returncode != 0
