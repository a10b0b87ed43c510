"""Children that try to outlive their worker: what the echo engine starts when it is told to.

Each child is a fork of the worker that ignores TERM, INT and HUP and sleeps; `ways` say how it
hides. Knows Linux; knows nothing of engines.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, NoReturn

WAYS: Final = ("double-fork", "setsid", "rename", "clear")
"""How a child may hide: lose its parent, leave its session, take another name, drop the
environment (by executing another program). None of them is a plain fork, which keeps all that the
worker had open."""

_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NEW_NAME: Final = b"[kworker/0:1]"
_PR_SET_NAME: Final = 15
_SLEEP: Final = 3600.0


def start_child(ways: Collection[str]) -> int:
    """Start a child and return its pid, once it has hidden in all these `ways`."""
    up, up_kept = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(up)
        _hide(ways, up_kept)
    os.close(up_kept)
    if "double-fork" in ways:
        os.waitpid(first, 0)
    with os.fdopen(up, "rb") as pipe:
        return int(pipe.read())


def _hide(ways: Collection[str], up: int) -> NoReturn:
    """Run in the child: never return, never run the parent's code."""
    try:
        if "setsid" in ways:
            os.setsid()
        if "double-fork" in ways and os.fork():
            os._exit(0)
        for signum in _DEAF_TO:
            signal.signal(signum, signal.SIG_IGN)  # stays ignored across exec
        if "clear" in ways:
            os.set_inheritable(up, True)  # noqa: FBT003
            rename = ["rename"] if "rename" in ways else []
            command = [sys.executable, "-I", "-S", __file__, str(up), *rename]
            os.execve(sys.executable, command, {})  # noqa: S606  # an argument list, no shell
        _sleep(up, rename="rename" in ways)
    finally:
        os._exit(1)


def _sleep(up: int, *, rename: bool) -> NoReturn:
    """Say that this child is as it was to be, and stay."""
    if rename:
        _rename()
    os.write(up, str(os.getpid()).encode())
    os.close(up)
    while True:
        time.sleep(_SLEEP)


def _rename() -> None:
    """Take another name, in `comm` and in `cmdline`, as setproctitle(3) does."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(_NEW_NAME), 0, 0, 0)
    with contextlib.suppress(OSError):  # addresses may be hidden
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49
        if start:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, _NEW_NAME, min(len(_NEW_NAME), end - start - 1))


if __name__ == "__main__":
    _sleep(int(sys.argv[1]), rename="rename" in sys.argv[2:])
