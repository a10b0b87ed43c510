"""Who is connected, and what waits for those who read slowly.

Owns the front socket. Gives each connection a number that is never used again; the rest of the
supervisor knows clients by it.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import struct
import termios
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import zmq

from vllmport.bridge.codec import Bytes
from vllmport.bridge.errors import PermissionDenied, ProtocolError, VllmportError
from vllmport.bridge.limits import MAX_FRAME
from vllmport.pool.endpoint import is_tcp
from vllmport.pool.supervisor.access import OWNER, Guest, too_many
from vllmport.pool.supervisor.door import Door
from vllmport.pool.supervisor.hangups import HangUps
from vllmport.pool.supervisor.sockets import DONT_WAIT, has_message, send

logger = logging.getLogger("vllmport.supervisor")

_MONITOR_EVENT = struct.Struct("=hi")
"""First frame of a monitor's message: event and value, here the descriptor of the connection."""


_OVERHEAD: Final = 256
"""Bytes that a message takes besides its own."""


@dataclass(slots=True)
class Client:
    """One connection that said HELLO.

    `handed_bytes` were given to ZeroMQ since it was last seen to have sent all that it had.
    """

    key: int
    identity: bytes
    fd: int
    pid: int
    guest: Guest = OWNER
    waiting: deque[list[Bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    handed_bytes: int = 0


class Clients:
    """The front socket and its connections.

    Args:
        context: Where the socket belongs.
        endpoint: Where to listen.
        max_bytes: Bytes that may wait for one client that does not read.
        door: Who guards it, where that is not the file system.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        max_bytes: int,
        door: Door | None = None,
    ) -> None:
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        socket.setsockopt(zmq.SNDHWM, 1000)
        socket.setsockopt(zmq.RCVHWM, 1000)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.BACKLOG, 4096)  # a full one looks like a dead pool to who connects
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20000)
        self.socket = socket
        self.monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        if door is not None:
            door.guard(socket)
        self._door = door
        self._unread = True
        self._max_bytes = max_bytes
        self._keys = itertools.count(1)
        self._by_identity: dict[bytes, Client] = {}
        self._by_key: dict[int, Client] = {}
        self._by_fd: dict[int, Client] = {}
        self._slow: dict[int, Client] = {}
        self._hangups = HangUps(over_tcp=is_tcp(endpoint))
        socket.bind(endpoint)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, client: Client) -> bool:
        return client.key in self._by_key

    @property
    def slow(self) -> bool:
        """Whether messages wait for somebody who does not read."""
        return bool(self._slow)

    def has_more(self) -> bool:
        """Tell whether a message is there; sending may have swallowed the news of it."""
        self._unread = self._unread and has_message(self.socket)
        return self._unread

    def receive(self) -> tuple[bytes, Client | None, list[bytes], zmq.Frame | None] | None:
        """Receive one message: its identity, the client if it is known, its frames.

        For an unknown identity the first frame comes as well, to see who it is from.

        Returns:
            None if there is none.
        """
        try:
            identity = self.socket.recv(DONT_WAIT)
        except zmq.Again:
            self._unread = False
            return None
        self._unread = True
        client = self._by_identity.get(identity)
        if client is not None:
            self._hangups.heard(client.fd)
            return identity, client, self.socket.recv_multipart(), None
        first: zmq.Frame | None = None
        frames: list[bytes] = []
        while self.socket.getsockopt(zmq.RCVMORE):
            if first is None:
                first = self.socket.recv(copy=False)
                frames.append(first.bytes)
            else:
                frames.append(self.socket.recv())
        if first is not None:
            with contextlib.suppress(zmq.ZMQError):  # it speaks an older ZMTP, and has no HELLO
                self._hangups.heard(int(first.get(zmq.SRCFD)))
        return identity, None, frames, first

    def admit(self, identity: bytes, frame: zmq.Frame, pid: int) -> tuple[Client, list[Client]]:
        """Take a new client in; also return those whose connections have ended meanwhile.

        The transport reports the end of a connection before it closes the descriptor, and so before
        another connection can have the same one: once all reports are read, `fd` is this one's.

        Raises:
            PermissionDenied: It belongs to another user, or its key is not known any more.
            Overloaded: Its key has as many connections as it may.
        """
        if self._door is None:
            guest = _check_user(str(frame.get("Peer-Address")))
        else:
            guest = self._door.guest(str(frame.get("User-Id")))
        if error := too_many(guest, len(self.of(guest))):
            raise error
        gone = self.disconnected()
        client = Client(next(self._keys), identity, int(frame.get(zmq.SRCFD)), pid, guest)
        self._by_identity[identity] = self._by_key[client.key] = self._by_fd[client.fd] = client
        self._hangups.welcomed(client.fd)
        return client, gone

    def disconnected(self) -> list[Client]:
        """Return the clients whose connections ended since the last time, already forgotten."""
        gone = []
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            what, fd = _MONITOR_EVENT.unpack(self.monitor.recv_multipart()[0])
            if what == zmq.EVENT_ACCEPTED:
                self._hangups.began(fd, time.monotonic())
                continue
            self._hangups.ended(fd)
            client = self._by_fd.get(fd)
            if client is not None:
                self.forget(client)
                gone.append(client)
        return gone

    def of(self, guest: Guest) -> list[int]:
        """Return the connections of a guest."""
        return [key for key, client in self._by_key.items() if client.guest.key == guest.key]

    def next_deadline(self) -> float:
        """Return when connections have to be looked at."""
        due = self._hangups.next_deadline()
        return min(due, self._door.next_look) if self._door is not None else due

    def unwelcome(self, now: float) -> list[tuple[Client, VllmportError]]:
        """Return the clients that may not stay, and why; the others get the rights of now."""
        found: list[tuple[Client, VllmportError]] = []
        for fd in self._hangups.endless(now):
            self._hangups.end_soon(fd, now)
            if client := self._by_fd.get(fd):
                found.append((client, ProtocolError("its message has no end")))
        if self._door is not None and self._door.look_again(now):
            for client in self._by_key.values():
                try:
                    client.guest = self._door.guest(client.guest.key)
                except PermissionDenied as exc:
                    found.append((client, exc))
        return found

    def hang_up(self, now: float) -> list[Client]:
        """End the connections that are due; return those that have ended meanwhile."""
        gone: list[Client] = []
        self._hangups.end_due(now, lambda: gone.extend(self.disconnected()))
        return gone

    def forget(self, client: Client) -> None:
        """Drop a client and what waits for it; if it does not leave, it is made to."""
        self._hangups.end_soon(client.fd, time.monotonic())
        self._by_identity.pop(client.identity, None)
        self._by_key.pop(client.key, None)
        self._by_fd.pop(client.fd, None)
        self._slow.pop(client.key, None)
        client.waiting.clear()

    def send(self, key: int, frames: list[Bytes]) -> Client | None:
        """Send to a client; keep the message if its queue is full.

        Returns:
            The client if it has to be cut off: it is gone, or too much waits for it.
        """
        client = self._by_key.get(key)
        if client is None:
            return None
        if client.waiting:
            return self._keep(client, frames)
        try:
            self._hand_over(client, frames)
        except zmq.Again:
            return self._keep(client, frames)
        except zmq.ZMQError as exc:
            logger.info("client=%d pid=%d unreachable: %s", client.key, client.pid, exc)
            return client
        return None

    def send_to_stranger(self, identity: bytes, frames: list[Bytes]) -> None:
        """Try to send to a connection that is not a client; it may be gone."""
        self._unread = True
        try:
            send(self.socket, (identity, *frames))
        except zmq.ZMQError as exc:
            logger.info("no answer to a stranger: %s", exc)

    def retry(self) -> list[Client]:
        """Try again to send what waits; return the clients that have to be cut off."""
        lost = []
        for client in list(self._slow.values()):
            try:
                while client.waiting:
                    self._hand_over(client, client.waiting[0])
                    client.waiting_bytes -= _cost(client.waiting.popleft())
                del self._slow[client.key]
            except zmq.Again:
                continue
            except zmq.ZMQError:
                lost.append(client)
        return lost

    def _hand_over(self, client: Client, frames: list[Bytes]) -> None:
        """Give ZeroMQ a message; it bounds the number of those that it keeps, this their bytes.

        Raises:
            zmq.Again: It has enough already.
            zmq.ZMQError: The connection is gone.
        """
        if client.handed_bytes > self._max_bytes:
            if _is_sending(client.fd):
                raise zmq.Again
            client.handed_bytes = 0
        self._unread = True
        send(self.socket, (client.identity, *frames))
        client.handed_bytes += _cost(frames)

    def _keep(self, client: Client, frames: list[Bytes]) -> Client | None:
        client.waiting.append(frames)
        client.waiting_bytes += _cost(frames)
        self._slow[client.key] = client
        return client if client.waiting_bytes > self._max_bytes else None


def _cost(frames: list[Bytes]) -> int:
    """Return how many bytes a message takes while it is kept, about."""
    return _OVERHEAD + sum(map(len, frames))


def _check_user(address: str) -> Guest:
    """Let in who runs as the user that this process runs as; the kernel tells, not the client."""
    uid = address.rsplit(":", 3)[1] if address.count(":") >= 3 else ""
    if uid != str(os.getuid()):
        raise PermissionDenied(f"this pool belongs to another user (peer {address})")
    return OWNER


def _is_sending(fd: int) -> bool:
    """Tell whether the kernel still has something that the other side has not taken."""
    unsent = array("i", [0])
    with contextlib.suppress(OSError):  # the connection has ended: what is sent will say so
        fcntl.ioctl(fd, termios.TIOCOUTQ, unsent)
    return unsent[0] > 0
