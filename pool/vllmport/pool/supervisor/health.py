"""Decides whether a worker that lives still works: does its loop answer, do its tokens progress?

Pure. That a process lives is the spawner's question. The other two are asked here, of what the
worker has on record: turns of its loop and steps of its engine; and of the processor time that its
processes used. A worker that owes something and shows neither for `stall_timeout` hangs. One that
computes for long (a compilation, a first request with logprobs) does not; nor does one whose engine
sleeps: it owes its calls nothing until it is woken, and only its loop has to answer.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

BUSY: Final = 0.1
"""Share of one processor above which a worker is computing; waiting loops stay far below."""

PING_EVERY: Final = 10.0
"""Seconds between two questions to the loop of a worker that has nothing to do."""


class Vitals(NamedTuple):
    """What one look at a worker found.

    Attributes:
        in_flight: Calls it holds.
        turns: How often its loop has turned.
        steps: How many steps its engine has made.
        cpu: Seconds of processor time its engine's processes have used.
        asleep: Whether its engine was told to sleep.
    """

    in_flight: int
    turns: int
    steps: int
    cpu: float
    asleep: bool = False

    @property
    def owed(self) -> int:
        """How many calls its engine has to work on."""
        return 0 if self.asleep else self.in_flight


@dataclass(slots=True)
class _Watched:
    seen: Vitals
    seen_at: float
    idle: float = 0.0
    asked_at: float = -math.inf
    turns_when_asked: int = -1


class Health:
    """The workers under watch.

    Args:
        stall_timeout: Seconds.
    """

    def __init__(self, stall_timeout: float) -> None:
        self.interval = min(max(stall_timeout / 8, 0.1), 5.0)
        self._stall_timeout = stall_timeout
        self._watched: dict[str, _Watched] = {}
        self._due = math.inf

    def watch(self, worker: str, vitals: Vitals, now: float) -> None:
        """Watch a worker from now on: it is READY."""
        self._watched[worker] = _Watched(vitals, now)
        self._due = min(self._due, now + self.interval)

    def forget(self, worker: str) -> None:
        """Watch it no more."""
        self._watched.pop(worker, None)

    def next_deadline(self) -> float:
        """Return when the workers have to be looked at."""
        return self._due if self._watched else math.inf

    def take_due(self, now: float) -> list[str]:
        """Return whom to look at now; each look goes to `look`."""
        self._due = now + self.interval
        return list(self._watched)

    def wants_ping(self, worker: str, now: float) -> bool:
        """Tell whether an idle worker's loop should be asked; note that it was."""
        watched = self._watched[worker]
        if watched.seen.owed or now < watched.asked_at + PING_EVERY:
            return False
        watched.asked_at = now
        watched.turns_when_asked = watched.seen.turns
        return True

    def look(self, worker: str, vitals: Vitals, now: float) -> str | None:
        """Compare with the last look; return why the worker hangs, if it does."""
        watched = self._watched[worker]
        before, elapsed = watched.seen, now - watched.seen_at
        if vitals.owed:
            owes = before.owed > 0
            moved = vitals.steps != before.steps
            what = f"it holds {vitals.in_flight} calls and made no step"
        else:
            owes = vitals.turns == watched.turns_when_asked
            moved = vitals.turns != before.turns
            what = "its loop does not answer"
        computed = vitals.cpu - before.cpu > BUSY * elapsed
        watched.seen, watched.seen_at = vitals, now
        if not owes or moved or computed:
            watched.idle = 0.0
            return None
        watched.idle += min(elapsed, 2 * self.interval)  # the machine itself may have stood still
        if watched.idle < self._stall_timeout:
            return None
        return f"hung: {what} for {watched.idle:.1f} s"


def why_recycle(
    age: float,
    calls: int,
    rss: int,
    gpu_memory: int,
    *,
    max_age: float,
    max_calls: int,
    max_rss: int,
    max_gpu_memory: int,
) -> str | None:
    """Return why a worker has to be replaced, if it has to; a limit of 0 is none."""
    if max_age and age >= max_age:
        return f"it is {age:.0f} s old, the limit is {max_age:.0f}"
    if max_calls and calls >= max_calls:
        return f"it has done {calls} calls, the limit is {max_calls}"
    if max_rss and rss >= max_rss:
        return f"it uses {rss / 2**20:.0f} MiB, the limit is {max_rss / 2**20:.0f}"
    if max_gpu_memory and gpu_memory >= max_gpu_memory:
        used, limit = gpu_memory / 2**20, max_gpu_memory / 2**20
        return f"it uses {used:.0f} MiB of GPU memory, the limit is {limit:.0f}"
    return None
