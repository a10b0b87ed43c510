"""The supervisor's loop: waits, lets the others take what came, and does what they decided.

All decisions are made by objects that do no I/O: `dispatch.py`, `fleet.py`, `standby.py`,
`health.py` and `control.py`. What clients and workers say comes through `front.py` and `back.py`.
"""

import logging
import math
import os
import secrets
import signal
import time
from importlib.metadata import version
from typing import Any, Final

import zmq

from vllmport.bridge import limits
from vllmport.bridge.bundles import bundled
from vllmport.bridge.codec import Bytes
from vllmport.bridge.errors import PoolClosed
from vllmport.bridge.events import line
from vllmport.bridge.messages import Bye, Welcome, encode
from vllmport.pool.plan import Plan
from vllmport.pool.processes import become_subreaper
from vllmport.pool.reap import Finding
from vllmport.pool.supervisor import actions as do
from vllmport.pool.supervisor.back import Back
from vllmport.pool.supervisor.clients import Clients
from vllmport.pool.supervisor.control import Control
from vllmport.pool.supervisor.crew import Crew
from vllmport.pool.supervisor.deciders import Deciders
from vllmport.pool.supervisor.descriptors import Descriptors, Rank
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.door import Door
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.front import Front
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker
from vllmport.pool.supervisor.places import Worker
from vllmport.pool.supervisor.standby import Standbys
from vllmport.pool.supervisor.workers import Workers

