"""The front: what clients say, given to the deciders; and how clients come and go."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq

from vllmport.bridge import limits
from vllmport.bridge.bundles import FULL, FULL_BYTES, unbundled
from vllmport.bridge.codec import Bytes, Packed, pack
from vllmport.bridge.errors import (
    Overloaded,
    PermissionDenied,
    PoolClosed,
    ProtocolError,
    VllmportError,
)
from vllmport.bridge.messages import (
    Bye,
    Call,
    Cancel,
    Credit,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
    decode,
    encode,
    error_message,
)
from vllmport.pool.supervisor.access import OWNER, Guest, Usage, forbidden, sum_of, too_much
from vllmport.pool.supervisor.clients import Client, Clients
from vllmport.pool.supervisor.deciders import Deciders

logger = logging.getLogger("vllmport.supervisor")

BATCH: Final = 256
"""Messages or bundles taken from one socket before the others get their turn."""


class Front:
    """Clients on one side, the deciders on the other.

    Args:
        clients: Their socket.
        welcome: What a new client is told.
        timeouts: What it is told of time-outs.
        act: Called after some messages, to do what was decided.
    """

    def __init__(
        self,
        clients: Clients,
        deciders: Deciders,
        welcome: Welcome,
        timeouts: Mapping[str, Any],
        act: Callable[[float], None],
    ) -> None:
        self.stopping = False
        self._clients = clients
        self._dispatcher = deciders.dispatcher
        self._control = deciders.control
        self._fleet = deciders.fleet
        self._events = deciders.events
        self._welcome = welcome
        self._terms = {**_limits(), "timeouts": dict(timeouts)}
        self._act = act

    def on_messages(self) -> None:
        """Take what clients sent."""
        for count in range(1, BATCH + 1):
            received = self._clients.receive()
            if received is None:
                break
            identity, client, frames, first = received
            try:
                if client is None:
                    assert first is not None, "an unknown identity comes with its first frame"
                    self._on_stranger(identity, decode(frames)[0], first)
                else:
                    self._on_client(client, frames)
            except (ProtocolError, PermissionDenied, Overloaded) as exc:
                logger.info("client=%s bad message: %s", client.key if client else "?", exc)
                self._clients.send_to_stranger(identity, error_frames(exc))
            except Exception:  # outermost: one message must not end the pool
                logger.exception("client=%s message lost", client.key if client else "?")
                self._clients.send_to_stranger(
                    identity, error_frames(ProtocolError("not understood"))
                )
            if not self._clients.has_more():
                break
            if len(frames[-1]) > FULL_BYTES or not count % FULL:
                self._act(time.monotonic())
        self._act(time.monotonic())

    def on_disconnects(self) -> None:
        """Take note of the connections that ended."""
        self._forget_all(self._clients.disconnected())
        self._act(time.monotonic())

    def send(self, key: int, frames: list[Bytes]) -> None:
        """Send to a client; one that cannot be reached is cut off."""
        lost = self._clients.send(key, frames)
        if lost is not None:
            self.drop(lost, "it is gone or does not read")

    def drop(self, client: Client, why: str) -> None:
        """Cut a client off, and abort what it left."""
        self._clients.forget(client)
        self._forget(client, why)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        return self._clients.next_deadline()

    def tick(self, now: float) -> None:
        """Cut off who may not stay, and end the connections of those who do not leave."""
        for client, why in self._clients.unwelcome(now):
            self._clients.send_to_stranger(client.identity, error_frames(why))
            self.drop(client, str(why))
        self._forget_all(self._clients.hang_up(now))

    # Inside.

    def _on_stranger(self, identity: bytes, message: Message, first: zmq.Frame) -> None:
        if isinstance(message, Bye):
            return  # its connection has gone already
        if not isinstance(message, Hello):
            raise ProtocolError("say HELLO first: this pool does not know the connection")
        if limits.PROTOCOL_VERSION not in message.versions:
            raise ProtocolError(
                f"this pool speaks protocol {limits.PROTOCOL_VERSION} "
                f"(vllmport {self._welcome.product}), "
                f"the client {message.versions} ({message.product}); install matching versions"
            )
        self._forget_all(self._clients.disconnected())  # who has left makes room
        client, gone = self._clients.admit(identity, first, message.pid)
        self._forget_all(gone)
        logger.info("client=%d connected pid=%d name=%s", client.key, message.pid, message.name)
        self._events.add("client.connected", client=client.key, pid=message.pid, name=message.name)
        self.send(client.key, encode(self._welcome, pack(self._terms)))

    def _on_client(self, client: Client, frames: list[bytes]) -> None:
        now = time.monotonic()
        for message, (_, payload, *buffers) in unbundled(frames):
            if client not in self._clients:
                return  # it left, or was cut off, in the middle of a bundle
            self._take(client, message, Packed(bytes(payload), buffers), now)

    def _take(self, client: Client, message: Message, packed: Packed, now: float) -> None:
        match message:
            case Call():
                error = self._refusal(client, message, packed)
                if error is not None:
                    self.send(client.key, error_frames(error, message.id, message.request_id))
                elif message.model:
                    self._dispatcher.call(client.key, message, packed, now, client.guest.name)
                else:
                    self._control.call(client.key, message, packed, now)
            case Cancel(call_id):
                self._dispatcher.cancel(client.key, call_id, now)
                self._control.cancel(client.key, call_id, now)
            case Credit(call_id, count):
                self._dispatcher.credit(client.key, call_id, count)
            case Ping(token):
                self.send(client.key, encode(Pong(token)))
            case Bye():
                self.drop(client, "it left")
            case _:
                raise ProtocolError(f"a client sends no {type(message).__name__.upper()}")

    def _refusal(self, client: Client, call: Call, packed: Packed) -> VllmportError | None:
        """Return why a call goes no further, None if it does."""
        if client.guest is not OWNER:
            error = self._access_error(client.guest, call, packed)
            if error is not None:
                return error
        if self.stopping and (call.model or call.verb in ("load", "restart")):
            return PoolClosed("the pool is shutting down")
        return None

    def _access_error(self, guest: Guest, call: Call, packed: Packed) -> VllmportError | None:
        try:
            error = forbidden(guest, call, packed)
        except ProtocolError as exc:
            return exc
        size = len(packed.payload) + sum(map(len, packed.buffers))
        used = sum_of(map(self._used_by, self._clients.of(guest)))
        return error or too_much(guest, used, call, size)

    def _used_by(self, client: int) -> Usage:
        waiting = self._control.waiting_for(client)
        return sum_of([self._dispatcher.held_by(client), Usage(waiting, 0, 0)])

    def _forget_all(self, gone: list[Client]) -> None:
        for client in gone:
            self._forget(client, "disconnected")

    def _forget(self, client: Client, why: str) -> None:
        logger.info("client=%d gone pid=%d: %s", client.key, client.pid, why)
        self._events.add("client.gone", client=client.key, pid=client.pid, reason=why)
        now = time.monotonic()
        self._dispatcher.client_gone(client.key, now)
        self._control.client_gone(client.key)
        self._fleet.client_gone(client.key, now)


def error_frames(error: VllmportError, call_id: int = 0, request_id: str = "") -> list[Bytes]:
    """Encode an error that answers a client."""
    return encode(error_message(error, call_id), pack(error.details_for(request_id)))


def _limits() -> dict[str, int]:
    return {
        "max_header": limits.MAX_HEADER,
        "max_payload": limits.MAX_PAYLOAD,
        "max_frame": limits.MAX_FRAME,
        "max_buffers": limits.MAX_BUFFERS,
    }
