"""The deltas of one call, for a thread that iterates over them."""

import contextlib
import math
import queue
import time
from collections.abc import Iterator
from typing import Any, Self

from vllmport.bridge.messages import Call
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.mailbox import Done, Event, Failed, Item, ThreadMailbox
from vllmport.pool.client.pauses import Pauses
from vllmport.pool.client.results import Delta, RequestOutput, deltas_from, result_from
from vllmport.pool.client.window import Window


class Stream(Iterator[Delta]):
    """The deltas of one call, as they are generated.

    Iterate over it; leaving the loop early and closing it, or letting it go, cancels the call.

    Attributes:
        result: The summary, without outputs, once the stream has ended; None before.
    """

    def __init__(
        self,
        connection: Connection,
        call: Call,
        args: dict[str, Any],
        timeout: float,
        pauses: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        self.result: RequestOutput | None = None
        self.request_id = call.request_id
        self._connection = connection
        self._mailbox = ThreadMailbox()
        self._window = Window(call.window)
        self._ready: list[Delta] = []
        self._open = True
        self._pauses = Pauses(*pauses, time.monotonic())
        self._call = connection.submit(call, args, timeout, self._mailbox)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while not self._ready:
            if not self._open:
                raise StopIteration
            try:
                event = self._next_event()
            except BaseException:  # Ctrl-C while waiting: the call must not go on unseen
                self.close()
                raise
            match event:
                case Item(_, value):
                    self._ready = deltas_from(value)[::-1]
                    self._pauses.took(self._ready)
                    self._grant()
                case Done(_, value, attempt):
                    self._open = False
                    self.result = result_from(value, attempt)
                case Failed(_, error):
                    self._open = False
                    raise error
        return self._ready.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            with contextlib.suppress(Exception):  # at interpreter exit little works any more
                self.close()

    def close(self) -> None:
        """Cancel the call if it still runs."""
        if self._open:
            self._open = False
            self._connection.abandon(self._call)

    def _next_event(self) -> Event:
        try:
            left = self._pauses.left(time.monotonic())
            return self._connection.wait(self._mailbox, left)
        except queue.Empty:
            raise self._pauses.exceeded() from None

    def _grant(self) -> None:
        """Let the sender go on once half of its window was read."""
        if room := self._window.took():
            self._connection.credit(self._call, room)
