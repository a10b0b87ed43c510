"""The spawner: forks workers, reaps them, and takes everything with it when the supervisor goes.

Started by the supervisor as `python -m vllmport.pool.spawner FD RUN LEDGER PATH…` with one end of a
SOCK_SEQPACKET pair; the protocol on it is in `protocol.py`. At end of file, however it came about,
every group, every descendant and all that carries a mark of the RUN is killed, the PATHs are
removed, and it exits. The LEDGER goes only when nothing is left.
"""

import contextlib
import math
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllmport.pool.guard import guards_last
from vllmport.pool.leftovers import leftovers, remove
from vllmport.pool.marks import bearers, kill_run, run_of
from vllmport.pool.processes import (
    become_subreaper,
    descendants,
    describe,
    describe_exit,
    kill_group,
    kill_until_gone,
    oom_kills,
)
from vllmport.pool.spawner import protocol
from vllmport.pool.spawner.launch import launch

CLEAR_POLL = 0.02
BRIEFLY = 0.02
"""Seconds in which most of what was killed is gone."""

PATIENCE = 5.0
"""Seconds after which what was killed and is still there counts as unkillable."""

UNKILLABLE_POLL = 1.0


@dataclass(slots=True)
class _Child:
    worker: str
    mark: int
    scratch: Path
    died: float = 0.0
    next_look: float = 0.0
    given_up: bool = False
    killed_at: float = math.inf

    def owns(self, mark: int) -> bool:
        """Tell whether what carries this mark came from this worker."""
        return mark == self.mark

    def bearers(self) -> list[psutil.Process]:
        """Return what came from this worker, its guard only when nothing else is left."""
        return guards_last(bearers(self.owns))


