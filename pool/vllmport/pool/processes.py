"""Linux facts about processes that the supervisor and the spawner share.

Knows pids, groups and signals; knows nothing of workers or models.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

import psutil

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

WORKER_TAG: Final = "VLLMPORT_WORKER_TAG"
"""Environment variable that marks a worker and everything it starts; see `marks.py`."""

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Make the prctl system call with one argument.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """Let every descendant that loses its parent fall to this process."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def started_at(pid: int) -> int:
    """Return when a process started, in clock ticks since boot: no change of the clock moves it.

    Raises:
        FileNotFoundError, ProcessLookupError: It is gone.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:  # field 22 of proc_pid_stat(5)
        return int(stat.read().rpartition(b") ")[2].split()[19])


def kill_group(pgid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal a process group; return whether anything of ours is left in it."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):  # nothing there, or nothing of ours
        return False
    return True


def descendants() -> list[psutil.Process]:
    """Return all living processes below this one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process().children(recursive=True)
    return []


def kill_until_gone(
    find: Callable[[], Iterable[psutil.Process]], timeout: float
) -> list[psutil.Process]:
    """Kill what is found, until nothing is; return what is left when the time is over."""
    end = time.monotonic() + timeout
    while True:
        left = list(find())
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil looks first whether it is the one that was found
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.005)


def describe(process: psutil.Process) -> str:
    """Name a process and its state, for one who wonders why it is still there."""
    with contextlib.suppress(psutil.Error):
        return f"pid {process.pid} {process.name()} ({process.status()})"
    return f"pid {process.pid}"


def reap_all() -> None:
    """Collect every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def oom_kills() -> int:
    """Return how many processes the kernel has killed so far because memory was short."""
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def describe_exit(code: int, status: int, *, memory_was_short: bool = False) -> str:
    """Say how a process ended, from `si_code` and `si_status` of waitid(2)."""
    if code == os.CLD_EXITED:
        return f"exited with status {status}"
    if status == signal.SIGKILL and memory_was_short:
        return "was killed by SIGKILL, by the kernel: out of memory"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(status).name}"
    return f"was killed by signal {status}"
