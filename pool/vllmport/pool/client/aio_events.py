"""What happens in a pool, for a coroutine; `events.py` says more."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Self

from vllmport.pool.client.connection import Connection
from vllmport.pool.client.events import event_in, watching
from vllmport.pool.client.loop import LoopMailbox
from vllmport.pool.client.mailbox import Item


class AsyncEventStream(AsyncIterator[dict[str, Any]]):
    """The events of a pool; `vllmport.bridge.events.EVENTS` lists them.

    It watches from when it is awaited or entered, else from the first event that is waited for.
    Iterate over it until the pool ends; `await aclose()`, or let it go, to watch no more.

    Args:
        connect: Gives a connection to the pool.
        last: How many of the latest events to begin with; the pool keeps a thousand.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], last: int = 0) -> None:
        self._connect = connect
        self._last = last
        self._mailbox = LoopMailbox()
        self._connection: Connection | None = None
        self._call = 0
        self._open = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        event = await self.get()
        if event is None:
            raise StopAsyncIteration
        return event

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begun().__await__()

    async def __aenter__(self) -> Self:
        return await self._begun()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit little works any more
            self._abandon()

    async def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next event; None once the pool or this stream was closed.

        A task that is cancelled while it waits loses no event: the next one to wait gets it.

        Args:
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: Nothing happened in that time.
            PoolLost: The pool died.
        """
        if not self._open:
            return None
        await self._begun()
        arrived = await self._mailbox.get(timeout)
        if arrived is None:
            raise TimeoutError(f"no event within {timeout} s")
        self._open = isinstance(arrived, Item)
        return event_in(arrived)

    async def aclose(self) -> None:
        """Watch no more."""
        self._abandon()

    async def _begun(self) -> Self:
        if self._open and self._connection is None:
            connection = await self._connect()
            self._call = connection.submit(*watching(self._last), self._mailbox)
            self._connection = connection
        return self

    def _abandon(self) -> None:
        if self._open:
            self._open = False
            if self._connection is not None:
                self._connection.abandon(self._call)