logger = logging.getLogger("vllmport.supervisor")

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
        policy = plan.policy
        self._welcome = Welcome(
            limits.PROTOCOL_VERSION, version("vllmport"), secrets.token_hex(8), os.getpid()
        )
        self._stopping = False
        self._deadline = math.inf  # of stopping
        become_subreaper()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._door = Door(self._context, plan.security) if plan.security is not None else None
        self._clients = Clients(self._context, plan.endpoint, policy.max_client_bytes, self._door)
        self._workers = Workers(self._context, f"ipc://{plan.run_dir}/workers.sock")
        self._events = EventLog(time.time)
        self._dispatcher = Dispatcher(
            policy.max_queue, policy.max_queue_bytes, policy.abort_grace, self._events
        )
        self._standbys = Standbys(policy, self._events, _new_nonce)
        self._fleet = Fleet(policy, self._events, _new_nonce, self._standbys.take, self._has_room)
        self._control = Control(
            self._fleet,
            self._dispatcher,
            self._events,
            plan.aliases,
            self._identity,
            self._on_shutdown_verb,
        )
        deciders = Deciders(
            self._events, self._dispatcher, self._fleet, self._standbys, self._control
        )
        self._descriptors = Descriptors()
        self._crew = Crew(plan, lock_fd, self._workers, deciders, self._descriptors, self._act_now)
        self._front = Front(self._clients, deciders, self._welcome, plan.timeouts, self._act)
        self._back = Back(self._workers, self._crew, deciders, self._welcome.product, self._act)
        self._timed = (
            (self._dispatcher.next_deadline, self._expire),
            (self._control.next_deadline, self._control.expire),
            (self._fleet.next_deadline, self._fleet.tick),
            (self._front.next_deadline, self._front.tick),
            *self._crew.timed,
            (lambda: self._deadline, self._on_deadline),
        )
        self._lifeline_fd = lifeline_fd
        self._watch_signals()

    def report(self, found: list[Finding]) -> None:
        """Tell what runs that are over had left."""
        for finding in found:
            self._events.add(
                "orphan.reaped", what=finding.what, whose=finding.whose, outcome=finding.outcome
            )

    # The loop.

    def run(self) -> int:
        """Serve until told to stop and everything is gone; return the exit status."""
        now = time.monotonic()
        self._events.add("pool.started", pid=os.getpid(), epoch=self._welcome.epoch)
        for spec in self._plan.models:
            self._fleet.load(spec, now, declared=True)
            self._dispatcher.add_model(spec.name)
        self._watch_owner(self._lifeline_fd)
        self._watch_sockets()
        self._act(now)
        logger.info("serving endpoint=%s pid=%d", self._plan.endpoint, os.getpid())
        while not self._finished():
            due = self._due()
            self._descriptors.wait(due - time.monotonic())
            if due <= (now := time.monotonic()):
                self._on_time(now)
        return self._leave()

    def _watch_sockets(self) -> None:
        watch = self._descriptors
        if self._door is not None:
            watch.watch_inlet(self._door, self._door.on_requests, Rank.CONNECTIONS)
        watch.watch_socket(self._clients.monitor, self._front.on_disconnects, Rank.CONNECTIONS)
        watch.watch_inlet(self._workers, self._back.on_messages, Rank.WORKERS)
        watch.watch_inlet(self._clients, self._front.on_messages, Rank.CLIENTS)

    def _due(self) -> float:
        """Return when something has to be done, though nothing comes."""
        due = min([next_deadline() for next_deadline, _ in self._timed])
        return min(due, time.monotonic() + SLOW_RETRY) if self._clients.slow else due

    def _on_time(self, now: float) -> None:
        for next_deadline, do_what_is_due in self._timed:
            if next_deadline() <= now:
                do_what_is_due(now)
        for client in self._clients.retry():
            self._front.drop(client, "it does not read")
        self._act(now)

    def _expire(self, now: float) -> None:
        self._dispatcher.expire(now)
        grace = self._plan.policy.abort_grace
        for worker in self._dispatcher.take_stuck():
            self._fleet.hung(worker, f"hung: it held a call {grace:g} s after its abort", now)
        for worker in self._dispatcher.take_outstayed():
            why = f"a universal call computed on {grace:g} s after it was given up"
            self._fleet.recycle(worker, why, now)

    def _on_deadline(self, now: float) -> None:
        """Kill what has not stopped within the time it had."""
        self._deadline = math.inf
        self._hurry(now)

    def _finished(self) -> bool:
        return self._stopping and not self._fleet.workers

    # Who may end the pool.

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
        self._act_now()

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
        self._act_now()

    # Stopping.

    def stop(self, *, drain: bool) -> None:
        """Take no new calls and leave when the open ones are done; at once without `drain`."""
        now = time.monotonic()
        if not self._stopping:
            self._stopping = self._front.stopping = True
            open_calls = self._dispatcher.open_calls
            self._events.add("pool.stopping", drain=drain, open_calls=open_calls)
            self._fleet.stop(now)
            self._crew.models_changed(now)  # no standby is of use any more
            policy = self._plan.policy
            self._deadline = now + policy.drain_timeout + policy.stop_timeout
        if not drain:
            self._hurry(now)

    def _hurry(self, now: float) -> None:
        self._dispatcher.fail_all(PoolClosed("the pool stops and waits for no call"), now)
        self._fleet.hurry(now)

    def _on_shutdown_verb(self, drain: bool) -> None:  # noqa: FBT001  # a callback
        self.stop(drain=drain)

    def _leave(self) -> int:
        self._act(time.monotonic())
        self._crew.stop()
        self._clients.socket.disable_monitor()
        self._context.destroy(linger=200)
        logger.info("stopped pid=%d", os.getpid())
        return 0

    # Doing what was decided.

    def _act_now(self) -> None:
        self._act(time.monotonic())

    def _act(self, now: float) -> None:
        """Do what the deciders decided, until they have decided nothing more."""
        self._send_outgoing()
        while self._act_once(now):
            self._send_outgoing()

    def _send_outgoing(self) -> None:
        while outgoing := self._dispatcher.take_outgoing() + self._control.take_outgoing():
            for_worker: dict[str, list[list[Bytes]]] = {}
            for message in outgoing:
                match message:
                    case ToClient(client, frames):
                        self._front.send(client, frames)
                    case ToWorker(worker, frames):
                        for_worker.setdefault(worker, []).append(frames)
            for worker, messages in for_worker.items():
                for _, frames in bundled(messages):
                    self._workers.send(worker, frames)

    def _act_once(self, now: float) -> bool:
        """Do the rest of it; return whether there was any."""
        actions = self._fleet.take_actions() + self._standbys.take_actions()
        for action in actions:
            self._do(action, now)
        empty = [w for w in self._fleet.emptying if not self._dispatcher.in_flight(w)]
        for worker in empty:
            self._fleet.drained(worker, now)
        return bool(actions or empty) or self._publish()

    def _publish(self) -> bool:
        """Log what happened and tell those who watch; return whether anything did."""
        new = self._events.take_new()
        for event in new:
            logger.log(_level(event), "%s", line(event))
        self._control.publish(new)
        return bool(new)

    def _do(self, action: do.Action, now: float) -> None:  # noqa: C901  # one flat table
        match action:
            case do.Spawn():
                self._crew.spawn(action, now)
            case do.Adopt():
                self._crew.adopt(action, now)
            case do.Serve(worker, model, capacity):
                self._dispatcher.worker_ready(worker, model, capacity, now)
            case do.Drain(worker):
                self._crew.draining(worker)
                self._dispatcher.worker_draining(worker, now)
            case do.SayBye(worker):
                self._workers.send(worker, encode(Bye("stop")))
            case do.Kill():
                self._crew.kill(action, now)
            case do.Refuse(model, error):
                error.details.setdefault("interpreter", self._plan.python)
                self._dispatcher.refuse(model, error)
            case do.Settled(model, error):
                if error is not None:
                    error.details.setdefault("interpreter", self._plan.python)
                self._control.settled(model, error, now)
                self._crew.models_changed(now)
            case do.Removed(model):
                self._dispatcher.remove_model(model, PoolClosed(f"model {model!r} was unloaded"))
                self._control.removed(model)
                self._crew.models_changed(now)

    def _has_room(self, worker: Worker) -> bool:
        return self._crew.has_room(worker)

    def _identity(self) -> dict[str, Any]:
        counters = self._dispatcher.counters
        counters.tokens, counters.restarts = self._crew.tokens, self._fleet.restarts
        return {
            "supervisor": {
                "pid": os.getpid(),
                "epoch": self._welcome.epoch,
                "product": self._welcome.product,
                "endpoint": self._plan.endpoint,
                "log_dir": self._plan.log_dir,
                "config": self._plan.config,
                "stopping": self._stopping,
                "clients": len(self._clients),
            },
            "spawner": {"pid": self._crew.spawner_pid},
            "standbys": self._standbys.describe(),
            "starts": self._crew.describe(),
        }


def _new_nonce() -> str:
    return secrets.token_hex(16)


_GRAVE: Final = frozenset(
    {"model.failed", "worker.hung", "worker.gave_up", "worker.unkillable", "spawner.lost"}
)


def _level(event: dict[str, Any]) -> int:
    unexpected = event["event"] == "worker.exited" and not event["expected"]
    return logging.ERROR if unexpected or event["event"] in _GRAVE else logging.INFO
