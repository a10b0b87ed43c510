"""Mailboxes for coroutines: filled by whoever reads the socket, emptied in an event loop."""

import asyncio
import contextlib
import weakref
from collections import deque

from vllmport.pool.client.mailbox import Event


class _Courier:
    """Wakes the mailboxes of one event loop: one call into the loop, however many got something."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._filled: list[LoopMailbox] = []
        self._coming = False

    def announce(self, mailbox: "LoopMailbox") -> None:
        """Have a mailbox looked at soon; called by whoever reads the socket."""
        self._filled.append(mailbox)
        if not self._coming:
            self._coming = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._coming = False  # first: what is announced from here on comes with the next round
        filled, self._filled = self._filled, []
        for mailbox in filled:
            mailbox.wake()


_couriers: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Courier]" = (
    weakref.WeakKeyDictionary()
)


class LoopMailbox:
    """A mailbox for a coroutine."""

    can_read = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._courier = _couriers.get(self._loop) or _couriers.setdefault(
            self._loop, _Courier(self._loop)
        )
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """Add an event; called by whoever reads the socket."""
        self._events.append(event)
        self._courier.announce(self)

    def wake(self) -> None:
        """Let the coroutine that waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; None if nothing came within `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout) if timeout is not None else _forever:
                while not self._events:
                    self._waiter = self._loop.create_future()
                    await self._waiter
        return self._events.popleft() if self._events else None


_forever = contextlib.nullcontext()
