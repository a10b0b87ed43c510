"""The spawner: forks workers, reaps them, and takes everything with it when the supervisor goes.

Started by the supervisor as `python -m vllmport.pool.spawner FD PATH…` with one end of a
SOCK_SEQPACKET pair; the protocol on it is in `protocol.py`. At end of file, however it came about,
every group and every descendant is killed, the PATHs of this run are removed, and it exits.
"""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import sys
from dataclasses import dataclass

import psutil

from vllmport.pool.processes import (
    become_subreaper,
    descendants,
    describe_exit,
    kill_descendants,
    kill_group,
    strays,
)
from vllmport.pool.spawner import protocol
from vllmport.pool.spawner.launch import launch

CLEAR_POLL = 0.02
CLEANUP_TIMEOUT = 10.0


@dataclass(slots=True)
class _Child:
    worker: str
    tag: str


class Spawner:
    """The table of running and dying workers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, _Child] = {}
        self._dying: dict[int, _Child] = {}
        # Workers hold the read end. Whatever ends this process closes the write end, and the guard
        # in each worker's group reads end of file.
        self._lifeline, self._lifeline_kept = os.pipe2(os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until the supervisor is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(_child_signals(), selectors.EVENT_READ)
            while True:
                ready = selector.select(CLEAR_POLL if self._dying else None)
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
            case protocol.KillRequest(worker, signum):
                for pid, child in self._running.items():
                    if child.worker == worker:
                        kill_group(pid, signum)
        for fd in fds:
            os.close(fd)
        return True

    def _spawn(self, request: protocol.SpawnRequest, stderr: int) -> None:
        try:
            pid = launch(request.argv, request.env, stderr, self._lifeline)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in a name
            self._tell(protocol.Exited(request.worker, 0, f"could not be started: {exc}"))
            self._tell(protocol.Cleared(request.worker, 0, 0))
            return
        self._running[pid] = _Child(request.worker, request.tag)
        self._tell(protocol.Spawned(request.worker, pid, psutil.Process(pid).create_time()))

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
                self._dying[info.si_pid] = child
                cause = describe_exit(info.si_code, info.si_status)
                self._tell(protocol.Exited(child.worker, info.si_pid, cause))
            os.waitpid(info.si_pid, 0)

    def _confirm(self) -> None:
        """Say so when nothing is left of a dead worker; kill what shows up meanwhile."""
        for pgid, child in list(self._dying.items()):
            left = list(strays(child.tag))
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if not left and not kill_group(pgid, 0):
                del self._dying[pgid]
                self._tell(protocol.Cleared(child.worker, pgid, len(descendants())))

    def _tell(self, event: protocol.Event) -> None:
        with contextlib.suppress(ConnectionError):  # end of file is seen by the next receive
            protocol.send(self._control, event)


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
    control = socket.socket(fileno=int(argv[0]))
    control.set_inheritable(False)
    Spawner(control).run()
    left = kill_descendants(CLEANUP_TIMEOUT)
    for path in argv[1:]:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
