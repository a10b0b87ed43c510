"""The events of a pool: the latest are kept, and handed to those who watch.

Pure: the deciders add what happened, `control.py` passes on what is new.
"""

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from vllmport.bridge.events import event

KEPT: Final = 1000
"""How many of the latest events a new watcher can still ask for."""


class EventLog:
    """A numbered record of what happened.

    Args:
        wall: Returns the seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._wall = wall
        self._numbers = itertools.count(1)
        self._new: list[dict[str, Any]] = []

    def add(self, name: str, /, **fields: Any) -> None:
        """Record an event of the catalogue with all its fields."""
        happened = event(name, next(self._numbers), round(self._wall(), 6), fields)
        self.kept.append(happened)
        self._new.append(happened)

    def take_new(self) -> list[dict[str, Any]]:
        """Hand over what was added since the last time, in order."""
        new, self._new = self._new, []
        return new
