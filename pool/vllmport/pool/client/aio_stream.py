"""The deltas of one call, for a coroutine that iterates over them."""

import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from vllmport.bridge.messages import Call
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.loop import LoopMailbox
from vllmport.pool.client.mailbox import Done, Failed, Item
from vllmport.pool.client.pauses import Pauses
from vllmport.pool.client.results import Delta, RequestOutput, deltas_from, result_from
from vllmport.pool.client.window import Window

if TYPE_CHECKING:
    from vllmport.pool.client.aio import AsyncLLM


class AsyncStream(AsyncIterator[Delta]):
    """The deltas of one call. Leave the loop early and `await aclose()`, or cancel the task.

    Attributes:
        result: The summary, without outputs, once the stream has ended; None before.
    """

    def __init__(
        self,
        llm: "AsyncLLM",
        call: Call,
        args: dict[str, Any],
        timeout: float,
        pauses: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        self.result: RequestOutput | None = None
        self.request_id = call.request_id
        self._llm = llm
        self._request = (call, args, timeout)
        self._mailbox = LoopMailbox()
        self._pauses = Pauses(*pauses, time.monotonic())
        self._connection: Connection | None = None
        self._call = 0
        self._window = Window()
        self._ready: list[Delta] = []
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            try:
                await self._advance()
            except BaseException:  # a cancelled task: the call must not go on unseen
                await self.aclose()
                raise
        return self._ready.pop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._abandon()

    async def aclose(self) -> None:
        """Cancel the call if it still runs."""
        self._abandon()

    async def _advance(self) -> None:
        if self._connection is None:
            call, args, timeout = self._request
            connection = await self._llm.connection()
            self._call = connection.submit(call, args, timeout, self._mailbox)
            self._connection = connection
        match await self._mailbox.get(self._pauses.left(time.monotonic())):
            case None:
                raise self._pauses.exceeded()
            case Item(_, value):
                self._ready = deltas_from(value)[::-1]
                self._pauses.took(self._ready)
                self._grant(self._connection)
            case Done(_, value, attempt):
                self._ended = True
                self.result = result_from(value, attempt)
            case Failed(_, error):
                self._ended = True
                raise error

    def _grant(self, connection: Connection) -> None:
        if room := self._window.took():
            connection.credit(self._call, room)

    def _abandon(self) -> None:
        self._ended = True
        if self._connection is not None:
            self._connection.abandon(self._call)
