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


class Mailbox(Protocol):
    """What the connection needs of a mailbox.

    Attributes:
        can_read: Whether its owner waits by `Connection.wait`, and so can read the socket itself.
    """

    can_read: bool

    def put(self, event: Event) -> None:
        """Add an event; called by whoever reads the socket, never blocks."""


class ThreadMailbox:
    """A mailbox for a thread."""

    can_read = True

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.put = self._queue.put
        self.empty = self._queue.empty

    def get(self, timeout: float | None = None) -> Event:
        """Wait for the next event that somebody else reads.

        Raises:
            queue.Empty: Nothing came within `timeout` seconds.
        """
        return self._queue.get(timeout=timeout)
