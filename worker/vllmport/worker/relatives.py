"""Watches the processes an engine runs in, beside its own: one that dies takes the engine along.

vLLM notices the death of one of its processes in the end, after seconds and not in every state. The
kernel tells at once.
"""

import os
import select
import threading
from collections.abc import Callable, Iterable

import psutil


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
