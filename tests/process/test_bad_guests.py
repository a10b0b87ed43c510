"""Guests on TCP that do no good: whatever they do, others are served."""

import contextlib
import itertools
import os
import signal
import socket
import time
from typing import Any

import psutil
import pytest
import zmq

from processes import PATIENCE, endless, eventually, script, unfinished
from tcp_service import ECHO, Connect, Served, serves_others
from vllmport.bridge.codec import pack
from vllmport.bridge.limits import MAX_FRAME, MAX_PACKET
from vllmport.bridge.messages import Bye, Call, Error, Ping, Pong, encode
from vllmport.pool import LLM, Pool
from vllmport.pool.supervisor.clients import Clients
from vllmport.pool.supervisor.hangups import HELLO_TIME

GREETING = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x01CURVE" + b"\x00" * 15 + b"\x00" + b"\x00" * 31
"""How ZMTP begins: signature, version 3.1, mechanism, as client."""

PLAIN = GREETING.replace(b"CURVE", b"NULL\0") + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
LONG_FRAME = b"\x03" + (1 << 20).to_bytes(8, "big")
"""The beginning without encryption, and that of a frame which is not the last of its message."""

BEGINNINGS = [b"", GREETING[:1], GREETING, GREETING + b"\x04\xc8\x05HELLO\x01"]
"""Nothing, a byte, a greeting, half of the first command of a handshake."""

MIB = 1 << 20


@pytest.fixture(scope="module")
def settings() -> str:
    """The service keeps 1 MiB for a client that does not read."""
    return f"[policy]\nmax_client_bytes = {MIB}\n{ECHO}"


def memory(pool: Pool) -> int:
    """Return how many bytes the supervisor has."""
    return int(psutil.Process(pool.status()["supervisor"]["pid"]).memory_info().rss)


def status(llm: LLM) -> dict[str, Any]:
    """Return what the supervisor says of itself."""
    found: dict[str, Any] = llm._pool.status()["supervisor"]
    return found


def descriptors(pool: Pool) -> int:
    return psutil.Process(pool.status()["supervisor"]["pid"]).num_fds()


def reasons(pool: Pool) -> list[str]:
    """Return why the latest clients went."""
    found = []
    with pool.events(last=100) as stream, contextlib.suppress(TimeoutError):
        while (event := stream.get(0.3)) is not None:
            if event["event"] == "client.gone":
                found.append(str(event["reason"]))
    return found


# Those that say too little.


def test_half_open_connections_are_closed_and_disturb_nobody(served: Served, guest: LLM) -> None:
    before = descriptors(guest._pool)
    with contextlib.ExitStack() as silent:
        half = [silent.enter_context(socket.create_connection(served.address)) for _ in range(100)]
        for own, said in zip(half, itertools.cycle(BEGINNINGS)):  # as many as there are
            own.sendall(said)
        assert serves_others(guest)
        for own in half:
            own.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                while own.recv(1024):  # its greeting, and then the end
                    pass
    eventually(lambda: descriptors(guest._pool) <= before)
    assert serves_others(guest)


def test_a_key_alone_does_not_keep_a_connection_open(guest: LLM, connect: Connect) -> None:
    """All of the handshake of ZeroMQ, and no HELLO. After it a client may be silent."""
    known = connect("guest").admitted()
    silent = [connect("guest") for _ in range(20)]
    assert serves_others(guest)
    assert all(own.was_ended(2 * HELLO_TIME) for own in silent)
    assert not known.was_ended(1)
    known.say(Ping(7))
    assert known.hear()[0] == Pong(7)
    assert serves_others(guest)


def test_who_takes_leave_and_stays_is_shown_out(guest: LLM, connect: Connect) -> None:
    own = connect("guest").admitted()
    own.say(Bye("going"))
    assert own.was_ended()
    assert serves_others(guest)


def test_a_client_that_stops_in_the_middle_of_all_disturbs_nobody(
    served: Served, guest: LLM
) -> None:
    """It is stopped and not gone: what it asked for is kept for it, within its bounds."""
    args = (served.endpoint, served.server.public, str(served.folder / "guest.key"))
    with script(STREAMS, *args) as client:
        eventually(lambda: unfinished(guest._pool) == 1)
        os.kill(client.pid, signal.SIGSTOP)
        assert serves_others(guest)
        os.kill(client.pid, signal.SIGKILL)
    eventually(lambda: unfinished(guest._pool) == 0)


