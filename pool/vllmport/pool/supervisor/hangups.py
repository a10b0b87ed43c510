"""Which connections this side ends, and when; for ZeroMQ has no call for that.

What the kernel's `shutdown` ends, ZeroMQ takes for ended by the other side, and reports. The
descriptors are ZeroMQ's, which may close one at any time; its number may then stand for something
else. But it reports the end before it closes. So each is copied first, then the reports are read,
and only a copy of what was not reported is shut down.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.limits import MAX_PACKET

HELLO_TIME: Final = 10.0
"""Seconds in which a connection over TCP has to say HELLO."""

LAST_WORDS: Final = 0.25
"""Seconds that the last message to a client has to get out."""

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at how much comes in."""

_RECEIVED: Final = struct.Struct("=128xQ")
"""`tcpi_bytes_received` in what TCP_INFO returns."""


class HangUps:
    """Ends connections that say nothing, that were cut off, or whose message has no end.

    ZeroMQ hands a message over when all of its frames are there, and bounds a frame but not their
    number. The kernel says how much has come over TCP.

    Args:
        over_tcp: Whether the connections are of TCP; local ones are of the pool's own user.
    """

    def __init__(self, *, over_tcp: bool) -> None:
        self._over_tcp = over_tcp
        self._due: Deadlines[int] = Deadlines()
        self._received: dict[int, int] = {}  # bytes, when the last message had arrived
        self._heard: set[int] = set()  # since the last look
        self._next_look = 0.0
        self._ending: dict[int, int] = {}  # descriptor → our copy

    def began(self, fd: int, now: float) -> None:
        """A connection was accepted: over TCP it has some time to say HELLO."""
        self._received[fd] = 0
        if self._over_tcp:
            self._due.set(fd, now + HELLO_TIME)

    def ended(self, fd: int) -> None:
        """A connection ended: the number may stand for another one from now on."""
        self._due.discard(fd)
        self._received.pop(fd, None)
        self._heard.discard(fd)
        if fd in self._ending:
            os.close(self._ending.pop(fd))

    def welcomed(self, fd: int) -> None:
        """It said HELLO: it may stay."""
        self._due.discard(fd)

    def heard(self, fd: int) -> None:
        """A whole message arrived."""
        self._heard.add(fd)

    def end_soon(self, fd: int, now: float) -> None:
        """End a connection once the last that was said to it had time to get out."""
        if fd in self._received:
            self._due.set(fd, now + LAST_WORDS)

    def next_deadline(self) -> float:
        """Return when there is something to do."""
        due = self._due.next()
        return min(due, self._next_look) if self._over_tcp and self._received else due

    def endless(self, now: float) -> list[int]:
        """Return, once each, the connections that sent too much without the end of a message."""
        if not self._over_tcp or now < self._next_look:
            return []
        self._next_look = now + LOOK_EVERY
        heard, self._heard = self._heard, set()
        found = []
        for fd, before in self._received.items():
            received = _received(fd)
            is_endless = fd not in heard and received - before > MAX_PACKET
            if is_endless:
                found.append(fd)
            if is_endless or fd in heard:
                self._received[fd] = received
        return found

    def end_due(self, now: float, read_reports: Callable[[], object]) -> None:
        """End those that are due.

        Args:
            now: The time.
            read_reports: Reads what ZeroMQ reports, and calls `ended` for each end.
        """
        for fd in self._due.pop_due(now):
            with contextlib.suppress(OSError):  # it is closed, and the report is there
                self._ending[fd] = os.dup(fd)
        if self._ending:
            read_reports()
        while self._ending:
            _, copy = self._ending.popitem()
            with contextlib.suppress(OSError), socket.socket(fileno=copy) as connection:
                connection.shutdown(socket.SHUT_RDWR)


def _received(fd: int) -> int:
    """Return how many bytes have come over a connection of TCP; 0 where nobody can tell."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.size)
        return int(_RECEIVED.unpack(info)[0])
    except (OSError, struct.error):
        return 0
