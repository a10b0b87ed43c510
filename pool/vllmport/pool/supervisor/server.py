"""The supervisor's loop: moves frames between sockets and the deciders, and does what they decide.

All decisions are made in `dispatch.py`, `fleet.py` and `control.py`, which do no I/O. This file
does all of it, and never blocks but in one poll.
"""

import logging
import math
import os
import secrets
import signal
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

import zmq

from vllmport.bridge import limits
from vllmport.bridge.codec import Bytes, Packed, pack, unpack
from vllmport.bridge.errors import (
    PoolClosed,
    ProtocolError,
    StartupFailed,
    VllmportError,
)
from vllmport.bridge.messages import (
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Hello,
    Items,
    Load,
    Message,
    Ping,
    Pong,
    Progress,
    Ready,
    Register,
    Result,
    Welcome,
    decode,
    encode,
    error_from,
    error_message,
)
from vllmport.bridge.states import WorkerState
from vllmport.bridge.timeouts import milliseconds
from vllmport.pool.plan import Plan
from vllmport.pool.processes import become_subreaper
from vllmport.pool.spawner import protocol
from vllmport.pool.supervisor import fleet as do
from vllmport.pool.supervisor.clients import Client, Clients
from vllmport.pool.supervisor.control import Control
from vllmport.pool.supervisor.descriptors import Descriptors
from vllmport.pool.supervisor.dispatch import Dispatcher, ToClient, ToWorker
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.spawning import SpawnerLink, worker_command, worker_environment
from vllmport.pool.supervisor.stderr import WorkerStderr
from vllmport.pool.supervisor.workers import Workers

logger = logging.getLogger("vllmport.supervisor")

BATCH: Final = 256
"""Messages taken from one socket before the others get their turn."""

SLOW_RETRY: Final = 0.01
"""Seconds between tries to send to a client that does not read."""