class Spawner:
    """The table of running and dying workers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, _Child] = {}
        self._dying: dict[int, _Child] = {}
        self._oom_kills = oom_kills()
        # Workers hold the read end. Whatever ends this process closes the write end, and the guard
        # in each worker's group reads end of file.
        self._lifeline, self._lifeline_kept = os.pipe2(os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until the supervisor is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(_child_signals(), selectors.EVENT_READ)
            while True:
                ready = selector.select(self._next_look())
                for key, _ in ready:
                    if key.fileobj is self._control:
                        if not self._receive():
                            return
                    else:
                        os.read(key.fd, 4096)
                self._reap()
                self._confirm()

    def _receive(self) -> bool:
        """Do one request; return False once the supervisor is gone."""
        try:
            request, fds = protocol.receive(self._control)
        except ConnectionError:
            return False
        if request is None:
            return False
        match request:
            case protocol.SpawnRequest():
                self._spawn(request, fds[0])
            case protocol.KillRequest():
                self._kill(request)
        for fd in fds:
            os.close(fd)
        return True

    def _spawn(self, request: protocol.SpawnRequest, stderr: int) -> None:
        child = _Child(request.worker, request.mark, Path(request.scratch))
        made: list[Path] = []  # a folder that was there already is somebody's
        try:
            child.scratch.mkdir(mode=0o700)
            made.append(child.scratch)
            self._memory_was_short()  # what happened before is not this worker's end
            pid = launch(request, stderr, self._lifeline)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in a name
            remove(made)
            self._tell(protocol.Exited(request.worker, 0, f"could not be started: {exc}"))
            self._tell(protocol.Cleared(request.worker, 0, 0, []))
            return
        self._running[pid] = child
        self._tell(protocol.Spawned(request.worker, pid, psutil.Process(pid).create_time()))

    def _kill(self, request: protocol.KillRequest) -> None:
        for pid, child in self._running.items():
            if child.worker == request.worker:
                if request.signum == signal.SIGKILL:
                    child.killed_at = min(child.killed_at, time.monotonic())
                _signal(pid, child, request.signum, request.scope)

    def _reap(self) -> None:
        """Collect ended children; of a worker, kill the group while its number is still taken."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            child = self._running.pop(info.si_pid, None)
            if child is not None:
                kill_group(info.si_pid)
                child.died = time.monotonic()
                self._dying[info.si_pid] = child
                short = self._memory_was_short() and child.killed_at == math.inf
                cause = describe_exit(info.si_code, info.si_status, memory_was_short=short)
                if not child.given_up:
                    self._tell(protocol.Exited(child.worker, info.si_pid, cause))
            os.waitpid(info.si_pid, 0)

    def _memory_was_short(self) -> bool:
        """Tell whether the kernel has killed for want of memory since the last time."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before

    def _confirm(self) -> None:
        """Say so when nothing is left of a dead worker; kill what shows up meanwhile."""
        now = time.monotonic()
        for pid, child in self._running.items():
            if _gives_up_at(child) <= now:
                self._give_up(pid, child)
        for pgid, child in list(self._dying.items()):
            if child.next_look > now:
                continue
            left = kill_until_gone(child.bearers, BRIEFLY)
            if left or kill_group(pgid, 0):
                self._wait_for(pgid, child, left, now)
                continue
            remove(leftovers(child.owns, [child.scratch]))
            del self._dying[pgid]
            if not child.given_up:
                self._clear(pgid, child, [])

    def _give_up(self, pid: int, child: _Child) -> None:
        """Tell the supervisor to wait no longer for a worker that SIGKILL does not end."""
        child.given_up = True
        _signal(pid, child, signal.SIGKILL, "all")
        left = {process.pid: process for process in (psutil.Process(pid), *child.bearers())}
        self._tell(protocol.Exited(child.worker, pid, "cannot be killed"))
        self._clear(pid, child, [describe(process) for process in left.values()])

    def _wait_for(self, pgid: int, child: _Child, left: list[psutil.Process], now: float) -> None:
        """Look again soon; tell the supervisor to wait no longer when it has been too long."""
        if not child.given_up and now - child.died > PATIENCE:
            child.given_up = True
            self._clear(pgid, child, [describe(p) for p in left] or [f"process group {pgid}"])
        child.next_look = now + (UNKILLABLE_POLL if child.given_up else CLEAR_POLL)

    def _clear(self, pgid: int, child: _Child, unkillable: list[str]) -> None:
        self._tell(protocol.Cleared(child.worker, pgid, len(descendants()), unkillable))

    def _next_look(self) -> float | None:
        """Return how long nothing has to be done."""
        looks = [child.next_look for child in self._dying.values()]
        due = min([*looks, *map(_gives_up_at, self._running.values())], default=math.inf)
        return None if due == math.inf else max(due - time.monotonic(), 0.0)

    def clean_up(self, run: int, ledger: str, paths: Sequence[str]) -> int:
        """Leave nothing of the run; return the exit status."""

        def is_ours(mark: int) -> bool:
            return run_of(mark) == run

        left = kill_run(run, PATIENCE)
        children = [*self._running.values(), *self._dying.values()]
        remove(leftovers(is_ours, [child.scratch for child in children]))
        remove(map(Path, paths))
        if self._supervisor_is_gone():  # else it removes the lock itself, as its last act
            remove(Path(f"{path}.lock") for path in paths)
        if not left:
            remove([Path(ledger)])
        return protocol.SOMETHING_LEFT if left else 0

    def _supervisor_is_gone(self) -> bool:
        """Tell whether the socket was closed, or only shut down for sending."""
        poller = select.poll()
        poller.register(self._control, 0)
        return bool(poller.poll(0))

    def _tell(self, event: protocol.Event) -> None:
        with contextlib.suppress(ConnectionError):  # end of file is seen by the next receive
            protocol.send(self._control, event)


def _gives_up_at(child: _Child) -> float:
    """Return when a worker that still runs counts as unkillable."""
    return math.inf if child.given_up else child.killed_at + PATIENCE


def _signal(leader: int, child: _Child, signum: int, scope: protocol.Scope) -> None:
    """Signal a worker that was not waited for yet: its number is still its own."""
    if scope == "leader":
        with contextlib.suppress(PermissionError):
            os.kill(leader, signum)
        return
    kill_group(leader, signum)
    if scope == "all":
        for process in child.bearers():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) != leader:  # the others have it
                    process.send_signal(signum)


def _child_signals() -> int:
    """Return a descriptor that turns readable whenever a child ends."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return readable


def main(argv: list[str]) -> int:
    """Run the spawner to its end."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # only the supervisor, or its end, ends this process
    become_subreaper()
    for name in os.listdir("/proc/self/fd"):  # locks among them: no worker must hold those
        with contextlib.suppress(OSError):
            os.set_inheritable(int(name), int(name) <= 2)
    control, run, ledger, *paths = argv
    spawner = Spawner(socket.socket(fileno=int(control)))
    spawner.run()
    return spawner.clean_up(int(run), ledger, paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
