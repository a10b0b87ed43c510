"""The processes of the pool: has done what the deciders want, and tells them what became of it.

Between `fleet.py` and `standby.py`, who want processes, and `incarnations.py`, which has them:
waits for room before each start, sends each worker what to load, looks at each from time to time.
"""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final

from vllmport.bridge.codec import pack
from vllmport.bridge.messages import Load, Ping, encode
from vllmport.bridge.states import WorkerState
from vllmport.pool.plan import ModelSpec, Plan
from vllmport.pool.supervisor.actions import Adopt, Kill, Spawn
from vllmport.pool.supervisor.admission import Decision, Grant, Refusal
from vllmport.pool.supervisor.checkups import Checkups, has_memory
from vllmport.pool.supervisor.deciders import Deciders
from vllmport.pool.supervisor.descriptors import Descriptors
from vllmport.pool.supervisor.incarnations import Incarnations
from vllmport.pool.supervisor.loading import Loading
from vllmport.pool.supervisor.places import Worker
from vllmport.pool.supervisor.starts import Starts
from vllmport.pool.supervisor.vitals import effort, free_memory, members
from vllmport.pool.supervisor.workers import Workers

NOT_STARTED: Final = "was not started"


class Crew:
    """All processes of one supervisor, and the deciders about them.

    Args:
        plan: The pool's.
        lock_fd: The lock on the endpoint; the spawner keeps a copy until all is cleaned up.
        workers: The workers' socket.
        deciders: Who wants processes.
        descriptors: Where the spawner, the pipes and the GPUs' readings are watched.
        after: Called when something happened outside the loop's own calls.
    """

    def __init__(
        self,
        plan: Plan,
        lock_fd: int,
        workers: Workers,
        deciders: Deciders,
        descriptors: Descriptors,
        after: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._abort_grace = plan.policy.abort_grace
        self._universal = asdict(plan.universal)
        self._fleet = deciders.fleet
        self._standbys = deciders.standbys
        self._dispatcher = deciders.dispatcher
        self._control = deciders.control
        self._events = deciders.events
        self._incarnations = Incarnations(plan, workers.endpoint, lock_fd, descriptors, self, after)
        self._starts = Starts(plan.policy, deciders.events, descriptors, self._on_decision)
        self._checkups = Checkups(
            plan.policy, deciders, self._incarnations, self._starts.gpu_memory
        )
        self._loading = Loading(plan.policy.load_stall_timeout)
        self._wanted: dict[str, Spawn | Adopt] = {}  # worker → what is done once there is room
        self._exits: dict[str, str] = {}  # worker → how it ended, until nothing is left of it
        self._exited_at: dict[str, float] = {}
        self._ready: dict[str, None] = {}  # workers that may have generated tokens
        self._tokens = 0  # of those that are gone
        self.timed = (
            (self._starts.next_deadline, self._starts.tick),
            (self._standbys.next_deadline, self._tick_standbys),
            (self._checkups.next_deadline, self._check_up),
            (self._loading.next_deadline, self._look_at_loads),
        )

    @property
    def spawner_pid(self) -> int:
        """The spawner's process."""
        return self._incarnations.spawner_pid

    @property
    def tokens(self) -> int:
        """How many tokens all workers have generated so far."""
        alive = (self._incarnations.board(worker).tokens for worker in self._ready)
        return self._tokens + sum(alive)

    def describe(self) -> dict[str, object]:
        """Return what `status` says of starts and devices."""
        return self._starts.describe()

    def stop(self) -> None:
        """Let the spawner clean up everything and leave."""
        self._starts.close()
        self._incarnations.stop()

    def has_room(self, worker: Worker) -> bool:
        """Tell whether a second worker of this kind could run beside this one."""
        spec = self._fleet.models[worker.model].spec
        return has_memory(worker) and self._starts.has_room(spec)

    # What the deciders want.

    def spawn(self, action: Spawn, now: float) -> None:
        """Start a process; a worker's waits for room first."""
        if action.worker in self._standbys:
            spec = self._standbys.spec_of(action.worker)
            self._incarnations.spawn(action.worker, action.nonce, spec.env)
        else:
            self._wanted[action.worker] = action
            self._starts.ask(action.worker, self._spec(action.worker), now)

    def adopt(self, action: Adopt, now: float) -> None:
        """Make a standby's process a worker's; it loads once there is room."""
        nonce = self._incarnations.adopt(action.standby, action.worker)
        self._workers.forget(action.standby)
        self._workers.admit(nonce.encode(), action.worker)
        pid = self._incarnations.pid(action.worker)
        self._events.add("standby.adopted", worker=action.worker, pid=pid)
        self._fleet.spawned(action.worker, pid)
        self._wanted[action.worker] = action
        self._starts.ask(action.worker, self._spec(action.worker), now)

    def kill(self, action: Kill, now: float) -> None:
        """Send a signal; one that only waits to be started is gone at once."""
        worker = action.worker
        signum = signal.SIGTERM if action.gently else signal.SIGKILL
        waited = self._withdraw(worker, now)
        pid = self._incarnations.kill(worker, signum, action.scope)
        if isinstance(waited, Spawn):
            self._fleet.exited(worker, NOT_STARTED, [], now)
        elif pid and worker not in self._standbys:
            self._events.add(
                "worker.signalled", worker=worker, pid=pid, signal=signum.name, scope=action.scope
            )

    def prepare(self, standby: str) -> None:
        """Tell a standby to import the engine."""
        self._send_spec(standby, self._standbys.spec_of(standby), {}, prepare=True)

    def load(self, worker: str, env: Mapping[str, str] | None = None) -> None:
        """Tell a worker what to be, and what to add to its environment first."""
        self._send_spec(worker, self._spec(worker), env or {}, prepare=False)

    def reported(self, worker: str) -> None:
        """A worker said how far it has come."""
        self._loading.reported(worker)

    def stands_by(self, standby: str, now: float) -> None:
        """A standby has imported the engine."""
        self._loading.forget(standby)
        self._standbys.waits(standby, now)

    def ready(self, worker: str, now: float) -> None:
        """A worker is READY: look at it from now on."""
        self._loading.forget(worker)
        self._starts.loaded(worker, now)
        self._ready[worker] = None
        self._checkups.watch(worker, now)
        self.models_changed(now)

    def draining(self, worker: str) -> None:
        """A worker takes no calls any more."""
        self._checkups.forget(worker)

    def models_changed(self, now: float) -> None:
        """See which standbys are of use."""
        self._standbys.want(self._fleet.models.values(), now)

    # What becomes of the processes, as `Incarnations` tells.

    def on_spawned(self, worker: str, pid: int) -> None:
        """Take note of a process that exists."""
        now = time.monotonic()
        if worker in self._standbys:
            self._loading.watch(worker, worker, now)
            self._standbys.spawned(worker, pid, now)
        else:
            self._loading.watch(worker, self._fleet.workers[worker].model, now)
            self._fleet.spawned(worker, pid)

    def on_exited(self, worker: str, cause: str) -> None:
        """Fail its calls at once; it is started again only when its group is gone as well."""
        self._workers.forget(worker)
        self._loading.forget(worker)
        if worker in self._standbys:
            self._standbys.ended(worker)
            return
        now = time.monotonic()
        record = self._fleet.workers[worker]
        cause = self._fleet.exit_cause(worker, cause)
        expected = record.state is WorkerState.DRAINING
        self._exits[worker], self._exited_at[worker] = cause, now
        self._checkups.forget(worker)
        self._events.add(
            "worker.exited",
            worker=worker,
            pid=record.pid,
            cause=cause,
            expected=expected,
            in_flight=self._dispatcher.in_flight(worker),
        )
        if worker in self._ready:
            del self._ready[worker]
            self._tokens += self._incarnations.board(worker).tokens
        board = self._incarnations.calls(worker)
        self._dispatcher.worker_gone(worker, cause, board, now, expected=expected)
        self._control.worker_gone(worker)

    def on_unkillable(self, worker: str, pid: int, left: list[str]) -> None:
        """Report what the spawner cannot kill; it goes on trying."""
        self._events.add("worker.unkillable", worker=worker, pid=pid, left=", ".join(left))

    def on_cleared(self, worker: str, stderr: list[str]) -> None:
        """Let its place be filled again."""
        now = time.monotonic()
        if worker in self._standbys:
            self._standbys.exited(worker, "ended", now)
            return
        pid, took = self._fleet.workers[worker].pid, now - self._exited_at.pop(worker)
        self._events.add("worker.cleared", worker=worker, pid=pid, took=round(took, 3))
        if self._withdraw(worker, now) is None:
            self._starts.gone(worker, now)
        self._fleet.exited(worker, self._exits.pop(worker), stderr, now)

    def on_spawner_lost(self, pid: int) -> None:
        """Take note; the workers that went with it are reported one by one."""
        self._events.add("spawner.lost", pid=pid)

    # Inside.

    def _on_decision(self, decision: Decision, now: float) -> None:
        wanted = self._wanted.pop(decision.worker)
        match decision, wanted:
            case Grant(worker), Spawn(_, nonce):
                self._fleet.spawning(worker, now)
                env = {**self._spec(worker).env, **decision.env}
                self._incarnations.spawn(worker, nonce, env)
            case Grant(worker), Adopt():
                self._fleet.spawning(worker, now)
                self._fleet.registered(worker, now)
                self._loading.watch(worker, self._fleet.workers[worker].model, now)
                self.load(worker, decision.env)
            case Refusal(worker, error), Spawn():
                self._fleet.failed(worker, error)
                self._fleet.exited(worker, NOT_STARTED, [], now)
            case Refusal(worker, error), Adopt():
                self._fleet.failed(worker, error)
                self._incarnations.kill(worker, signal.SIGKILL, "all")

    def _withdraw(self, worker: str, now: float) -> Spawn | Adopt | None:
        """Take back what was not granted yet; return what it was."""
        wanted = self._wanted.pop(worker, None)
        if wanted is not None:
            self._starts.withdraw(worker, now)
        return wanted

    def _spec(self, worker: str) -> ModelSpec:
        return self._fleet.models[self._fleet.workers[worker].model].spec

    def _send_spec(
        self, worker: str, spec: ModelSpec, env: Mapping[str, str], *, prepare: bool
    ) -> None:
        payload = {
            **spec.for_worker(),
            "board": self._incarnations.board_path(worker),
            "prepare": prepare,
            "env": dict(env),
            "abort_grace": self._abort_grace,
            "universal": self._universal,
        }
        self._workers.send(worker, encode(Load(worker), pack(payload)))

    def _tick_standbys(self, now: float) -> None:
        self._standbys.tick(now, free_memory())

    def _look_at_loads(self, now: float) -> None:
        for worker in self._loading.take_due(now):
            done = effort(members(self._incarnations.pid(worker)))
            stalled = self._loading.look(worker, done, now)
            if stalled is None:
                continue
            if worker in self._standbys:
                self._standbys.stalled(worker)
            else:
                self._fleet.stalled(worker, stalled)

    def _check_up(self, now: float) -> None:
        for worker in self._checkups.run(now):
            self._workers.send(worker, encode(Ping(0)))
