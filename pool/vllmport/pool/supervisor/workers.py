"""The back socket: which connection belongs to which incarnation of a worker.

Owns the socket. What an incarnation that is gone still sends is known by its identity and can be
dropped in one place.
"""

import logging
from collections.abc import Sequence
from typing import Any, cast

import zmq

from vllmport.bridge.codec import Bytes
from vllmport.bridge.limits import MAX_FRAME
from vllmport.pool.supervisor.sockets import DONT_WAIT, has_message, send

logger = logging.getLogger("vllmport.supervisor")


class Workers:
    """The workers' socket and its connections; a connection's identity is its worker's nonce."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str) -> None:
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        # Unbounded on purpose: calls are bounded by each worker's capacity, streams by credit.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(endpoint)
        self.socket = socket
        self.endpoint = endpoint
        self._unread = True
        self._worker_of: dict[bytes, str] = {}
        self._identity_of: dict[str, bytes] = {}

    def has_more(self) -> bool:
        """Tell whether a message is there; sending may have swallowed the news of it."""
        self._unread = self._unread and has_message(self.socket)
        return self._unread

    def receive(self) -> tuple[bytes, str | None, list[Bytes]] | None:
        """Receive one message: its identity, the worker behind it if it is known, its frames.

        Returns:
            None if there is none.
        """
        try:
            identity, *frames = cast(list[Any], self.socket.recv_multipart(DONT_WAIT))
        except zmq.Again:
            self._unread = False
            return None
        self._unread = True
        return identity, self._worker_of.get(identity), frames

    def admit(self, identity: bytes, worker: str) -> None:
        """Note that this connection is the worker's present incarnation."""
        self._worker_of[identity] = worker
        self._identity_of[worker] = identity

    def forget(self, worker: str) -> None:
        """The incarnation is gone: what it still sends is nobody's."""
        self._worker_of.pop(self._identity_of.pop(worker, b""), None)

    def send(self, worker: str, frames: Sequence[Bytes]) -> None:
        """Send to a worker. One that cannot be reached is ending; the spawner will say so."""
        identity = self._identity_of.get(worker)
        if identity is not None:
            self.send_to(identity, frames)

    def send_to(self, identity: bytes, frames: Sequence[Bytes]) -> None:
        """Send to a connection, whoever it is."""
        self._unread = True
        try:
            send(self.socket, (identity, *frames))
        except zmq.ZMQError as exc:
            logger.info("worker=%s unreachable: %s", self._worker_of.get(identity, "?"), exc)
