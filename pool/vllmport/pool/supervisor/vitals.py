"""Looks at the processes of a worker: how much they compute, and how much memory they hold."""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

import psutil

from vllmport.pool.supervisor.loading import Effort

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def members(leader: int) -> list[int]:
    """Return the pids of a worker's process and of all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(leader).children(recursive=True)
        return [leader, *(child.pid for child in children)]
    return []


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time these processes have used, in seconds."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime: proc_pid_stat(5)
    return ticks / _TICKS


def effort(pids: Sequence[int]) -> Effort:
    """Return what these processes have done so far, and their children that have ended."""
    ticks = moved = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        with contextlib.suppress(OSError), open(f"/proc/{pid}/io", "rb") as file:
            done = dict(line.split(b": ") for line in file)
            # Not rchar: whoever looks at /proc reads as much as one that loads.
            moved += int(done[b"read_bytes"]) + int(done[b"wchar"])
    return Effort(ticks / _TICKS, moved)


def memory(pids: Sequence[int]) -> int:
    """Return the bytes these processes hold, what they share counted once (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    total += int(line.split()[1]) * 1024
                    break
    return total


def free_memory() -> int:
    """Return the bytes that new processes can have."""
    return int(psutil.virtual_memory().available)
