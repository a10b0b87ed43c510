"""Ends what runs left that could not clean up after themselves, and only those.

At the start of every supervisor, by the ledgers: a run is dead when nobody holds the lock on its
ledger; then all that carries its mark is killed, and its files go. By hand (`vllmport reap`) also
what carries a mark that no ledger knows: that is killed only if its supervisor is proven dead, and
else reported.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from vllmport.pool.endpoint import abandoned, place_of
from vllmport.pool.ledger import SUFFIX, Entry, ledgers, read_ledger
from vllmport.pool.leftovers import leftovers, remove, scratch_of
from vllmport.pool.marks import bearers, mark_of, run_of, supervisor_of
from vllmport.pool.processes import describe, kill_until_gone, started_at

PATIENCE: Final = 5.0
"""Seconds that what was killed may take to go."""

FORGOTTEN_AFTER: Final = 600.0
"""Seconds after which a run that has not begun never will."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was left.

    Attributes:
        what: A process, as `pid 12 name (state)`, or the path of a file or folder.
        whose: The pool it belonged to, as far as that is known.
        outcome: "killed", "removed", "would be killed", "would be removed", or why it is kept.
    """

    what: str
    whose: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.what}, of {self.whose}"


def sweep(folder: Path, *, dry_run: bool = False) -> list[Finding]:
    """End what dead runs left whose ledgers are in this folder.

    A ledger is removed when nothing is left of its run; until then the next sweep tries again.
    """
    found: list[Finding] = []
    for path in ledgers(folder):
        with contextlib.suppress(FileNotFoundError), read_ledger(path) as entry:
            if not entry.lives:
                found += _end(entry, dry_run=dry_run)
    if not dry_run:
        _remove_forgotten(folder)
    return found


def _remove_forgotten(folder: Path) -> None:
    """Remove the folders of runs that ended before anything was written down or made."""
    for path in folder.glob("run-*/"):
        with contextlib.suppress(OSError):  # it is in use, or gone
            has_ledger = path.with_name(path.name + SUFFIX).exists()
            if not has_ledger and path.stat().st_mtime < time.time() - FORGOTTEN_AFTER:
                path.rmdir()


def reap(folder: Path, *, dry_run: bool = False) -> list[Finding]:
    """Sweep, and then look for what no ledger knows."""
    found = sweep(folder, dry_run=dry_run)
    known = set()
    for path in ledgers(folder):
        with contextlib.suppress(FileNotFoundError), read_ledger(path) as entry:
            known.add(entry.run)
    mine = os.getuid()
    for process in list(bearers(lambda mark: run_of(mark) not in known)):
        mark = mark_of(process.pid)
        with contextlib.suppress(psutil.Error):
            if mark is not None and process.uids().real == mine:
                found += _end_unknown(process, mark, dry_run=dry_run)
    return found


def _end(entry: Entry, *, dry_run: bool) -> Iterator[Finding]:
    """Kill what is left of a dead run, then remove its files, then its ledger."""
    whose = f"the pool at {entry.endpoint}"
    if not entry.run:  # nothing was written down, so nothing was started
        remove([] if dry_run else [entry.path])
        return

    def is_ours(mark: int) -> bool:
        return run_of(mark) == entry.run

    def find() -> list[psutil.Process]:
        left = {process.pid: process for process in [*bearers(is_ours), *_recorded(entry)]}
        seen.update((pid, describe(process)) for pid, process in left.items() if pid not in seen)
        return list(left.values())

    seen: dict[int, str] = {}
    left = {process.pid for process in (find() if dry_run else kill_until_gone(find, PATIENCE))}
    done = "would be killed" if dry_run else "killed"
    for pid, text in seen.items():
        yield Finding(text, whose, "cannot be killed" if pid in left and not dry_run else done)
    if left and not dry_run:
        return
    with _files(entry) as own:
        files = [*leftovers(is_ours, entry.scratches), *own]
        for path in files:
            yield Finding(str(path), whose, "would be removed" if dry_run else "removed")
        if not dry_run:
            remove(files)
            remove([entry.path])


@contextlib.contextmanager
def _files(entry: Entry) -> Iterator[list[Path]]:
    """Give the run's folder and, unless another pool listens there now, its socket."""
    run_dir = Path(entry.run_dir)
    is_there = run_dir.parent == entry.path.parent and run_dir.is_dir()
    with abandoned(place_of(entry.endpoint, entry.path.parent)) as files:
        outside = [path for path in files if run_dir not in path.parents]
        yield [run_dir, *outside] if is_there else outside


def _recorded(entry: Entry) -> Iterator[psutil.Process]:
    """Yield workers that still run, and what runs below them, where they carry no mark."""
    for pid, start in entry.workers:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if started_at(pid) == start and _runs(process):
                yield from (process, *filter(_runs, process.children(recursive=True)))


def _end_unknown(process: psutil.Process, mark: int, *, dry_run: bool) -> Iterator[Finding]:
    """Kill a process that no ledger here knows if its supervisor is proven dead."""
    what, supervisor = describe(process), supervisor_of(mark)
    whose = f"the supervisor with pid {supervisor}"
    if not _same_container(process):
        yield Finding(what, whose, "kept, its pids are those of another container")
        return
    if not _is_dead(supervisor, process):
        if not _is_supervisor(supervisor):  # else a pool with another runtime folder
            yield Finding(what, whose, "kept, a process with that pid lives")
        return
    if dry_run:
        yield Finding(what, whose, "would be killed")
        return
    left = kill_until_gone(lambda: filter(_runs, [process]), PATIENCE)
    if not any(bearers(lambda other: other == mark)):
        remove(leftovers(lambda other: other == mark, [scratch_of(mark, os.environ)]))
    yield Finding(what, whose, "cannot be killed" if left else "killed")


def _is_dead(supervisor: int, process: psutil.Process) -> bool:
    """Tell whether a supervisor is dead for sure: a process that began later is another one."""
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        if _runs(psutil.Process(supervisor)):
            return started_at(supervisor) > started_at(process.pid)
    return True


def _is_supervisor(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return "vllmport.pool.supervisor" in psutil.Process(pid).cmdline()
    return False


def _same_container(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(f"/proc/{process.pid}/ns/pid", "/proc/self/ns/pid")
    return False


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
