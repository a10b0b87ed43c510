"""The mark: a number that a worker and all that comes from it carry, whatever they do.

It travels in two carriers. The environment variable `WORKER_TAG` is lost by a child that clears its
environment. The soft limit RLIMIT_RTTIME is not: limits are inherited over fork, exec, setsid and
renaming, and only who means to changes this one. It bounds the CPU time of real-time threads, in
microseconds; as a number of 146,000 years it bounds nothing.

A mark tells by itself that it is ours, which supervisor gave it, and in which run:

    9 bits    22 bits               20 bits          12 bits
    PREFIX    supervisor's pid      random           incarnation, counted from 1
    └──────────────── the run ─────────────┘

Knows numbers and processes; knows nothing of workers or files.
"""

import contextlib
import os
import resource
import secrets
from collections.abc import Callable, Iterator
from typing import Final

import psutil

from vllmport.pool.guard import guards_last
from vllmport.pool.processes import WORKER_TAG, descendants, kill_until_gone, reap_all

PREFIX: Final = 0b1_0101_1010
COUNTER_BITS: Final = 12
_RANDOM_BITS: Final = 20
_PID_BITS: Final = 22  # PID_MAX_LIMIT of the kernel
_PREFIX_SHIFT: Final = _PID_BITS + _RANDOM_BITS + COUNTER_BITS

Wanted = Callable[[int], bool]
"""Tells of a mark whether who carries it is looked for."""


def new_run(supervisor: int) -> int:
    """Return a number for a run of this supervisor; the marks of the run begin with it."""
    high = PREFIX << _PID_BITS | supervisor
    return (high << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)) << COUNTER_BITS


def mark_in(run: int, incarnation: int) -> int:
    """Return the mark of an incarnation; a run has 4095 before they come again."""
    return run | (1 + (incarnation - 1) % ((1 << COUNTER_BITS) - 1))


def is_mark(number: int) -> bool:
    """Tell whether a number is one of ours at all."""
    return number >> _PREFIX_SHIFT == PREFIX


def run_of(mark: int) -> int:
    """Return the run that a mark belongs to."""
    return mark >> COUNTER_BITS << COUNTER_BITS


def supervisor_of(mark: int) -> int:
    """Return the pid of the supervisor that gave a mark."""
    return (mark >> (_RANDOM_BITS + COUNTER_BITS)) & ((1 << _PID_BITS) - 1)


def can_mark() -> bool:
    """Tell whether the limit can carry a mark here; else the environment is all there is."""
    return resource.getrlimit(resource.RLIMIT_RTTIME)[1] == resource.RLIM_INFINITY


def put_mark(mark: int) -> None:
    """Let this process and all that it starts carry the mark, where that is possible."""
    if can_mark():
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, resource.RLIM_INFINITY))


def mark_of(pid: int) -> int | None:
    """Return the mark a process carries, or None: it has none, is gone, or is another user's."""
    with contextlib.suppress(OSError):
        number, _ = resource.prlimit(pid, resource.RLIMIT_RTTIME)
        return number if is_mark(number) else _tag_of(pid)
    return None


def bearers(wanted: Wanted) -> Iterator[psutil.Process]:
    """Yield the running processes that carry a wanted mark, wherever they moved.

    A mark is read again once the identity is known: so it belongs to that very process.
    """
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_wanted(int(name), wanted):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(name))
                if process.status() != psutil.STATUS_ZOMBIE and _is_wanted(process.pid, wanted):
                    yield process


def kill_run(run: int, timeout: float) -> list[psutil.Process]:
    """Kill all below this process and all that carries a mark of the run; return what is left.

    The guards come last: should this process be killed over it, they go on.

    For supervisor and spawner: it collects every child that has ended.
    """

    def find() -> list[psutil.Process]:
        reap_all()
        return guards_last([*descendants(), *bearers(lambda mark: run_of(mark) == run)])

    return kill_until_gone(find, timeout)


def _is_wanted(pid: int, wanted: Wanted) -> bool:
    mark = mark_of(pid)
    return mark is not None and wanted(mark)


def _tag_of(pid: int) -> int | None:
    """Return the mark in a process's environment.

    Reading that waits for the process's memory map, which one that hangs in the kernel may hold.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            if stat.read().rpartition(b") ")[2][:1] in b"DZX":
                return None
        with open(f"/proc/{pid}/environ", "rb") as environ:
            _, found, rest = (b"\0" + environ.read()).partition(_TAG)
    except OSError:
        return None
    text = rest.partition(b"\0")[0]
    return int(text) if found and text.isdigit() and is_mark(int(text)) else None


_TAG: Final = f"\0{WORKER_TAG}=".encode()
