"""The objects that one session holds: each by a number that is never used again.

Used by two threads: the session's own, which adds, and the worker's, which ends the session.
"""

import itertools
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllmport.bridge.codec import Ref
from vllmport.bridge.errors import QuotaExceeded, SessionLost
from vllmport.worker.universal.introspect import full_name


class Held(NamedTuple):
    """An object, and the class as which it may be used if it is not its own."""

    thing: Any
    view: type | None = None


class Refs:
    """The table of one session.

    Args:
        session: Its name.
        worker: The id of this worker.
        limit: How many objects it may hold.
    """

    def __init__(self, session: str, worker: str, limit: int) -> None:
        self._session = session
        self._worker = worker
        self._limit = limit
        self._held: dict[int, Held] = {}
        self._numbers = itertools.count(1)
        self._over = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> Ref:
        """Hold an object.

        Raises:
            QuotaExceeded: There are as many as there may be.
            SessionLost: The session has ended.
        """
        with self._lock:
            if self._over:
                raise _over()
            if len(self._held) >= self._limit:
                text = f"the session holds {self._limit} objects already; release some"
                raise QuotaExceeded(text, details={"limit": self._limit})
            number = next(self._numbers)
            self._held[number] = held
        return Ref(self._session, self._worker, number, full_name(type(held.thing)))

    def find(self, ref: Ref) -> Held:
        """Return what a ref names.

        Raises:
            SessionLost: It belongs to another session, or was released.
        """
        held = self._held.get(ref.number)
        if ref.session != self._session or held is None:
            text = f"ref {ref.number} ({ref.type}) is not held by this session: it was released, or"
            raise SessionLost(f"{text} its session is another one or over", details={"exit": ""})
        return held

    def release(self, numbers: Iterable[int]) -> None:
        """Let go of objects; those that are not held any more do not matter."""
        for number in numbers:
            self._held.pop(number, None)

    def end(self) -> None:
        """Let go of everything, for good."""
        with self._lock:
            self._over = True
            self._held.clear()


def _over() -> SessionLost:
    return SessionLost("the session has ended", details={"exit": ""})
