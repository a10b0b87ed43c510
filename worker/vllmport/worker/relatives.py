"""Watches the processes an engine runs in, beside its own: one that dies takes the engine along.

vLLM notices the death of one of its processes in the end, after seconds and not in every state. The
kernel tells at once.
"""

import logging
import os
import select
import threading
from collections.abc import Callable, Iterable

import psutil

logger = logging.getLogger("vllmport.worker")

_HELPER = "resource_tracker"
"""In the command line of the one process that Python's multiprocessing can do without."""


def engine_processes() -> list[int]:
    """Return the pids of all processes below this one that the engine cannot do without."""
    found = psutil.Process().children(recursive=True)
    return [p.pid for p in found if not any(_HELPER in part for part in p.cmdline())]


class Watch:
    """A thread that waits for the first of some processes to end.

    Args:
        pids: Which processes; none, and there is no thread.
        on_death: Called in that thread with the pid, unless the watch was closed before.
    """

    def __init__(self, pids: Iterable[int], on_death: Callable[[int], None]) -> None:
        self._on_death = on_death
        self._closed = False
        self._pids = {os.pidfd_open(pid): pid for pid in pids}
        if self._pids:
            threading.Thread(target=self._wait, name="relatives", daemon=True).start()

    def close(self) -> None:
        """Let them end from now on."""
        self._closed = True

    def _wait(self) -> None:
        poller = select.poll()
        for fd in self._pids:
            poller.register(fd, select.POLLIN)
        ended, _ = poller.poll()[0]
        if not self._closed:
            self._on_death(self._pids[ended])
