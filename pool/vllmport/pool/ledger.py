"""The ledger: what a run has started, written down where the run's own end cannot take it.

One file for each run, `run-….ledger` beside its folder. Only the supervisor writes: it is the one
that decides, and it writes before it asks. The first line is there before the spawner is, and
names the run, which every mark of it begins with; so whatever the spawner forks is covered, also
what it forked when everything died at once. A line for each worker follows, before its request is
sent, with the folder it is given; and one more with pid and start, once it has those.

A line is written over one that says nothing any more, of a worker of which nothing is left: so the
file grows with the workers that live at one time, not with all there were. Nothing is moved and no
line that counts is touched, so a kill at any moment tears at most the new one, which does no harm:
what it is about has not been asked for yet, or carries the mark all the same.

Supervisor and spawner hold a lock on the file, and nobody else does. The kernel lets go of it when
both are gone, however they went: so a run is proven dead by taking its lock. No pid is trusted for
that, which another container sharing the folder could not judge.

The spawner removes the file when it has seen everything dead. What is left otherwise is swept by
`reap.py`. Knows files; kills nothing.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vllmport.pool.leftovers import scratch_of
from vllmport.pool.marks import mark_in, new_run
from vllmport.pool.processes import started_at

SUFFIX: Final = ".ledger"

LINE: Final = 256
"""Bytes that the length of a line is a multiple of: so that one fits where another was."""


def boot_id() -> str:
    """Return what tells this boot of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Ledger:
    """The open ledger of a run, and the marks of its workers.

    Args:
        run_dir: The folder of the run; the ledger is beside it.
        endpoint: Where the pool listens.
        owner: The process that the pool dies with, or 0.
    """

    def __init__(self, run_dir: str, endpoint: str, owner: int) -> None:
        self.path = Path(run_dir + SUFFIX)
        self.run = new_run(os.getpid())
        self._given: dict[str, tuple[int, Path]] = {}  # worker → its mark and its folder
        self._incarnations = 0
        self._places: dict[str, list[tuple[int, int]]] = {}  # whose lines: length and offset
        self._free: dict[int, list[int]] = {}  # length → offsets of lines that say nothing any more
        self._end = 0
        # It gets its name when it is locked and has its first line: a sweep sees no half of it.
        unnamed = Path(run_dir + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(unnamed, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._write(
            "run",
            boot=boot_id(),
            run=self.run,
            run_dir=run_dir,
            endpoint=endpoint,
            owner=owner,
            supervisor=_identity(os.getpid()),
        )
        unnamed.rename(self.path)

    def fileno(self) -> int:
        """The descriptor that holds the lock; the spawner gets a copy."""
        return self._fd

    def spawner(self, pid: int) -> None:
        """Note the spawner, in place of the one before."""
        self._forget("spawner")
        self._write("spawner", spawner=_identity(pid))

    def intend(self, worker: str, env: Mapping[str, str]) -> tuple[int, Path]:
        """Note that a worker is about to be started; return its mark and temporary folder.

        A worker is known here by a name that no other ever has.

        Raises:
            OSError: It cannot be written down, so the worker must not be started.
        """
        mark = self._next_mark()
        scratch = scratch_of(mark, env)
        self._write(worker, worker=worker, mark=mark, scratch=str(scratch))
        self._given[worker] = mark, scratch
        return mark, scratch

    def spawned(self, worker: str, pid: int) -> None:
        """Note the process of a worker, which leads its own group."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended already
            self._write(worker, worker=worker, process=_identity(pid))

    def cleared(self, worker: str) -> None:
        """Nothing is left of a worker: its mark may be given again, its lines written over."""
        self._given.pop(worker, None)
        self._forget(worker)

    @property
    def scratches(self) -> list[Path]:
        """The folders of the workers that were not cleared."""
        return [scratch for _, scratch in self._given.values()]

    def _next_mark(self) -> int:
        """Return a mark that no worker has: they come again after some thousands."""
        given = {mark for mark, _ in self._given.values()}
        while True:
            self._incarnations += 1
            mark = mark_in(self.run, self._incarnations)
            if mark not in given:
                return mark

    def _write(self, whose: str, **fields: object) -> None:
        """Write a line where one of this length says nothing any more, or at the end.

        Raises:
            OSError: There is no room for it.
        """
        line = json.dumps(fields).encode()
        length = -(-(len(line) + 1) // LINE) * LINE
        free = self._free.setdefault(length, [])
        at = free[-1] if free else self._end
        if os.pwrite(self._fd, line.ljust(length - 1) + b"\n", at) < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if free:
            free.pop()
        else:
            self._end += length
        self._places.setdefault(whose, []).append((length, at))

    def _forget(self, whose: str) -> None:
        """Let lines be written over."""
        for length, at in self._places.pop(whose, ()):
            self._free[length].append(at)


@dataclass(slots=True)
class Entry:
    """What a ledger says.

    Attributes:
        path: The ledger itself.
        lives: Whether its supervisor or its spawner does.
        run: The number that the marks of the run begin with.
        run_dir: The folder of the run.
        endpoint: Where the pool listens.
        scratches: Temporary folders of its workers.
        workers: (pid, ticks from boot to its start) of each, if that was in this boot.
    """

    path: Path
    lives: bool
    run: int = 0
    run_dir: str = ""
    endpoint: str = ""
    scratches: list[Path] = field(default_factory=list)
    workers: list[tuple[int, int]] = field(default_factory=list)


@contextlib.contextmanager
def read_ledger(path: Path) -> Iterator[Entry]:
    """Read a ledger; that of a dead run is locked meanwhile, so that nobody else sweeps it.

    Raises:
        FileNotFoundError: It has just been removed.
    """
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _entry(path, file.read(), lives=True)
        else:
            yield _entry(path, file.read(), lives=False)


def ledgers(folder: Path) -> list[Path]:
    """Return the ledgers in a folder."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def _identity(pid: int) -> tuple[int, int]:
    return pid, started_at(pid)


def _entry(path: Path, text: str, *, lives: bool) -> Entry:
    lines = [_fields(line) for line in text.splitlines()]
    head = next(iter(lines), {})
    entry = Entry(path, lives)
    if head.keys() >= {"boot", "run", "run_dir", "endpoint"}:
        entry.run, entry.run_dir, entry.endpoint = head["run"], head["run_dir"], head["endpoint"]
        entry.scratches = [Path(fields["scratch"]) for fields in lines if "scratch" in fields]
        if head["boot"] == boot_id():
            found = (fields["process"] for fields in lines if "process" in fields)
            entry.workers = [(pid, start) for pid, start in found]
    return entry


def _fields(line: str) -> dict[str, Any]:
    """Return what a line says; nothing if it is torn."""
    with contextlib.suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict):
            return fields
    return {}
