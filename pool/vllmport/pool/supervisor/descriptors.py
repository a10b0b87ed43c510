"""All that a supervisor waits for, each with what is to be done.

A socket of ZeroMQ has a descriptor that tells only of news since one last looked. So whoever
handles it takes all that is there; and who may have left something, or swallowed the news by
sending, is asked before each wait.
"""

import select
from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol

import zmq

LONGEST: Final = 1_000_000.0
"""Seconds that one wait may take; operating systems know no much longer ones."""


class Rank(IntEnum):
    """In which order things are handled that come at one time."""

    CONNECTIONS = 0
    WORKERS = 1
    """Before exits: last words count."""
    EXITS = 2
    CLIENTS = 3


class Inlet(Protocol):
    """Whoever owns a socket."""

    @property
    def socket(self) -> "zmq.Socket[bytes]":
        """The socket."""

    def has_more(self) -> bool:
        """Tell whether something is there that its descriptor need not tell of."""


class Descriptors:
    """An epoll set that calls a handler for each descriptor that turns readable."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Rank, Callable[[], None]]] = {}
        self._inlets: list[tuple[Inlet, int]] = []

    def watch(self, fd: int, handler: Callable[[], None], rank: Rank = Rank.EXITS) -> None:
        """Call the handler whenever `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = (rank, handler)

    def watch_socket(
        self, socket: "zmq.Socket[bytes]", handler: Callable[[], None], rank: Rank
    ) -> None:
        """Call the handler whenever there may be news of a socket; it takes all that is there."""
        self.watch(int(socket.getsockopt(zmq.FD)), handler, rank)

    def watch_inlet(self, inlet: Inlet, handler: Callable[[], None], rank: Rank) -> None:
        """Call the handler whenever there may be something, as the owner of the socket tells."""
        self.watch_socket(inlet.socket, handler, rank)
        self._inlets.append((inlet, int(inlet.socket.getsockopt(zmq.FD))))

    def unwatch(self, fd: int) -> None:
        """Stop watching, if it is watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def unwatch_all(self, handler: Callable[[], None]) -> None:
        """Stop watching all that this handler was given for."""
        for fd in [fd for fd, (_, known) in self._handlers.items() if known == handler]:
            self.unwatch(fd)

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds and call the handlers of what came."""
        left = [fd for inlet, fd in self._inlets if inlet.has_more()]
        timeout = 0.0 if left else min(max(timeout, 0.0), LONGEST)
        ready = {fd for fd, _ in self._epoll.poll(timeout)}
        ready.update(left)
        for fd in sorted(ready, key=self._rank) if len(ready) > 1 else ready:
            known = self._handlers.get(fd)  # an earlier one may have ended the watch
            if known is not None:
                known[1]()

    def _rank(self, fd: int) -> Rank:
        return self._handlers[fd][0]
