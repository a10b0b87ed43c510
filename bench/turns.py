"""Who may use the machine now: one contender at a time, while all the others are idle."""

import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from bench.children import busy_seconds, cpu_seconds

QUIET = 0.2
"""Cores that may be busy when a turn begins: idle engines take a little."""
FOREIGN = 0.15
"""Cores that strangers may use during a turn that counts."""
TRIES = 3
LOOK = 0.2
WAIT = 5.0
"""Seconds to wait for a quiet machine before one turn."""
PATIENCE = 90.0
"""Seconds to wait for it in all turns of a section together."""

T = TypeVar("T")


class Turns:
    """Gives turns; repeats those in which strangers used the machine.

    Args:
        patience: Seconds to wait for a quiet machine in all; 0 to neither wait nor repeat.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.repeated = 0
        self.disturbed = 0
        self._patience = patience

    def take(self, work: Callable[[], T], ours: Callable[[], Iterable[int]]) -> T:
        """Let one contender work; again if others on this machine got in its way.

        Args:
            work: What it does.
            ours: Returns the processes that belong to the benchmark.
        """
        tries = TRIES if self._patience > 0 else 1
        for number in range(1, tries + 1):
            self.wait_for_quiet()
            before, busy, start = self._own(ours), busy_seconds(), time.perf_counter()
            found = work()
            took = time.perf_counter() - start
            foreign = (busy_seconds() - busy - self._own(ours) + before) / took
            if foreign <= FOREIGN:
                return found
            if number < tries:
                self.repeated += 1
        self.disturbed += 1
        return found

    def _own(self, ours: Callable[[], Iterable[int]]) -> float:
        return cpu_seconds([os.getpid(), *ours()])

    def wait_for_quiet(self) -> None:
        """Wait until nobody computes, or no longer."""
        end = time.monotonic() + min(WAIT, self._patience)
        while time.monotonic() < end:
            before = busy_seconds()
            time.sleep(LOOK)
            self._patience -= LOOK
            if busy_seconds() - before < QUIET * LOOK:
                return
