"""Child processes that are gone when the benchmark is, in whatever way it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

STOP_TIMEOUT = 15.0


class Child:
    """A process in a session of its own, stopped with everything in its group.

    A shell beside it does no more than wait for this process to end, and then kills the group.

    Args:
        command: Arguments for Python.
        log: Where its stderr goes.
        env: Environment on top of this process's.
        python: Another Python than this one.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        python: str | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [python or sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", f"read _; kill -KILL -{self.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, for those that take commands."""
        assert self._process.stdin is not None, "made with a pipe"
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output."""
        assert self._process.stdout is not None, "made with a pipe"
        return self._process.stdout

    def check(self) -> None:
        """Raise with the last lines of its log if it has ended.

        Raises:
            RuntimeError: It has.
        """
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            text = f"{self._process.args!r} ended with {self._process.returncode}:\n{tail}"
            raise RuntimeError(text)

    def stop(self) -> None:
        """Ask it to end, then kill its group, then let the guard go."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._guard.kill()
        self._guard.wait()
        for pipe in (self.stdin, self.stdout, self._guard.stdin):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def engine_of(pid: int) -> int:
    """Return the process of vLLM's engine below another.

    Raises:
        RuntimeError: There is none.
    """
    for found in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("EngineCore" in part for part in psutil.Process(found).cmdline()):
                return found
    raise RuntimeError("there is no engine process")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time these processes have used, all threads that live, to the nanosecond.

    Of this process, which starts and ends many threads, those that ended count as well.
    """
    total = 0
    for pid in pids:
        if pid == os.getpid():
            total += time.process_time_ns()
            continue
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that ended just now
                total += int(stat.read_bytes().split()[0])
    return total / 1e9


def resident_mb(pid: int) -> float:
    """Return how much memory a process holds, in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def busy_seconds() -> float:
    """Return the CPU time everybody on this machine has used, and what its host has taken."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
