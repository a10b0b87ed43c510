"""The supervisor's end of the spawner: starts it, asks it, and survives its death.

Owns the socket pair and the workers' stderr pipes.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from vllmport.pool.ledger import Ledger
from vllmport.pool.leftovers import leftovers, remove, with_scratch
from vllmport.pool.marks import kill_run, run_of
from vllmport.pool.processes import WORKER_TAG, describe
from vllmport.pool.spawner import protocol
from vllmport.pool.supervisor.stderr import WorkerStderr

logger = logging.getLogger("vllmport.supervisor")

STOP_TIMEOUT = 15.0
KILL_TIMEOUT = 5.0


class SpawnerFailed(Exception):
    """Raised when no spawner lives long enough to be of use."""


class SpawnerLink:
    """A running spawner.

    Args:
        paths: Files and folders that it removes when the supervisor is gone.
        keep_fds: Descriptors that it holds open until it has cleaned up, the endpoint's lock first.
        ledger: Where every worker is written down before it is asked for.
    """

    def __init__(self, paths: Sequence[str], keep_fds: Sequence[int], ledger: Ledger) -> None:
        self._ledger = ledger
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllmport.pool.spawner"),
                    *(str(theirs.fileno()), str(ledger.run), str(ledger.path), *paths),
                ],
                pass_fds=[theirs.fileno(), ledger.fileno(), *keep_fds],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        _note(lambda: ledger.spawner(self._process.pid))

    def fileno(self) -> int:
        return self._control.fileno()

    @property
    def pid(self) -> int:
        """The spawner's process."""
        return self._process.pid

    def spawn(
        self, nonce: str, argv: list[str], env: Mapping[str, str], stderr: WorkerStderr
    ) -> None:
        """Ask for a worker, known by its nonce; Spawned or Exited follows.

        Raises:
            OSError: The request cannot be written down or sent.
        """
        try:
            mark, scratch = self._ledger.intend(nonce, env)
            marked = {
                **with_scratch(env, scratch),
                "VLLMPORT_NONCE": nonce,
                WORKER_TAG: str(mark),
                "SPT_NOENV": "1",
            }
            request = protocol.SpawnRequest(nonce, mark, str(scratch), argv, marked)
            self._send(request, (stderr.write_end,))
        finally:
            stderr.handed_over()

    def kill(self, nonce: str, signum: int, scope: protocol.Scope = "group") -> None:
        """Ask for a signal to a worker, to its whole group, or to all that carries its mark."""
        self._send(protocol.KillRequest(nonce, signum, scope))

    def receive(self) -> protocol.Event | None:
        """Take one event; None once the spawner is gone."""
        try:
            packet, _ = protocol.receive(self._control)
        except ConnectionError:
            return None
        assert packet is None or isinstance(packet, protocol.Event), "a spawner sends events only"
        if isinstance(packet, protocol.Spawned):
            worker, pid = packet.worker, packet.pid
            _note(lambda: self._ledger.spawned(worker, pid))
        return packet

    def bury(self, patience: float = KILL_TIMEOUT) -> bool:
        """After its death: kill what it left, which fell to this process, and collect it.

        Args:
            patience: Seconds that what was killed may take to go.

        Returns:
            Whether nothing is left.
        """
        self._control.close()
        self._process.wait()
        left = kill_run(self._ledger.run, patience)
        if left:
            logger.error("cannot be killed: %s", ", ".join(map(describe, left)))
        remove(leftovers(self._is_ours, self._ledger.scratches))
        return not left

    def stop(self) -> None:
        """Let it clean up everything and leave."""
        self._control.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            logger.error("the spawner cannot finish pid=%d", self.pid)
            self._process.kill()
        waited = self._process.poll() == protocol.SOMETHING_LEFT
        self.bury(0.0 if waited else KILL_TIMEOUT)

    def _is_ours(self, mark: int) -> bool:
        return run_of(mark) == self._ledger.run

    def _send(
        self, request: protocol.SpawnRequest | protocol.KillRequest, fds: tuple[int, ...] = ()
    ) -> None:
        try:
            protocol.send(self._control, request, fds)
        except ConnectionError:
            logger.warning("the spawner is gone; the request is repeated by the next one")


def _note(write: Callable[[], None]) -> None:
    """Write down what is good to know, and no loss where there is no room for it."""
    try:
        write()
    except OSError as exc:
        logger.warning("not in the ledger: %s", exc)


def worker_environment(base: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Merge a model's environment over the supervisor's."""
    env = {**base, **own}
    env.setdefault("PYTHONUNBUFFERED", "1")
    if "VLLM_PLUGINS" in env:  # a list of those that vLLM may load
        env["VLLM_PLUGINS"] += ",vllmport"
    return env


def worker_command(python: str, endpoint: str) -> list[str]:
    """Return the command line of a worker."""
    return [
        os.path.abspath(python) if os.sep in python else python,
        "-m",
        "vllmport.worker",
        endpoint,
    ]
