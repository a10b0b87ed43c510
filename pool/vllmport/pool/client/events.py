"""What happens in a pool, as it happens. `aio_events.py` is the same for coroutines."""

import contextlib
import math
import queue
from collections.abc import Iterator
from typing import Any, Self

from vllmport.bridge.errors import PoolClosed
from vllmport.bridge.messages import Call
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.mailbox import Event, Failed, Item, ThreadMailbox
from vllmport.pool.client.requests import call_for


class EventStream(Iterator[dict[str, Any]]):
    """The events of a pool; `vllmport.bridge.events.EVENTS` lists them.

    Iterate over it until the pool ends; close it, or let it go, to watch no more.

    Args:
        connection: To the pool.
        last: How many of the latest events to begin with; the pool keeps a thousand.
    """

    def __init__(self, connection: Connection, last: int = 0) -> None:
        self._connection = connection
        self._mailbox = ThreadMailbox()
        self._call = connection.submit(*watching(last), self._mailbox)
        self._open = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            with contextlib.suppress(Exception):  # at interpreter exit little works any more
                self.close()

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next event; None once the pool or this stream was closed.

        Args:
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: Nothing happened in that time.
            PoolLost: The pool died.
        """
        if not self._open:
            return None
        try:
            arrived = self._connection.wait(self._mailbox, timeout)
        except queue.Empty:
            raise TimeoutError(f"no event within {timeout} s") from None
        self._open = isinstance(arrived, Item)
        return event_in(arrived)

    def close(self) -> None:
        """Watch no more."""
        if self._open:
            self._open = False
            self._connection.abandon(self._call)


def watching(last: int) -> tuple[Call, dict[str, Any], float]:
    """Return the call that watches a pool, its arguments and its time-out."""
    return call_for("", "events", None, None, window=1), {"last": last}, math.inf


def event_in(arrived: Event) -> dict[str, Any] | None:
    """Return the event that came; None if it was the end.

    Raises:
        VllmportError: It was an end that nobody asked for.
    """
    match arrived:
        case Item(_, value):
            return dict(value)
        case Failed(_, error) if not isinstance(error, PoolClosed):
            raise error
    return None
