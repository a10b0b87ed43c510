"""Watches the processes an engine runs in, beside its own: one that dies takes the engine along.

vLLM notices the death of one of its processes in the end, after seconds and not in every state. The
kernel tells at once.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

import psutil

LOAD_GRACE: Final = 15.0
"""Seconds that vLLM may take to say why a process of an engine ended while that loads."""

_LOOK: Final = 0.5
"""Seconds between two looks at an engine that loads."""


def engine_processes() -> list[int]:
    """Return the pids of the processes below this one that vLLM's engine runs in.

    vLLM gives those a title. All others are helpers, of Python or of a plugin: they come and go.
    """
    title = os.environ.get("VLLM_PROCESS_NAME_PREFIX", "VLLM") + "::"
    return [p.pid for p in psutil.Process().children(recursive=True) if _title(p).startswith(title)]


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:  # it ended since it was listed
        return ""


class Watch:
    """A thread that waits for the first of some processes to end.

    Args:
        pids: Which processes; none, and there is no thread.
        on_death: Called with the pid in that thread, unless the watch was closed before; at once
            for one that is gone already.
    """

    def __init__(self, pids: Iterable[int], on_death: Callable[[int], None]) -> None:
        self._on_death = on_death
        self._closed = False
        self._pids: dict[int, int] = {}
        for pid in pids:
            try:
                self._pids[os.pidfd_open(pid)] = pid
            except ProcessLookupError:
                on_death(pid)
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


class LoadWatch:
    """A thread that looks after the processes of an engine while that loads, and they come up.

    vLLM mostly notices that one has ended, and says why; at some moments it waits for it for ever.

    Args:
        on_death: Called with the pid in that thread, `grace` seconds after one has ended.
        grace: Seconds for whoever loads to say it better, and close the watch.
    """

    def __init__(self, on_death: Callable[[int], None], grace: float = LOAD_GRACE) -> None:
        self._on_death = on_death
        self._grace = grace
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="relatives", daemon=True).start()

    def close(self) -> None:
        """Look no more: the engine stands, or it is known why it does not."""
        self._closed.set()

    def _look(self) -> None:
        seen: set[int] = set()
        ended_at: dict[int, float] = {}
        while not self._closed.wait(_LOOK):
            there = set(engine_processes())
            now = time.monotonic()
            for pid in seen - there:
                ended_at.setdefault(pid, now)
            seen |= there
            overdue = [pid for pid, at in ended_at.items() if now - at >= self._grace]
            if overdue:
                self._on_death(overdue[0])
                return
