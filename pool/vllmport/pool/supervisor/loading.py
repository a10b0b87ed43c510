"""Decides whether a worker that loads still gets on: does it report, compute, or move bytes?

Pure. Loading may take as long as it makes progress: a download, a compilation, a large checkpoint.
A process that shows nothing of the three for `load_stall_timeout` will not come up any more. Those
of one model get on together: one downloads, and the others wait for its lock.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

BUSY: Final = 0.1
"""Share of one processor above which a load is computing; threads that wait stay far below."""

MOVING: Final = 4096
"""Bytes a second above which a load is moving data; lines of a log stay far below."""


class Effort(NamedTuple):
    """What a worker's processes have done so far.

    Attributes:
        cpu: Seconds of processor time, of children that have ended too.
        moved: Bytes read from storage or written anywhere.
    """

    cpu: float
    moved: int


@dataclass(slots=True)
class _Watched:
    model: str
    seen: Effort
    seen_at: float
    idle: float = 0.0


class Loading:
    """The processes that load, and since when each of them shows nothing.

    Args:
        stall_timeout: Seconds; 0 for no limit.
    """

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout or math.inf
        self.interval = min(max(self._stall_timeout / 8, 0.1), 5.0)
        self._watched: dict[str, _Watched] = {}
        self._due = math.inf

    def watch(self, worker: str, model: str, now: float) -> None:
        """Watch a process from now on: it has been started, and loads this model."""
        self._watched[worker] = _Watched(model, Effort(0.0, 0), now)
        self._due = min(self._due, now + self.interval)

    def reported(self, worker: str) -> None:
        """It said how far it has come."""
        if worker in self._watched:
            self._got_on(self._watched[worker].model)

    def forget(self, worker: str) -> None:
        """Watch it no more: it stands, or it has ended."""
        self._watched.pop(worker, None)

    def next_deadline(self) -> float:
        """Return when the processes have to be looked at."""
        return self._due if self._watched else math.inf

    def take_due(self, now: float) -> list[str]:
        """Return whom to look at now; each look goes to `look`."""
        self._due = now + self.interval
        return list(self._watched)

    def look(self, worker: str, effort: Effort, now: float) -> str | None:
        """Compare with the last look; return why the load has stalled, if it has."""
        watched = self._watched[worker]
        before, elapsed = watched.seen, now - watched.seen_at
        computed = effort.cpu - before.cpu > BUSY * elapsed
        moved = effort.moved - before.moved > MOVING * elapsed
        watched.seen, watched.seen_at = effort, now
        if computed or moved:
            self._got_on(watched.model)
            return None
        watched.idle += min(elapsed, 2 * self.interval)  # the machine itself may have stood still
        if watched.idle < self._stall_timeout:
            return None
        return (
            f"stalled while loading: for {watched.idle:.1f} s it reported nothing, did not compute "
            f"and moved no data; the limit is load_stall_timeout = {self._stall_timeout:g}"
        )

    def _got_on(self, model: str) -> None:
        for watched in self._watched.values():
            if watched.model == model:
                watched.idle = 0.0
