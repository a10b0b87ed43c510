"""Watches the processes an engine runs in, beside its own: one that dies takes the engine along.

vLLM notices the death of one of its processes in the end, after seconds and not in every state. The
kernel tells at once.
"""

import os
import select
import threading
import time
from collections.abc import Callable
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
    """A thread that waits for a process of the engine to end, from the beginning of its load.

    While it loads, its processes come up, and vLLM mostly notices that one has ended, and says why;
    at some moments it waits for it for ever.

    Args:
        on_death: Called with the pid in that thread, unless the watch was closed before.
        grace: Seconds for whoever loads to say it better, and close the watch.
    """

    def __init__(self, on_death: Callable[[int], None], grace: float = LOAD_GRACE) -> None:
        self._on_death = on_death
        self._grace = grace
        self._closed = False
        self._pids: dict[int, int] = {}
        self._loaded = threading.Event()
        threading.Thread(target=self._run, name="relatives", daemon=True).start()

    def loaded(self) -> None:
        """From now on, tell at once of each that is there now: nothing good can follow."""
        for pid in engine_processes():
            try:
                self._pids[os.pidfd_open(pid)] = pid
            except ProcessLookupError:
                self._on_death(pid)
        self._loaded.set()

    def close(self) -> None:
        """Let them end from now on."""
        self._closed = True
        self._loaded.set()

    def _run(self) -> None:
        pid = self._ended_in_load() or self._first_to_end()
        if pid and not self._closed:
            self._on_death(pid)

    def _ended_in_load(self) -> int:
        """Return one that ended `grace` seconds ago; 0 if the load is over before."""
        seen: set[int] = set()
        ended_at: dict[int, float] = {}
        while not self._loaded.wait(_LOOK):
            there = set(engine_processes())
            now = time.monotonic()
            for pid in seen - there:
                ended_at.setdefault(pid, now)
            seen |= there
            for pid, at in ended_at.items():
                if now - at >= self._grace:
                    return pid
        return 0

    def _first_to_end(self) -> int:
        """Wait for the first of those that were there then; 0 if nobody was."""
        poller = select.poll()
        for fd in self._pids:
            poller.register(fd, select.POLLIN)
        return self._pids[poller.poll()[0][0]] if self._pids else 0