class Supervisor:
    """One pool.

    Args:
        plan: What to run.
        lock_fd: The lock on the endpoint; the spawner keeps a copy until all is cleaned up.
        lifeline_fd: A pipe whose other end the owner holds, or -1.
    """

    def __init__(self, plan: Plan, lock_fd: int, lifeline_fd: int = -1) -> None:
        self._plan = plan
        self._product = version("vllmport")
        self._epoch = secrets.token_hex(8)
        self._lock_fd = lock_fd
        self._stopping = False
        self._deadline = math.inf  # of stopping
        become_subreaper()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clients = Clients(self._context, plan.endpoint, plan.policy.max_client_bytes)
        self._workers = Workers(self._context, f"ipc://{plan.run_dir}/workers.sock")
        self._dispatcher = Dispatcher(plan.policy.max_queue, plan.policy.max_queue_bytes)
        self._fleet = Fleet(plan.policy, lambda: secrets.token_hex(16))
        self._control = Control(
            self._fleet, self._dispatcher, plan.aliases, self._identity, self._on_shutdown_verb
        )
        self._exits: dict[str, str] = {}  # worker → how it ended, until its group is cleared
        self._stderr: dict[str, WorkerStderr] = {}
        self._descriptors = Descriptors()
        self._spawner = self._start_spawner()
        self._watch_owner(lifeline_fd)
        self._watch_signals()
        self._worker_handlers: dict[
            type[Message], Callable[[str, Any, list[Bytes], float], None]
        ] = {
            Items: lambda w, m, frames, _: self._dispatcher.items(w, m, frames),
            End: self._dispatcher.end,
            Result: lambda w, m, f, now: self._dispatcher.result(w, m.client, m.id, f, now),
            Error: self._on_worker_error,
            Pong: lambda w, m, frames, _: self._control.pong(w, m.token, unpack(frames[1])),
            Progress: self._on_progress,
            Ready: self._on_ready,
        }

    # The loop.

    def run(self) -> int:
        """Serve until told to stop and everything is gone; return the exit status."""
        now = time.monotonic()
        for spec in self._plan.models:
            self._fleet.load(spec, now, declared=True)
            self._dispatcher.add_model(spec.name)
        self._act(now)
        logger.info(
            "serving endpoint=%s pid=%d epoch=%s", self._plan.endpoint, os.getpid(), self._epoch
        )
        poller = zmq.Poller()
        for source in (
            self._clients.monitor,
            self._clients.socket,
            self._workers.socket,
            self._descriptors,
        ):
            poller.register(source, zmq.POLLIN)
        while not self._finished():
            ready = dict(poller.poll(self._timeout(time.monotonic())))
            if self._clients.monitor in ready:
                self._on_disconnects()
            if self._workers.socket in ready:
                self._on_back()  # before exits are dealt with: last words count
            if self._descriptors.fileno() in ready:
                self._descriptors.handle()
            if self._clients.socket in ready:
                self._on_front()
            self._on_time(time.monotonic())
        return self._leave()

    def _timeout(self, now: float) -> int | None:
        due = min(
            self._dispatcher.next_deadline(),
            self._fleet.next_deadline(),
            self._control.next_deadline(),
            self._deadline,
            now + SLOW_RETRY if self._clients.slow else math.inf,
        )
        return milliseconds(due - now)

    def _on_time(self, now: float) -> None:
        if self._dispatcher.next_deadline() <= now:
            self._dispatcher.expire(now)
        if self._control.next_deadline() <= now:
            self._control.expire(now)
        if self._fleet.next_deadline() <= now:
            self._fleet.tick(now)
        if self._stopping and self._deadline <= now:
            self._deadline = math.inf
            self._fleet.hurry(now)
        if self._clients.slow:
            for client in self._clients.retry():
                self._drop(client, "it does not read")
        self._act(now)

    def _finished(self) -> bool:
        return self._stopping and not self._fleet.workers

    # The front: clients.

    def _on_front(self) -> None:
        for _ in range(BATCH):
            try:
                identity, client, frames, first = self._clients.receive()
            except zmq.Again:
                return
            now = time.monotonic()
            try:
                message, payload, buffers = decode(frames)
                if client is None:
                    assert first is not None, "an unknown identity comes with its first frame"
                    self._on_stranger(identity, message, first)
                else:
                    self._on_client(client, message, Packed(bytes(payload), list(buffers)), now)
            except ProtocolError as exc:
                logger.info("client=%s bad message: %s", client.key if client else "?", exc)
                self._clients.send_to_stranger(identity, _error_frames(exc))
            except Exception:  # outermost: one message must not end the pool
                logger.exception("client=%s message lost", client.key if client else "?")
                self._clients.send_to_stranger(
                    identity, _error_frames(ProtocolError("not understood"))
                )
            self._act(now)

    def _on_stranger(self, identity: bytes, message: Message, first: zmq.Frame) -> None:
        if isinstance(message, Bye):
            return  # its connection has gone already
        if not isinstance(message, Hello):
            raise ProtocolError("say HELLO first: this pool does not know the connection")
        if limits.PROTOCOL_VERSION not in message.versions:
            raise ProtocolError(
                f"this pool speaks protocol {limits.PROTOCOL_VERSION} (vllmport {self._product}), "
                f"the client {message.versions} ({message.product}); install matching versions"
            )
        try:
            client, gone = self._clients.admit(identity, first, message.pid)
        except PermissionError as exc:
            raise ProtocolError(str(exc)) from exc
        self._forget_clients(gone)
        logger.info("client=%d connected pid=%d name=%s", client.key, message.pid, message.name)
        welcome = Welcome(limits.PROTOCOL_VERSION, self._product, self._epoch, os.getpid())
        self._send_client(client.key, encode(welcome, pack(_limits())))

    def _on_client(self, client: Client, message: Message, packed: Packed, now: float) -> None:
        match message:
            case Call():
                if self._stopping and (message.model or message.verb == "load"):
                    error = PoolClosed("the pool is shutting down")
                    self._send_client(client.key, _error_frames(error, message.id))
                elif message.model:
                    self._dispatcher.call(client.key, message, packed, now)
                else:
                    self._control.call(client.key, message, packed, now)
            case Cancel(call_id):
                self._dispatcher.cancel(client.key, call_id)
                self._control.cancel(client.key, call_id, now)
            case Credit(call_id, count):
                self._dispatcher.credit(client.key, call_id, count)
            case Ping(token):
                self._send_client(client.key, encode(Pong(token)))
            case Bye():
                self._drop(client, "it left")
            case _:
                raise ProtocolError(f"a client sends no {type(message).__name__.upper()}")

    def _on_disconnects(self) -> None:
        self._forget_clients(self._clients.disconnected())
        self._act(time.monotonic())

    def _forget_clients(self, gone: list[Client]) -> None:
        for client in gone:
            logger.info("client=%d disconnected pid=%d", client.key, client.pid)
            self._forget_client(client)

    def _drop(self, client: Client, why: str) -> None:
        logger.info("client=%d dropped: %s", client.key, why)
        self._clients.forget(client)
        self._forget_client(client)

    def _forget_client(self, client: Client) -> None:
        self._dispatcher.client_gone(client.key)
        self._control.client_gone(client.key)
        self._fleet.client_gone(client.key, time.monotonic())

    # The back: workers.

    def _on_back(self) -> None:
        for _ in range(BATCH):
            try:
                identity, worker, frames = self._workers.receive()
            except zmq.Again:
                return
            now = time.monotonic()
            try:
                message, _, _ = decode(frames)
                handler = self._worker_handlers.get(type(message))
                if worker is not None and handler is not None:
                    handler(worker, message, frames, now)  # type: ignore[arg-type]
                elif isinstance(message, Register):
                    self._on_register(identity, message, now)
                else:  # of an incarnation that is gone
                    self._dispatcher.counters.late += 1
            except ProtocolError as exc:
                logger.error("worker=%s bad message: %s", worker, exc)
            except Exception:  # outermost: one message must not end the pool
                logger.exception("worker=%s message lost", worker)
            self._act(now)

    def _on_register(self, identity: bytes, message: Register, now: float) -> None:
        worker = next((w for w in self._fleet.workers.values() if w.nonce == message.nonce), None)
        if (
            worker is None
            or identity != message.nonce.encode()
            or worker.state is not WorkerState.STARTING
        ):
            logger.warning("refused a worker that nobody expects pid=%d", message.pid)
            self._workers.send_to(identity, encode(Bye("nobody expects you")))
            return
        self._workers.admit(identity, worker.id)
        self._fleet.registered(worker.id, now)
        problem = self._skew(message) or self._bad_group(message)
        if problem is not None:
            self._fleet.failed(worker.id, problem)
            self._workers.send_to(identity, encode(Bye(problem.message)))
            return
        self._log_worker("registered", worker.id)
        spec = self._fleet.models[worker.model].spec
        self._workers.send_to(identity, encode(Load(worker.id), pack(spec.for_worker())))

    def _skew(self, message: Register) -> StartupFailed | None:
        ours = (limits.PROTOCOL_VERSION, self._product)
        if (message.protocol, message.product) == ours:
            return None
        return StartupFailed(
            f"the worker runs vllmport {message.product} (protocol {message.protocol}), "
            f"the supervisor {ours[1]} (protocol {ours[0]}); install the same version in both",
            phase="load",
            details={"interpreter": self._plan.python},
        )

    def _bad_group(self, message: Register) -> StartupFailed | None:
        if message.pid == message.pgid:
            return None
        text = f"worker pid {message.pid} is in process group {message.pgid}, not its own"
        return StartupFailed(text, phase="load")

    def _on_progress(
        self, worker: str, message: Progress, _frames: list[Bytes], now: float
    ) -> None:
        record = self._fleet.workers[worker]
        record.stage = f"{message.stage} {message.text}".strip()
        self._control.progress(worker, now)

    def _on_ready(self, worker: str, message: Ready, frames: list[Bytes], now: float) -> None:
        self._fleet.ready(worker, message.capacity, message.mode, unpack(frames[1]), now)
        self._log_worker("ready", worker)

    def _on_worker_error(
        self, worker: str, message: Error, frames: list[Bytes], now: float
    ) -> None:
        if message.id:
            self._dispatcher.result(worker, message.client, message.id, frames, now, message.code)
            return
        error = error_from(message, unpack(frames[1]))
        logger.error("failed worker=%s: %s", worker, error.message)
        self._fleet.failed(worker, error)
        self._dispatcher.worker_draining(worker)  # it is about to exit

    # Processes.

    def _start_spawner(self) -> SpawnerLink:
        paths = [self._plan.run_dir, self._plan.socket_path]
        link = SpawnerLink(paths, [self._lock_fd])
        self._descriptors.watch(link.fileno(), self._on_spawner)
        return link

    def _on_spawner(self) -> None:
        event = self._spawner.receive()
        now = time.monotonic()
        match event:
            case protocol.Spawned(worker, pid, _):
                self._fleet.spawned(worker, pid)
                self._log_worker("spawned", worker)
            case protocol.Exited(worker, _, cause):
                self._on_worker_exit(worker, cause)
            case protocol.Cleared(worker):
                self._on_worker_cleared(worker, now)
            case None:
                self._on_spawner_death(now)
        self._act(now)

    def _on_worker_exit(self, worker: str, cause: str) -> None:
        """Fail its calls at once; it is started again only when its group is gone as well."""
        record = self._fleet.workers[worker]
        level = logging.INFO if record.state is WorkerState.DRAINING else logging.ERROR
        self._log_worker(f"{cause}, in_flight={self._dispatcher.in_flight(worker)}", worker, level)
        self._exits[worker] = cause
        self._workers.forget(worker)
        for request_id in self._dispatcher.worker_gone(worker, cause):
            self._log_worker(f"call lost request_id={request_id}", worker, logging.WARNING)
        self._control.worker_gone(worker)

    def _on_worker_cleared(self, worker: str, now: float) -> None:
        stderr = self._stderr.pop(worker)
        stderr.drain()
        self._descriptors.unwatch(stderr.fileno())
        stderr.close()
        self._fleet.exited(worker, self._exits.pop(worker), stderr.tail, now)

    def _on_spawner_death(self, now: float) -> None:
        """Its workers died with it; what did not, fell to us."""
        logger.error("the spawner died pid=%d", self._spawner.pid)
        self._descriptors.unwatch(self._spawner.fileno())
        self._spawner.bury()
        for worker in self._fleet.workers.values():
            if worker.state in do.ALIVE and worker.id not in self._exits:
                self._on_worker_exit(worker.id, "was lost with the spawner")
        self._spawner = self._start_spawner()
        for worker_id in list(self._exits):
            self._on_worker_cleared(worker_id, now)

    def _watch_owner(self, lifeline_fd: int) -> None:
        """Stop when the owner ends: its pipe tells, or, where a child holds that, its pidfd."""
        if lifeline_fd >= 0:
            self._descriptors.watch(lifeline_fd, self._on_owner_gone)
        if self._plan.owner_pid:
            try:
                self._descriptors.watch(os.pidfd_open(self._plan.owner_pid), self._on_owner_gone)
            except ProcessLookupError:
                self._on_owner_gone()

    def _on_owner_gone(self) -> None:
        logger.info("the owner is gone pid=%d", self._plan.owner_pid)
        self.stop(drain=False)
        self._descriptors.unwatch_all(self._on_owner_gone)

    def _watch_signals(self) -> None:
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
        self._descriptors.watch(readable, lambda: self._on_signals(os.read(readable, 64)))

    def _on_signals(self, signums: bytes) -> None:
        for signum in signums:
            logger.info("%s", signal.Signals(signum).name)
            self.stop(drain=not self._stopping)

    # Stopping.

    def stop(self, *, drain: bool) -> None:
        """Take no new calls and leave when the open ones are done; at once without `drain`."""
        now = time.monotonic()
        if not self._stopping:
            self._stopping = True
            self._fleet.stop(now)
            self._deadline = now + self._plan.policy.drain_timeout + self._plan.policy.stop_timeout
        if not drain:
            self._fleet.hurry(now)
        logger.info("stopping drain=%s open_calls=%d", drain, self._dispatcher.open_calls)

    def _on_shutdown_verb(self, drain: bool) -> None:  # noqa: FBT001  # a callback
        self.stop(drain=drain)

    def _leave(self) -> int:
        self._act(time.monotonic())
        self._spawner.stop()
        self._clients.socket.disable_monitor()
        self._context.destroy(linger=200)
        logger.info("stopped pid=%d", os.getpid())
        return 0

    # Doing what was decided.

    def _act(self, now: float) -> None:
        """Do what the deciders decided, until they have decided nothing more."""
        while True:
            outgoing = self._dispatcher.take_outgoing() + self._control.take_outgoing()
            actions = self._fleet.take_actions()
            for message in outgoing:
                match message:
                    case ToClient(client, frames):
                        self._send_client(client, frames)
                    case ToWorker(worker, frames):
                        self._workers.send(worker, frames)
            for action in actions:
                self._do(action, now)
            empty = [w for w in self._fleet.emptying if not self._dispatcher.in_flight(w)]
            for worker in empty:
                self._fleet.drained(worker, now)
            if not (outgoing or actions or empty):
                return

    def _do(self, action: do.Action, now: float) -> None:  # noqa: C901  # one flat table
        match action:
            case do.Spawn(worker, nonce):
                self._spawn(worker, nonce)
            case do.Serve(worker, model, capacity):
                self._dispatcher.worker_ready(worker, model, capacity, now)
            case do.Drain(worker):
                self._dispatcher.worker_draining(worker)
            case do.SayBye(worker):
                self._workers.send(worker, encode(Bye("stop")))
            case do.Kill(worker, gently):
                self._spawner.kill(worker, signal.SIGTERM if gently else signal.SIGKILL)
            case do.Refuse(model, error):
                error.details.setdefault("interpreter", self._plan.python)
                self._dispatcher.refuse(model, error)
            case do.Settled(model, error):
                if error is not None:
                    error.details.setdefault("interpreter", self._plan.python)
                self._control.settled(model, error, now)
            case do.Removed(model):
                self._dispatcher.remove_model(model, PoolClosed(f"model {model!r} was unloaded"))
                self._control.removed(model)

    def _spawn(self, worker: str, nonce: str) -> None:
        spec = self._fleet.models[self._fleet.workers[worker].model].spec
        stderr = self._stderr[worker] = WorkerStderr(self._plan.log_dir, worker)
        self._descriptors.watch(stderr.fileno(), lambda: self._on_stderr(stderr))
        command = worker_command(self._plan.python, self._workers.endpoint, worker)
        environment = worker_environment(os.environ, spec.env)
        try:
            self._spawner.spawn(worker, nonce, command, environment, stderr)
        except OSError as exc:  # too much environment for one packet, for example
            self._on_worker_exit(worker, f"could not be started: {exc}")
            self._on_worker_cleared(worker, time.monotonic())

    def _send_client(self, key: int, frames: list[Bytes]) -> None:
        lost = self._clients.send(key, frames)
        if lost is not None:
            self._drop(lost, "it is gone or does not read")

    def _on_stderr(self, stderr: WorkerStderr) -> None:
        if not stderr.read():
            self._descriptors.unwatch(stderr.fileno())

    # Words.

    def _identity(self) -> dict[str, Any]:
        return {
            "supervisor": {
                "pid": os.getpid(),
                "epoch": self._epoch,
                "product": self._product,
                "endpoint": self._plan.endpoint,
                "log_dir": self._plan.log_dir,
                "stopping": self._stopping,
                "clients": len(self._clients),
            },
            "spawner": {"pid": self._spawner.pid},
        }

    def _log_worker(self, what: str, worker: str, level: int = logging.INFO) -> None:
        record = self._fleet.workers[worker]
        logger.log(
            level,
            "%s model=%s worker=%s pid=%d state=%s",
            what,
            record.model,
            worker,
            record.pid,
            record.state,
        )


def _error_frames(error: VllmportError, call_id: int = 0) -> list[Bytes]:
    return encode(error_message(error, call_id), pack(error.details))


def _limits() -> dict[str, int]:
    return {
        "max_header": limits.MAX_HEADER,
        "max_payload": limits.MAX_PAYLOAD,
        "max_frame": limits.MAX_FRAME,
        "max_buffers": limits.MAX_BUFFERS,
    }