STREAMS = """
import sys
from vllmport.pool import Pool
endpoint, server_key, key = sys.argv[1:]
with Pool.connect(endpoint, server_key=server_key, key=key) as pool, pool.llm(name="echo") as llm:
    for delta in llm.stream("abc", {"max_tokens": 10**6, "ignore_eos": True}):
        pass
"""


# Those that say too much.


def test_too_large_a_frame_ends_its_connection_and_no_other(guest: LLM, connect: Connect) -> None:
    own = connect("guest").admitted()
    header = bytes(encode(Call(1, "echo", "echo", None))[0])
    own.socket.send_multipart([header, b"\xc0", bytes(MAX_FRAME + 1)])
    assert own.was_ended()
    assert serves_others(guest)


def test_a_message_without_an_end_is_ended() -> None:
    """ZeroMQ keeps the frames of a message until the last one is there; so this speaks by hand."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with zmq.Context() as context:
        door = Clients(context, f"tcp://{address[0]}:{address[1]}", MIB)
        with socket.create_connection(address) as own:
            own.sendall(PLAIN)
            sent = poured(own, door)
        door.socket.disable_monitor()
        context.destroy(linger=0)
    assert MAX_PACKET <= sent < 4 * MAX_PACKET


def poured(own: socket.socket, door: Clients) -> int:
    """Send frames of one message while the connection holds; return how many bytes."""
    for number in range(4 * MAX_PACKET // MIB):
        try:
            own.sendall(LONG_FRAME + bytes(MIB))
        except ConnectionError:
            return number * MIB
        door.disconnected()
        door.unwelcome(time.monotonic())
        door.hang_up(time.monotonic())
        time.sleep(0.005)  # a line of 200 MB/s
    return 4 * MAX_PACKET


def test_a_flood_of_calls_lets_others_be_served(guest: LLM, connect: Connect) -> None:
    own = connect("small").admitted()
    payload = pack({"prompt": "a", "sampling_params": endless()}).payload
    for number in range(1, 5001):
        own.say(Call(number, "echo", "generate", None), payload)
    assert serves_others(guest)
    own.socket.close(linger=0)
    eventually(lambda: unfinished(guest._pool) == 0)


def test_a_flood_of_connections_without_a_key_lets_others_be_served(
    guest: LLM, connect: Connect
) -> None:
    strangers = [connect("stranger") for _ in range(100)]
    assert serves_others(guest)
    assert all(own.was_ended() for own in strangers)
    assert serves_others(guest)


# Those that do not listen.


def test_a_client_that_does_not_read_is_cut_off_with_a_reason(guest: LLM, connect: Connect) -> None:
    """What waits for it is bounded, in ZeroMQ as well: by bytes, and not by messages alone."""
    before = memory(guest._pool)
    own = connect("guest").admitted()
    there = status(guest)["clients"]
    payload = pack({"value": "x" * (MIB // 2)}).payload
    for number in range(1, 401):
        own.say(Call(number, "echo", "echo", None), payload)
        if status(guest)["clients"] < there:
            break
    eventually(lambda: status(guest)["clients"] < there)
    assert memory(guest._pool) < before + 100 * MIB
    assert "does not read" in " ".join(reasons(guest._pool))
    assert serves_others(guest)


def test_a_client_that_floods_and_does_not_read_is_cut_off(guest: LLM, connect: Connect) -> None:
    before = memory(guest._pool)
    own = connect("guest").admitted()
    there = status(guest)["clients"]
    with contextlib.suppress(zmq.Again):  # nobody takes them any more
        for number in range(1_000_000):
            own.say(Ping(number))
            if number % 5000 == 0 and status(guest)["clients"] < there:
                break
    eventually(lambda: status(guest)["clients"] < there)
    assert memory(guest._pool) < before + 100 * MIB
    assert serves_others(guest)


def test_a_client_that_reads_slowly_gets_all_of_it(guest: LLM, connect: Connect) -> None:
    """More than may wait for it, a message at a time."""
    own = connect("guest").admitted()
    payload = pack({"value": "x" * (MIB // 2)}).payload
    for number in range(1, 31):
        own.say(Call(number, "echo", "echo", None), payload)
        message, _ = own.hear()
        assert not isinstance(message, Error), message
    assert serves_others(guest)
