"""The worker processes: started through the spawner, and known until nothing is left of them.

Owns the spawner, the workers' stderr pipes and their boards. Each process is an incarnation with a
nonce of its own; a worker, or a standby, is the name of the place it fills now.
"""

import contextlib
import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from vllmport.bridge.board import SIZE, Board, OnRecord
from vllmport.pool.endpoint import place_of
from vllmport.pool.ledger import Ledger
from vllmport.pool.leftovers import remove
from vllmport.pool.plan import Plan
from vllmport.pool.spawner import protocol
from vllmport.pool.supervisor.descriptors import Descriptors
from vllmport.pool.supervisor.spawning import (
    SpawnerFailed,
    SpawnerLink,
    worker_command,
    worker_environment,
)
from vllmport.pool.supervisor.stderr import WorkerStderr

logger = logging.getLogger("vllmport.supervisor")

FOLDER: Final = "boards"

USEFUL_AFTER: Final = 10.0
"""Seconds after which a spawner that did nothing yet is not taken for one that cannot run."""

MAX_USELESS: Final = 3


class Listener(Protocol):
    """Who is told what becomes of the processes."""

    def on_spawned(self, worker: str, pid: int) -> None:
        """The process exists."""

    def on_exited(self, worker: str, cause: str) -> None:
        """It has ended; what it started is being killed."""

    def on_unkillable(self, worker: str, pid: int, left: list[str]) -> None:
        """Something of it cannot be killed, and is waited for no longer."""

    def on_cleared(self, worker: str, stderr: list[str]) -> None:
        """Nothing is left of it that can be killed."""

    def on_spawner_lost(self, pid: int) -> None:
        """The spawner died; a new one runs."""


@dataclass(slots=True)
class _Incarnation:
    nonce: str
    worker: str
    stderr: WorkerStderr
    board_path: Path
    board: Board
    pid: int = 0
    exited: bool = False


