"""A set of keys with a time each: which one is due next, which are due now.

Pure. A heap with lazy deletion, rebuilt when most of it is dead, so that a million calls which end
long before their deadline cost no memory.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Keys and the absolute times at which they are due; one time for each key."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, due: float) -> None:
        """Add a key or move it; infinity takes it out."""
        if math.isinf(due):
            self.discard(key)
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))

    def discard(self, key: K) -> None:
        """Take a key out, if it is in."""
        if self._due.pop(key, None) is not None and len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def first(self) -> tuple[float, K] | None:
        """Return when the next key is due, and which it is; None if there is none."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                return due, key
            heapq.heappop(self._heap)
        return None

    def next(self) -> float:
        """Return when the next key is due, infinity if there is none."""
        first = self.first()
        return math.inf if first is None else first[0]

    def pop_due(self, now: float) -> Iterator[K]:
        """Take out and yield every key that is due, the oldest first."""
        while self.next() <= now:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            yield key
