"""What is said at one time travels together: the client, and a socket that only listens."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from vllmport.bridge.bundles import FULL, unbundled
from vllmport.bridge.codec import pack
from vllmport.bridge.errors import Overloaded, VllmportError
from vllmport.bridge.limits import PROTOCOL_VERSION
from vllmport.bridge.messages import Call, Message, Result, Welcome, encode
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.loop import LoopMailbox
from vllmport.pool.client.mailbox import Done, Event, Failed, ThreadMailbox

CALL = Call(0, "m", "v", None)
WAIT_MS = 5000


class Listener:
    """Says WELCOME, then notes what arrives, message by message."""

    def __init__(self, path: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.bind(f"ipc://{path}")
        self.identity = b""
        with ThreadPoolExecutor(1) as executor:
            executor.submit(self._welcome)
            self.connection = Connection(f"ipc://{path}", timeout=5)

    def _welcome(self) -> None:
        self.identity = self.socket.recv_multipart()[0]
        self.say(encode(Welcome(PROTOCOL_VERSION, "test", "e", 1), pack({})))

    def say(self, frames: list[bytes | bytearray | memoryview]) -> None:
        self.socket.send_multipart([self.identity, *frames])

    def arrived(self, count: int) -> list[list[Message]]:
        """Return the messages of so many arrivals."""
        found: list[list[Message]] = []
        for _ in range(count):
            assert self.socket.poll(WAIT_MS), f"only {len(found)} came"
            _, *frames = self.socket.recv_multipart()
            found.append([message for message, _ in unbundled(frames)])
        return found

    def close(self) -> None:
        self.connection.close()
        self._context.destroy(linger=0)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "s")
    yield listener
    listener.close()


def ids(messages: list[Message]) -> list[int]:
    return [message.id for message in messages if isinstance(message, Call)]


def test_calls_that_have_more_to_come_are_sent_together(listener: Listener) -> None:
    mailbox = ThreadMailbox()
    sent = [listener.connection.submit(CALL, {}, 60, mailbox, more=True) for _ in range(FULL + 3)]
    listener.connection.flush()
    assert [ids(messages) for messages in listener.arrived(2)] == [sent[:FULL], sent[FULL:]]


def test_a_lone_call_is_sent_at_once(listener: Listener) -> None:
    sent = listener.connection.submit(CALL, {}, 60, ThreadMailbox())
    assert [ids(messages) for messages in listener.arrived(1)] == [[sent]]


def test_whoever_waits_has_it_sent(listener: Listener) -> None:
    mailbox = ThreadMailbox()
    sent = listener.connection.submit(CALL, {}, 60, mailbox, more=True)
    assert not listener.socket.poll(100)
    with ThreadPoolExecutor(1) as executor:
        event = executor.submit(listener.connection.wait, mailbox, 5)
        assert ids(listener.arrived(1)[0]) == [sent]
        listener.say(encode(Result(sent), pack("yes")))
        assert event.result(5) == Done(sent, "yes", 0)


def test_a_large_call_goes_at_once_and_keeps_its_place(listener: Listener) -> None:
    mailbox = ThreadMailbox()
    large = {"data": b"." * 100_000}
    sent = [listener.connection.submit(CALL, args, 60, mailbox, more=True) for args in ({}, large)]
    assert [ids(messages) for messages in listener.arrived(2)] == [[sent[0]], [sent[1]]]


async def test_calls_of_one_turn_of_the_loop_are_sent_together(listener: Listener) -> None:
    async def call() -> tuple[Event | None, int]:
        mailbox = LoopMailbox()
        number = listener.connection.submit(CALL, {}, 60, mailbox)
        return (await mailbox.get(5), number)

    tasks = [asyncio.ensure_future(call()) for _ in range(10)]
    (messages,) = await asyncio.to_thread(listener.arrived, 1)
    assert len(ids(messages)) == 10
    for number in ids(messages):
        listener.say(encode(Result(number), pack(number)))
    for event, number in await asyncio.gather(*tasks):
        assert event == Done(number, number, 0)


def test_what_the_pool_does_not_take_fails_alone(listener: Listener) -> None:
    """Nobody reads: the socket's own queue fills, and then the calls are refused one by one."""
    mailbox = ThreadMailbox()
    large = {"data": b"." * 20_000}
    calls = [listener.connection.submit(CALL, large, 60, mailbox) for _ in range(6000)]
    refused: list[VllmportError] = []
    while not mailbox.empty():
        event = mailbox.get()
        assert isinstance(event, Failed)
        refused.append(event.error)
    assert 0 < len(refused) < len(calls)
    assert all(isinstance(error, Overloaded) and error.retry_after for error in refused)
    arrived = [
        number
        for messages in listener.arrived(len(calls) - len(refused))
        for number in ids(messages)
    ]
    assert len(arrived) == len(calls) - len(refused)
    assert arrived == sorted(arrived)
