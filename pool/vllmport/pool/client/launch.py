"""Starts a supervisor that this process owns, and lets it go.

The supervisor runs in a session of its own, so that Ctrl-C in the caller's terminal does not reach
it, and holds one end of a pipe: when the owner ends, in whatever way, so does the pool.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vllmport.bridge.errors import StartupFailed
from vllmport.pool.endpoint import runtime_dir
from vllmport.pool.plan import Plan

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 20.0


def new_run_dir() -> Path:
    """Make a private folder for one run, with a path short enough for sockets."""
    return Path(tempfile.mkdtemp(prefix="run-", dir=runtime_dir()))


class OwnedSupervisor:
    """A running supervisor whose owner is this process.

    Args:
        make_plan: Makes the plan for the folder of this run; `owner_pid` is this process.

    Raises:
        StartupFailed: It did not come up; the message says why.
    """

    def __init__(self, make_plan: Callable[[Path], Plan]) -> None:
        self.pid = os.getpid()
        self._run_dir = new_run_dir()
        try:
            self.plan = make_plan(self._run_dir)
            self._log = Path(self.plan.log_dir) / "supervisor.log"
            self._process, self._lifeline, ready = self._start()
        except BaseException:
            _remove(self._run_dir)
            raise
        problem = self._wait_ready(ready)
        if problem is not None:
            self.stop()
            raise StartupFailed(problem, phase="start", details={"interpreter": sys.executable})

    def _start(self) -> tuple["subprocess.Popen[bytes]", int, int]:
        """Start the process and hand it the plan; return it, the lifeline and the ready pipe."""
        plan_read, plan_write = os.pipe()
        ready_read, ready_write = os.pipe()
        life_read, life_write = os.pipe()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllmport.pool.supervisor"),
                    *("--plan-fd", str(plan_read), "--ready-fd", str(ready_write)),
                    *("--lifeline-fd", str(life_read)),
                ],
                pass_fds=[plan_read, ready_write, life_read],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for fd in (plan_read, ready_write, life_read):
            os.close(fd)
        with os.fdopen(plan_write, "w") as pipe:
            pipe.write(self.plan.to_json())
        return process, life_write, ready_read

    def _wait_ready(self, fd: int) -> str | None:
        """Return None once it serves, else what is wrong."""
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        ready = poller.poll(START_TIMEOUT * 1000)
        with os.fdopen(fd) as pipe:
            line = pipe.readline() if ready else ""
        if line:
            error = json.loads(line).get("error")
            return None if error is None else str(error)
        tail = self._log.read_text(errors="replace").splitlines()[-12:]
        return "the supervisor did not start:\n    " + "\n    ".join(tail)

    def stop(self, patience: float = STOP_TIMEOUT) -> None:
        """Let go of the lifeline: the pool ends now; wait until it has, then kill it."""
        if self.pid != os.getpid():
            return  # a forked child owns nothing
        self.drop_lifeline()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the spawner cleans up after it
            self._process.wait()
        self._sweep()
        _remove(self._run_dir)

    def _sweep(self) -> None:
        """Where nobody could clean up, do it: supervisor and spawner were killed as well."""
        if Path(f"{self._run_dir}.ledger").exists():
            from vllmport.pool.reap import sweep

            sweep(self._run_dir.parent)

    def drop_lifeline(self) -> None:
        """Close this process's end of the pipe; in a forked child, that is all."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def _remove(run_dir: Path) -> None:
    """Remove what is left of the run's folder; the spawner may be at it as well."""
    end = time.monotonic() + 2
    while run_dir.exists() and time.monotonic() < end:
        shutil.rmtree(run_dir, ignore_errors=True)
