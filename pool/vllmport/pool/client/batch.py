"""A list of prompts as one call: order kept, one deadline, bounded in flight.

Pure: says what to submit next and takes the events; the sync and the async client both drive it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar, cast

from vllmport.bridge.errors import Overloaded, VllmportError
from vllmport.pool.client.mailbox import Done, Event, Failed

WINDOW: Final = 1024
"""Prompts of one batch that may be open at one time; more than any engine runs at once."""

T = TypeVar("T")


class Batch(Generic[T]):
    """Several requests whose results are wanted together.

    Args:
        requests: The arguments of each.
        convert: Makes a result of a terminal value and the attempt that it came from.
        deadline: When all of them have to be there.
    """

    def __init__(
        self,
        requests: Sequence[dict[str, Any]],
        convert: Callable[[Any, int], T],
        deadline: float = math.inf,
    ) -> None:
        self.results: list[T | None] = [None] * len(requests)
        self.finished = 0
        self.error: VllmportError | None = None
        self._requests = requests
        self._convert = convert
        self._deadline = deadline
        self._todo = deque(range(len(requests)))
        self._open: dict[int, int] = {}  # call id → index
        self._resume = 0.0

    @property
    def done(self) -> bool:
        """Whether every result is there, or one failed."""
        return self.error is not None or self.finished == len(self.results)

    @property
    def open_calls(self) -> list[int]:
        """The ids of the calls to abandon when the batch is given up."""
        return list(self._open)

    def wait(self, now: float) -> float | None:
        """Return for how many seconds to wait for an event; None for as long as it takes."""
        return max(0.0, self._resume - now) if self._todo and self._resume else None

    def submits(self, now: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the requests to submit now; call `submitted` or `refused` after each."""
        if self._resume > now:
            return
        self._resume = 0.0
        while self._todo and len(self._open) < WINDOW and not self._resume and self.error is None:
            index = self._todo.popleft()
            yield index, self._requests[index]

    def submitted(self, index: int, call_id: int) -> None:
        """Note under which id a request went out."""
        self._open[call_id] = index

    def refused(self, index: int, error: VllmportError, now: float) -> None:
        """Note that a request did not go out.

        Where the pool is only full, a list of prompts waits for its turn; what is one call for the
        caller as well is refused, for the caller to decide.
        """
        if not isinstance(error, Overloaded) or len(self.results) == 1:
            self.error = error
            return
        self._todo.appendleft(index)
        self._resume = min(now + error.retry_after, self._deadline)

    def take(self, event: Event, now: float) -> int:
        """Take the terminal event of one request; return how many results it brought, 0 or 1."""
        index = self._open.pop(event.call)
        match event:
            case Done(_, value, attempt):
                self.results[index] = self._convert(value, attempt)
                self.finished += 1
                return 1
            case Failed(_, error):
                self.refused(index, error, now)
        return 0

    def outcome(self) -> list[T]:
        """Return the results in the order of the requests.

        Raises:
            VllmportError: The first failure; `details["results"]` has what was finished, None else.
        """
        if self.error is not None:
            if len(self.results) > 1:
                self.error.details["results"] = self.results
            raise self.error
        return cast(list[T], self.results)  # a result may be None as well
