"""Who is connected, and what waits for those who read slowly.

Owns the front socket. Gives each connection a number that is never used again; the rest of the
supervisor knows clients by it.
"""

import itertools
import logging
import os
import struct
from collections import deque
from dataclasses import dataclass, field

import zmq

from vllmport.bridge.codec import Bytes
from vllmport.bridge.limits import MAX_FRAME
from vllmport.pool.supervisor.access import OWNER, Guest
from vllmport.pool.supervisor.door import Door

logger = logging.getLogger("vllmport.supervisor")

_MONITOR_EVENT = struct.Struct("=hi")
"""First frame of a monitor's message: event and value; for a disconnection, the descriptor."""


@dataclass(slots=True)
class Client:
    """One connection that said HELLO."""

    key: int
    identity: bytes
    fd: int
    pid: int
    guest: Guest = OWNER
    waiting: deque[list[Bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0


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
        self.monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        if door is not None:
            door.guard(socket)
        self._door = door
        self._max_bytes = max_bytes
        self._keys = itertools.count(1)
        self._by_identity: dict[bytes, Client] = {}
        self._by_key: dict[int, Client] = {}
        self._by_fd: dict[int, Client] = {}
        self._slow: dict[int, Client] = {}
        socket.bind(endpoint)

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def slow(self) -> bool:
        """Whether messages wait for somebody who does not read."""
        return bool(self._slow)

    def receive(self) -> tuple[bytes, Client | None, list[bytes], zmq.Frame | None]:
        """Receive one message: its identity, the client if it is known, its frames.

        For an unknown identity the first frame comes as well, to see who it is from.

        Raises:
            zmq.Again: There is none.
        """
        identity = self.socket.recv(zmq.NOBLOCK)
        client = self._by_identity.get(identity)
        first: zmq.Frame | None = None
        frames: list[bytes] = []
        while self.socket.getsockopt(zmq.RCVMORE):
            if client is None and first is None:
                first = self.socket.recv(copy=False)
                frames.append(first.bytes)
            else:
                frames.append(self.socket.recv())
        return identity, client, frames, first

    def admit(self, identity: bytes, frame: zmq.Frame, pid: int) -> tuple[Client, list[Client]]:
        """Take a new client in; also return those whose connections have ended meanwhile.

        The transport reports the end of a connection before it closes the descriptor, and so before
        another connection can have the same one: once all reports are read, `fd` is this one's.

        Raises:
            PermissionError: It belongs to another user, or its key is not known any more.
        """
        if self._door is None:
            guest = _check_user(str(frame.get("Peer-Address")))
        else:
            guest = self._door.guest(str(frame.get("User-Id")))
        gone = self.disconnected()
        client = Client(next(self._keys), identity, int(frame.get(zmq.SRCFD)), pid, guest)
        self._by_identity[identity] = self._by_key[client.key] = self._by_fd[client.fd] = client
        return client, gone

    def disconnected(self) -> list[Client]:
        """Return the clients whose connections ended since the last time, already forgotten."""
        gone = []
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, _endpoint = self.monitor.recv_multipart()
            client = self._by_fd.get(_MONITOR_EVENT.unpack(event)[1])
            if client is not None:
                self.forget(client)
                gone.append(client)
        return gone

    def of(self, guest: Guest) -> list[int]:
        """Return the connections of a guest."""
        return [key for key, client in self._by_key.items() if client.guest.name == guest.name]

    def forget(self, client: Client) -> None:
        """Drop a client and what waits for it."""
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
            self.socket.send_multipart([client.identity, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return self._keep(client, frames)
        except zmq.ZMQError as exc:
            logger.info("client=%d pid=%d unreachable: %s", client.key, client.pid, exc)
            return client
        return None

    def send_to_stranger(self, identity: bytes, frames: list[Bytes]) -> None:
        """Try to send to a connection that is not a client; it may be gone."""
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as exc:
            logger.info("no answer to a stranger: %s", exc)

    def retry(self) -> list[Client]:
        """Try again to send what waits; return the clients that have to be cut off."""
        lost = []
        for client in list(self._slow.values()):
            try:
                while client.waiting:
                    self.socket.send_multipart([client.identity, *client.waiting[0]], zmq.NOBLOCK)
                    client.waiting_bytes -= sum(map(len, client.waiting.popleft()))
                del self._slow[client.key]
            except zmq.Again:
                continue
            except zmq.ZMQError:
                lost.append(client)
        return lost

    def _keep(self, client: Client, frames: list[Bytes]) -> Client | None:
        client.waiting.append(frames)
        client.waiting_bytes += sum(map(len, frames))
        self._slow[client.key] = client
        return client if client.waiting_bytes > self._max_bytes else None


def _check_user(address: str) -> Guest:
    """Let in who runs as the user that this process runs as; the kernel tells, not the client."""
    uid = address.rsplit(":", 3)[1] if address.count(":") >= 3 else ""
    if uid != str(os.getuid()):
        raise PermissionError(f"this pool belongs to another user (peer {address})")
    return OWNER
