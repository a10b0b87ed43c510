"""The back: what workers say, given to the deciders; and who may be a worker."""

import logging
import time
from collections.abc import Callable
from typing import Any

from vllmport.bridge import limits
from vllmport.bridge.bundles import FULL
from vllmport.bridge.codec import Bytes, unpack
from vllmport.bridge.errors import ProtocolError, StartupFailed
from vllmport.bridge.messages import (
    PREPARED,
    Bye,
    End,
    Error,
    Holds,
    Items,
    Message,
    Pong,
    Progress,
    Ready,
    Register,
    Result,
    decode,
    encode,
    error_from,
)
from vllmport.bridge.states import WorkerState
from vllmport.pool.supervisor.crew import Crew
from vllmport.pool.supervisor.deciders import Deciders
from vllmport.pool.supervisor.front import BATCH
from vllmport.pool.supervisor.workers import Workers

logger = logging.getLogger("vllmport.supervisor")


class Back:
    """Workers on one side, the deciders on the other.

    Args:
        workers: Their socket.
        crew: Their processes.
        product: The version of this supervisor.
        act: Called after some messages, to do what was decided.
    """

    def __init__(
        self,
        workers: Workers,
        crew: Crew,
        deciders: Deciders,
        product: str,
        act: Callable[[float], None],
    ) -> None:
        self._workers = workers
        self._crew = crew
        dispatcher = self._dispatcher = deciders.dispatcher
        control = self._control = deciders.control
        self._fleet = deciders.fleet
        self._standbys = deciders.standbys
        self._product = product
        self._act = act
        self._handlers: dict[type[Message], Callable[[str, Any, list[Bytes], float], None]] = {
            Items: lambda w, m, frames, _: dispatcher.items(w, m, frames),
            End: dispatcher.end,
            Result: lambda w, m, f, now: dispatcher.result(w, m.client, m.id, f, now),
            Error: self._on_error,
            Pong: lambda w, m, frames, _: control.pong(w, m.token, unpack(frames[1])),
            Progress: self._on_progress,
            Ready: self._on_ready,
            Holds: lambda w, m, _f, _: dispatcher.holds(w, m),
        }

    def on_messages(self) -> None:
        """Take what workers sent."""
        for count in range(1, BATCH + 1):
            received = self._workers.receive()
            if received is None:
                break
            self._take(*received)
            if not self._workers.has_more():
                break
            if not count % FULL:
                self._act(time.monotonic())
        self._act(time.monotonic())

    # Inside.

    def _take(self, identity: bytes, worker: str | None, frames: list[Bytes]) -> None:
        now = time.monotonic()
        try:
            message, _, _ = decode(frames)
            handler = self._handlers.get(type(message))
            if worker is not None and handler is not None:
                handler(worker, message, frames, now)
            elif isinstance(message, Register):
                self._on_register(identity, message, now)
            else:  # of an incarnation that is gone
                self._dispatcher.counters.late += 1
        except ProtocolError as exc:
            logger.error("worker=%s bad message: %s", worker, exc)
        except Exception:  # outermost: one message must not end the pool
            logger.exception("worker=%s message lost", worker)

    def _on_register(self, identity: bytes, message: Register, now: float) -> None:
        standby = self._standbys.expects(message.nonce)
        worker = standby or self._expected(message.nonce)
        if worker is None or identity != message.nonce.encode():
            logger.warning("refused a worker that nobody expects pid=%d", message.pid)
            self._workers.send_to(identity, encode(Bye("nobody expects you")))
            return
        self._workers.admit(identity, worker)
        problem = self._skew(message) or _bad_group(message)
        if standby is None:
            self._fleet.registered(worker, now)
            if problem is not None:
                self._fleet.failed(worker, problem)
        if problem is not None:
            self._workers.send_to(identity, encode(Bye(problem.message)))
        elif standby is None:
            self._crew.load(worker)
        else:
            self._crew.prepare(standby)

    def _expected(self, nonce: str) -> str | None:
        found = (w for w in self._fleet.workers.values() if w.nonce == nonce)
        return next((w.id for w in found if w.state is WorkerState.STARTING), None)

    def _skew(self, message: Register) -> StartupFailed | None:
        ours = (limits.PROTOCOL_VERSION, self._product)
        if (message.protocol, message.product) == ours:
            return None
        return StartupFailed(
            f"the worker runs vllmport {message.product} (protocol {message.protocol}), "
            f"the supervisor {ours[1]} (protocol {ours[0]}); install the same version in both",
            phase="load",
        )

    def _on_progress(
        self, worker: str, message: Progress, _frames: list[Bytes], now: float
    ) -> None:
        self._crew.reported(worker)
        if worker not in self._standbys:
            self._fleet.workers[worker].stage = f"{message.stage} {message.text}".strip()
            self._control.progress(worker, now)
        elif message.stage == PREPARED:
            self._crew.stands_by(worker, now)

    def _on_ready(self, worker: str, message: Ready, frames: list[Bytes], now: float) -> None:
        if self._fleet.ready(worker, message.capacity, message.mode, unpack(frames[1]), now):
            self._crew.ready(worker, now)

    def _on_error(self, worker: str, message: Error, frames: list[Bytes], now: float) -> None:
        if message.id:
            self._dispatcher.result(worker, message.client, message.id, frames, now, message)
            return
        error = error_from(message, unpack(frames[1]))
        logger.error("failed worker=%s: %s", worker, error.message)
        if worker not in self._standbys:
            self._fleet.failed(worker, error)
            self._dispatcher.worker_draining(worker, now)  # it is about to exit


def _bad_group(message: Register) -> StartupFailed | None:
    if message.pid == message.pgid:
        return None
    text = f"worker pid {message.pid} is in process group {message.pgid}, not its own"
    return StartupFailed(text, phase="load")
