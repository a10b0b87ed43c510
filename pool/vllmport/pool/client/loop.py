"""Mailboxes for coroutines, and the event loop as the one who reads the socket for them."""

import asyncio
import contextlib
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator

from vllmport.pool.client.mailbox import Event, Readable


class _Watch:
    """One connection, watched by one event loop.

    The loop has copies of the connection's descriptors, so that the connection may be closed by
    any thread at any time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Readable, courier: "_Courier"):
        self._loop = loop
        self._connection = connection
        self._courier = courier
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._sending = False
        self._fds = connection.filenos()
        for fd in self._fds:
            loop.add_reader(fd, self.read)

    def __del__(self) -> None:  # a loop that was closed has forgotten its readers
        for fd in getattr(self, "_fds", ()):
            os.close(fd)

    def read(self) -> None:
        """Handle what is there."""
        with self._courier.delivering():
            due = self._connection.read()
        if due is None:
            self._end()
        else:
            self.arm(due)

    def send_soon(self) -> None:
        """Send what the loop's tasks of this turn have to be sent, together."""
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        self._connection.flush()
        self.arm(self._connection.next_deadline())

    def arm(self, due: float) -> None:
        """Read at that time as well, if there is nothing earlier."""
        if self._timer is not None and due < self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due < math.inf:
            self._due = due
            self._timer = self._loop.call_later(due - time.monotonic(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._due = None, math.inf
        if self._fds:
            self.read()

    def _end(self) -> None:
        self._courier.forget(self._connection)
        if self._timer is not None:
            self._timer.cancel()
        fds, self._fds = self._fds, []
        for fd in fds:
            self._loop.remove_reader(fd)
            os.close(fd)


class _Courier:
    """What one event loop does for its mailboxes: it reads the sockets and wakes who got something.

    Whatever reads in another thread makes one call into the loop, however many got something.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._filled: list[LoopMailbox] = []
        self._coming = False
        self._watches: dict[Readable, _Watch] = {}

    def watch(self, connection: Readable) -> None:
        """Send what waits there, and read this connection from now on, until it ends."""
        watch = self._watches.get(connection)
        if watch is None:
            watch = self._watches[connection] = _Watch(self._loop, connection, self)
        watch.send_soon()

    def forget(self, connection: Readable) -> None:
        """It has ended."""
        self._watches.pop(connection, None)

    @contextlib.contextmanager
    def delivering(self) -> Iterator[None]:
        """In the loop's own thread: wake after the block who got something in it."""
        self._coming = True
        yield
        self._deliver()

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

    def see_to(self, connection: Readable) -> None:
        """Have the loop send the call and read the socket."""
        self._courier.watch(connection)

    def wake(self) -> None:
        """Let the coroutine that waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; None if nothing came within `timeout` seconds."""
        if timeout is None:
            await self._filled()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._filled()
        return self._events.popleft() if self._events else None

    async def _filled(self) -> None:
        while not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
