"""Where the answers of a call are put, for a thread or a coroutine that waits.

The connection's thread puts events in; one waiter takes them out.
"""

import queue
from typing import Any, NamedTuple, Protocol

from vllmport.bridge.errors import VllmportError


class Item(NamedTuple):
    """One stream item of call `call`."""

    call: int
    value: Any


class Done(NamedTuple):
    """The terminal value of call `call`, and the attempt that it came from."""

    call: int
    value: Any
    attempt: int = 1


class Failed(NamedTuple):
    """The terminal error of call `call`."""

    call: int
    error: VllmportError


Event = Item | Done | Failed


class Readable(Protocol):
    """What a mailbox needs of the connection that fills it."""

    def flush(self) -> None:
        """Send what waits to be sent."""

    def filenos(self) -> list[int]:
        """Return the descriptors that turn readable when `read` should be called."""

    def next_deadline(self) -> float:
        """Return when `read` has to be called at the latest."""

    def read(self) -> float | None:
        """Handle what is there; return when to call again at the latest, None if it has ended."""


class Mailbox(Protocol):
    """What the connection needs of a mailbox."""

    def put(self, event: Event) -> None:
        """Add an event; called by whoever reads the socket, never blocks."""

    def see_to(self, connection: Readable) -> None:
        """See to it that the call is sent, and the socket read while this mailbox waits."""


class ThreadMailbox:
    """A mailbox for a thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.put = self._queue.put
        self.empty = self._queue.empty

    def see_to(self, connection: Readable) -> None:
        """Have it sent; its owner waits by `Connection.wait`, and so reads the socket itself."""
        connection.flush()

    def get(self, timeout: float | None = None) -> Event:
        """Wait for the next event that somebody else reads.

        Raises:
            queue.Empty: Nothing came within `timeout` seconds.
        """
        return self._queue.get(timeout=timeout)
