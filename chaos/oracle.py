"""What is really left: everything below this process in /proc, /dev/shm and the run's own folders.

This process is a child subreaper, so whatever it started stays below it, however it hid. That, with
pid and start time as identity, is all this file goes by: it knows no tag, mark or ledger of what it
watches, and imports nothing of it.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

PR_SET_CHILD_SUBREAPER: Final = 36
SHM: Final = Path("/dev/shm")  # noqa: S108  # looked at, never written to
LOOK: Final = 0.005
"""Seconds between two looks at /proc."""

QUIET_LOOK: Final = 0.5
QUIET_TICKS: Final = 5
"""Seconds of a look, and clock ticks of CPU time in it, below which nothing is under way."""


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """One process: its number may be used again, number and start time (clock ticks) are not."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Line:
    """What /proc/PID/stat says of a process; `ticks` is the CPU time it used."""

    process: Process
    parent: int
    session: int
    state: str
    name: str
    ticks: int


@dataclass(frozen=True, slots=True)
class Survivor:
    """A process that had to be gone and is not, as the kernel describes it.

    Attributes:
        ticks: Its start time, in clock ticks since the machine came up.
        command: Its command line, as far as it left one.
        left_session: Whether it is in none of the sessions that its pool made.
        variables: How many environment variables it shows.
    """

    pid: int
    ticks: int
    name: str
    command: str
    left_session: bool
    variables: int

    @property
    def is_out_of_reach(self) -> bool:
        """Whether it left its session and shows no environment: nothing says whose it is."""
        return self.left_session and not self.variables

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class Oracle:
    """Sees what is below this process.

    Args:
        runtime: The run's own folder for sockets and files; it has to be empty of both.
        scratch: The run's own folder for temporary files; no socket may stay in it.
    """

    def __init__(self, runtime: Path, scratch: Path) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._runtime, self._scratch = runtime, scratch
        self._children: set[int] = set()
        self._segments: set[str] = set()
        self._old_segments = set(os.listdir(SHM))

    def adopt(self, pid: int) -> None:
        """Leave it to the caller to collect this child."""
        self._children.add(pid)

    # Processes.

    def below(self) -> dict[Process, Line]:
        """Return all descendants of this process, after collecting orphans that ended here."""
        lines = list(_lines())
        children: dict[int, list[Line]] = {}
        for line in lines:
            children.setdefault(line.parent, []).append(line)
        found: dict[Process, Line] = {}
        waiting = list(children.get(os.getpid(), ()))
        while waiting:
            line = waiting.pop()
            if line.parent == os.getpid() and line.state == "Z":
                self._collect(line.process.pid)
            else:
                found[line.process] = line
            waiting += children.get(line.process.pid, ())
        return found

    def living(self) -> set[Process]:
        """Return those of them that run."""
        return {process for process, line in self.below().items() if line.state not in "ZX"}

    def zombies_of(self, parents: Collection[int]) -> int:
        """Count the ended children that these processes have not collected."""
        lines = self.below().values()
        return sum(line.state == "Z" and line.parent in parents for line in lines)

    def wait_gone(self, doomed: Collection[Process], patience: float) -> set[Process]:
        """Wait until none of them runs; return those that still do when patience is over."""
        wanted = set(doomed)
        _until(lambda: not wanted & self.living(), patience)
        return wanted & self.living()

    def wait_others_gone(self, known: Collection[Process], patience: float) -> set[Process]:
        """Wait until nothing but these runs below this process; return what else does."""
        _until(lambda: self.living() <= set(known), patience)
        return self.living() - set(known)

    def wait_quiet(self, patience: float) -> None:
        """Wait until what runs below this process does next to nothing."""
        end = time.monotonic() + patience
        before = self._ticks()
        while time.monotonic() < end:
            time.sleep(QUIET_LOOK)
            now = self._ticks()
            if now - before < QUIET_TICKS:
                return
            before = now

    def _ticks(self) -> int:
        return sum(line.ticks for line in self.below().values())

    def describe(
        self, processes: Iterable[Process], sessions: Collection[int] = ()
    ) -> list[Survivor]:
        """Say what the kernel knows of processes that should not be there.

        Args:
            processes: Which.
            sessions: Those that their pool made.
        """
        return [_describe(process, sessions) for process in sorted(processes)]

    def kill(self, processes: Collection[Process]) -> None:
        """End what should not be there, so that what comes next is clean."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.wait_gone(processes, 5.0)

    def _collect(self, pid: int) -> None:
        if pid not in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    # Files.

    def note_segments(self) -> None:
        """Note which shared memory the descendants use now: others here use /dev/shm as well."""
        for process in self.below():
            self._segments |= _segments_of(process.pid)

    def files_left(self) -> list[str]:
        """Return what is left in the run's folders, and of the shared memory that was noted."""
        segments = (set(os.listdir(SHM)) - self._old_segments) & self._segments
        sockets = (path for path in self._scratch.rglob("*") if path.is_socket())
        files = (path for path in self._runtime.rglob("*") if not path.is_dir())
        return sorted(map(str, [*(SHM / name for name in segments), *sockets, *files]))

    def wait_clean(self, patience: float) -> list[str]:
        """Wait until no such file is left; return what is."""
        _until(lambda: not self.files_left(), patience)
        return self.files_left()

    def remove_files(self) -> None:
        """Remove what is left, so that what comes next is clean."""
        for path in map(Path, self.files_left()):
            path.unlink(missing_ok=True)


def wait_state(pid: int, states: str, patience: float = 2.0) -> None:
    """Wait until a process is in one of these states, as /proc names them."""

    def there() -> bool:
        line = _line(pid)
        return line is None or line.state in states

    _until(there, patience)


def usage(pid: int) -> dict[str, int]:
    """Return what a process holds: descriptors, threads, resident memory in kB."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "resident_kb": int(status["VmRSS"].split()[0]),
    }


def _until(condition: Callable[[], bool], patience: float) -> bool:
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True


def _lines() -> Iterator[Line]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            line = _line(int(entry))
            if line is not None:
                yield line


def _line(pid: int) -> Line | None:
    """Read proc_pid_stat(5); the name is in brackets and may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    name = head.partition("(")[2]
    ticks = int(fields[11]) + int(fields[12])
    return Line(
        Process(pid, int(fields[19])), int(fields[1]), int(fields[3]), fields[0], name, ticks
    )


def _describe(process: Process, sessions: Collection[int]) -> Survivor:
    line = _line(process.pid)
    return Survivor(
        pid=process.pid,
        ticks=process.start,
        name=line.name if line else "",
        command=" ".join(_read(process.pid, "cmdline").split("\0")).strip()[:200],
        left_session=line is not None and line.session not in sessions,
        variables=sum("=" in part for part in _read(process.pid, "environ").split("\0")),
    )


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (OSError, ProcessLookupError):
        return ""


def _segments_of(pid: int) -> set[str]:
    """Return the names in /dev/shm that a process has mapped or open."""
    found = {
        line.rpartition("/dev/shm/")[2]  # noqa: S108
        for line in _read(pid, "maps").splitlines()
        if "/dev/shm/" in line  # noqa: S108
    }
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("/dev/shm/"):  # noqa: S108
                    found.add(target.rpartition("/")[2])
    return {name for name in found if not name.endswith(" (deleted)")}