class Incarnations:
    """All worker processes of one supervisor.

    Args:
        plan: Where files go, and which interpreter workers run.
        endpoint: Where workers connect.
        lock_fd: The lock on the pool's endpoint; spawners keep a copy until all is cleaned up.
        descriptors: Where the spawner and the pipes are watched.
        listener: Is told what becomes of the processes.
        after: Called after each word to the listener, so that what follows is done at once.
    """

    def __init__(
        self,
        plan: Plan,
        endpoint: str,
        lock_fd: int,
        descriptors: Descriptors,
        listener: Listener,
        after: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._endpoint = endpoint
        self._lock_fd = lock_fd
        self._descriptors = descriptors
        self._listener = listener
        self._after = after
        self._by_nonce: dict[str, _Incarnation] = {}
        self._by_worker: dict[str, _Incarnation] = {}
        self._paths = [plan.run_dir, str(place_of(plan.endpoint, Path(plan.run_dir).parent))]
        self._folder = Path(plan.run_dir) / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._ledger = Ledger(plan.run_dir, plan.endpoint, plan.owner_pid)
        self._useless = 0  # spawners in a row that ended at once
        self._spawner = self._start_spawner()

    @property
    def spawner_pid(self) -> int:
        """The spawner's process."""
        return self._spawner.pid

    def spawn(self, worker: str, nonce: str, env: Mapping[str, str]) -> None:
        """Start a process; the listener hears of it, also if it could not be started."""
        try:
            path, board = _new_board(self._folder, nonce)
        except OSError as exc:
            self._listener.on_exited(worker, f"could not be started: {exc}")
            self._listener.on_cleared(worker, [])
            return
        stderr = WorkerStderr(self._plan.log_dir, worker)
        self._descriptors.watch(stderr.fileno(), lambda: self._on_stderr(stderr))
        incarnation = _Incarnation(nonce, worker, stderr, path, board)
        self._by_nonce[nonce] = self._by_worker[worker] = incarnation
        command = worker_command(self._plan.python, self._endpoint)
        try:
            self._spawner.spawn(nonce, command, worker_environment(os.environ, env), stderr)
        except OSError as exc:  # too much environment for one packet, for example
            self._ledger.cleared(nonce)
            self._on_exited(nonce, f"could not be started: {exc}")
            self._on_cleared(nonce)

    def adopt(self, standby: str, worker: str) -> str:
        """Let a standby's process be a worker's from now on; return its nonce."""
        incarnation = self._by_worker.pop(standby)
        incarnation.worker = worker
        incarnation.stderr.rename(worker)
        self._by_worker[worker] = incarnation
        return incarnation.nonce

    def kill(self, worker: str, signum: int, scope: protocol.Scope) -> int:
        """Have a signal sent; return the pid of the worker's leader, 0 if it has ended."""
        incarnation = self._by_worker.get(worker)
        if incarnation is None or incarnation.exited:
            return 0
        self._spawner.kill(incarnation.nonce, signum, scope)
        return incarnation.pid

    def pid(self, worker: str) -> int:
        """Return the pid of the worker's leader."""
        return self._by_worker[worker].pid

    def board(self, worker: str) -> Board:
        """Return what the process has on record."""
        return self._by_worker[worker].board

    def calls(self, worker: str) -> dict[tuple[int, int], OnRecord]:
        """Return what the process, if there was one, has on record of its calls."""
        incarnation = self._by_worker.get(worker)
        return incarnation.board.calls() if incarnation is not None else {}

    def board_path(self, worker: str) -> str:
        """Return the file of its record."""
        return str(self._by_worker[worker].board_path)

    def stop(self) -> None:
        """Let the spawner clean up everything and leave."""
        self._spawner.stop()

    # The spawner's words.

    def _start_spawner(self) -> SpawnerLink:
        self._useful_at = time.monotonic() + USEFUL_AFTER
        link = SpawnerLink(self._paths, [self._lock_fd], self._ledger)
        self._descriptors.watch(link.fileno(), self._on_spawner)
        return link

    def _on_spawner(self) -> None:
        event = self._spawner.receive()
        if event is not None:
            self._useless = 0
            self._useful_at = 0.0
        match event:
            case protocol.Spawned(nonce, pid, _):
                incarnation = self._by_nonce[nonce]
                incarnation.pid = pid
                self._listener.on_spawned(incarnation.worker, pid)
            case protocol.Exited(nonce, _, cause):
                self._on_exited(nonce, cause)
            case protocol.Cleared(nonce, _, _, unkillable):
                if unkillable:
                    incarnation = self._by_nonce[nonce]
                    self._listener.on_unkillable(incarnation.worker, incarnation.pid, unkillable)
                else:
                    self._ledger.cleared(nonce)
                self._on_cleared(nonce)
            case None:
                self._on_spawner_death()
        self._after()

    def _on_exited(self, nonce: str, cause: str) -> None:
        incarnation = self._by_nonce[nonce]
        incarnation.exited = True
        self._listener.on_exited(incarnation.worker, cause)

    def _on_cleared(self, nonce: str) -> None:
        incarnation = self._by_nonce.pop(nonce)
        del self._by_worker[incarnation.worker]
        incarnation.stderr.drain()
        self._descriptors.unwatch(incarnation.stderr.fileno())
        incarnation.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            incarnation.board_path.unlink()
        self._listener.on_cleared(incarnation.worker, incarnation.stderr.tail)

    def _on_spawner_death(self) -> None:
        """Its workers died with it; what did not, fell to us."""
        pid = self._spawner.pid
        logger.error("the spawner died pid=%d", pid)
        self._descriptors.unwatch(self._spawner.fileno())
        is_clean = self._spawner.bury()
        self._judge(is_clean=is_clean)
        lost = list(self._by_nonce.values())
        for incarnation in lost:
            if not incarnation.exited:
                self._on_exited(incarnation.nonce, "was lost with the spawner")
        self._spawner = self._start_spawner()
        self._listener.on_spawner_lost(pid)
        for incarnation in lost:
            if is_clean:
                self._ledger.cleared(incarnation.nonce)
            self._on_cleared(incarnation.nonce)

    def _judge(self, *, is_clean: bool) -> None:
        """Give up when the next spawner would not live either, and leave nothing of the run.

        Raises:
            SpawnerFailed: Too many in a row ended at once.
        """
        self._useless = self._useless + 1 if time.monotonic() < self._useful_at else 0
        if self._useless < MAX_USELESS:
            return
        remove(map(Path, self._paths))
        if is_clean:
            remove([self._ledger.path])
        raise SpawnerFailed(
            f"{MAX_USELESS} spawners in a row ended at once, so no worker can be started; "
            "what they said is above, and `vllmport doctor` may know more"
        )

    def _on_stderr(self, stderr: WorkerStderr) -> None:
        if not stderr.read():
            self._descriptors.unwatch(stderr.fileno())


def _new_board(folder: Path, nonce: str) -> tuple[Path, Board]:
    """Make the file of a board and map it.

    Raises:
        OSError: There is no room for it.
    """
    path = folder / nonce
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)
        return path, Board(memoryview(mmap.mmap(file.fileno(), SIZE)))
