"""A contender in a process of its own, told what to do: the other end of `peers/harness.py`."""

import contextlib
import json
import os
import select
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from bench.children import Child, family
from bench.workload import ROOT

START_TIMEOUT = 240.0
TIMEOUT = 120.0


class Failed(Exception):
    """A contender that could not do what it was told, with its reason; the run goes on."""


class Stuck(Failed):
    """It did not answer in time, and may yet: it has to be started anew."""


class Done(NamedTuple):
    """What came of one order: its value, and the share of a core that the client used."""

    value: Any
    cpu: float


class Contender:
    """One client process and whatever it started.

    Args:
        name: What it is called.
        command: Arguments for Python.
        folder: For its log.
        python: Which Python; None for this one.
        env: Environment on top of this process's.

    Raises:
        Failed: It cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        python: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        if python is not None and not Path(python).exists():
            raise Failed(f"there is no {python}; `make bench` makes it")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        there = {**(env or {}), "PYTHONPATH": os.pathsep.join(paths)}
        if python is not None:
            there["TMPDIR"] = str(folder)  # not all of them clean up
        self._child = Child(command, folder / f"{name}.log", there, python)
        self._buffer = b""
        try:
            self._read(START_TIMEOUT)
        except Failed:
            self.close()
            raise
        self.pids: list[int] = []
        self.look()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, verb: str, *arguments: Any, timeout: float = TIMEOUT) -> Done:
        """Have something done.

        Raises:
            Failed: It said so, ended, or took longer than `timeout`.
        """
        try:
            self._child.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise Failed(self._last_words()) from None
        return self._read(timeout)

    @property
    def pid(self) -> int:
        """The client's process."""
        return self._child.pid

    def look(self) -> None:
        """See which processes it has now: some are started when they are first needed."""
        self.pids = family(self._child.pid)

    def leave(self) -> None:
        """Let it close what it has, and end by itself."""
        with contextlib.suppress(Failed):
            self.do("close")
        with contextlib.suppress(OSError):
            self._child.stdin.close()

    def close(self) -> None:
        """End it with all that it started, also what left its process group."""
        started = [psutil.Process(pid) for pid in family(self._child.pid) if psutil.pid_exists(pid)]
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._child.stop()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _read(self, timeout: float) -> Done:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._child.stdout], [], [], timeout)
            if not ready:
                raise Stuck(f"it did not answer within {timeout:.0f} s")
            chunk = self._child.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not chunk:
                raise Failed(self._last_words())
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        found = json.loads(line)
        if "error" in found:
            raise Failed(found["error"].removeprefix("NotOffered: "))
        return Done(found["value"], found["cpu"])

    def _last_words(self) -> str:
        lines = [text for text in self._child.log.read_text(errors="replace").splitlines() if text]
        return f"its process ended: {lines[-1] if lines else 'it said nothing'}"
