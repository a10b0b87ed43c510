"""Decides which workers there have to be, and what is done to each: start, stop, restart, give up.

Pure: no processes, no clock. Every method takes what happened and `now`; what has to be done is
collected and handed over by `take_actions`.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllmport.bridge.errors import InvalidRequest, StartupFailed, VllmportError
from vllmport.bridge.states import WORKER_TRANSITIONS, WorkerEvent, WorkerState, advance
from vllmport.pool.plan import ModelSpec, Policy

ALIVE = frozenset(
    {WorkerState.STARTING, WorkerState.LOADING, WorkerState.READY, WorkerState.DRAINING}
)
"""States in which a process exists, or is about to."""

LOADING = frozenset({WorkerState.STARTING, WorkerState.LOADING, WorkerState.BACKOFF})
"""States that may still lead to READY."""


class Spawn(NamedTuple):
    """Start a process for this worker; it will register with `nonce`."""

    worker: str
    nonce: str


class Drain(NamedTuple):
    """Give this worker no new calls."""

    worker: str


class SayBye(NamedTuple):
    """Send this worker BYE."""

    worker: str


class Kill(NamedTuple):
    """Send the worker's whole group SIGKILL, or SIGTERM where `gently`."""

    worker: str
    gently: bool = False


class Serve(NamedTuple):
    """Give this worker calls from now on."""

    worker: str
    model: str
    capacity: int


class Refuse(NamedTuple):
    """Fail what waits for this model and all that comes."""

    model: str
    error: VllmportError


class Settled(NamedTuple):
    """All workers of this model are READY (`error` is None), or it failed."""

    model: str
    error: VllmportError | None


class Removed(NamedTuple):
    """The last worker of a model that is no longer wanted is gone."""

    model: str


Action = Spawn | Drain | SayBye | Kill | Serve | Refuse | Settled | Removed


@dataclass(slots=True)
class Worker:
    """The place of one replica, and the process that fills it now."""

    id: str
    model: str
    nonce: str
    state: WorkerState = WorkerState.STARTING
    since: float = 0.0
    pid: int = 0
    pgid: int = 0
    mode: str = ""
    stage: str = ""
    restarts: int = 0
    last_exit: str = ""
    error: VllmportError | None = None
    deaths: deque[float] = field(default_factory=deque)
    due: float = math.inf
    stop_step: int = 0

    def take(self, event: WorkerEvent, now: float) -> None:
        """Move on in the state table."""
        self.state = advance(WORKER_TRANSITIONS, self.state, event)
        self.since = now
        self.due = math.inf


@dataclass(slots=True)
class Model:
    """A specification, who holds a lease on it, and its workers."""

    spec: ModelSpec
    declared: bool
    workers: dict[str, Worker] = field(default_factory=dict)
    leases: Counter[int] = field(default_factory=Counter)
    leaving: bool = False
    settled: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> WorkerState:
        """The model's state in one word: the best that one of its workers has."""
        states = {worker.state for worker in self.workers.values()}
        order = ("READY", "LOADING", "STARTING", "BACKOFF", "DRAINING", "FAILED")
        return next((WorkerState(name) for name in order if name in states), WorkerState.STOPPED)


class Fleet:
    """All models with their workers, and the reasons to change them."""

    def __init__(
        self,
        policy: Policy,
        new_nonce: Callable[[], str],
        jitter: Callable[[], float] = random.random,
    ):
        self.models: dict[str, Model] = {}
        self.workers: dict[str, Worker] = {}
        self.emptying: dict[str, None] = {}  # draining workers that still hold calls
        self._policy = policy
        self._new_nonce = new_nonce
        self._jitter = jitter
        self._actions: list[Action] = []

    def __repr__(self) -> str:
        states = Counter(worker.state.value for worker in self.workers.values())
        return f"<Fleet {len(self.models)} models, workers {dict(states)}>"

    def take_actions(self) -> list[Action]:
        """Hand over what has to be done, in order. The caller must do all of it."""
        actions, self._actions = self._actions, []
        return actions

    # What callers want.

    def load(
        self, spec: ModelSpec, now: float, client: int = 0, *, declared: bool = False
    ) -> Model:
        """Make sure a model runs and note who wants it.

        Raises:
            InvalidRequest: Another specification runs under this name.
        """
        model = self.models.get(spec.name)
        if model is not None and model.leaving:
            raise InvalidRequest.of(
                "name",
                spec.name,
                f"model {spec.name!r} is being unloaded; try again shortly",
                retryable=True,
            )
        if model is None:
            model = self.models[spec.name] = Model(spec, declared)
            self._start_all(model, now)
        elif model.spec != spec:
            raise InvalidRequest.of(
                "name",
                spec.name,
                f"a model named {spec.name!r} runs already with another specification "
                f"({_difference(model.spec, spec)}); unload it first or choose another name",
            )
        elif any(worker.state is WorkerState.FAILED for worker in model.workers.values()):
            self._start_all(model, now)
        if client:
            model.leases[client] += 1
        return model

    def release(self, name: str, client: int, now: float) -> None:
        """Give one lease up; the last one of a model that is not declared stops it."""
        model = self.models.get(name)
        if model is None or not model.leases[client]:
            return
        model.leases[client] -= 1
        model.leases += Counter()  # drops the zeros
        self._stop_unwanted(model, now)

    def client_gone(self, client: int, now: float) -> None:
        """Give up all leases of a client."""
        for model in list(self.models.values()):
            if model.leases.pop(client, 0):
                self._stop_unwanted(model, now)

    def unload(self, name: str, now: float) -> Model:
        """Stop a model whoever holds a lease on it.

        Raises:
            InvalidRequest: There is no such model.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.models)) or "none is loaded"
            raise InvalidRequest.of("name", name, f"no model {name!r} in this pool; known: {known}")
        self._stop_all(model, now)
        return model

    def stop(self, now: float) -> None:
        """Stop every model."""
        for model in list(self.models.values()):
            self._stop_all(model, now)

    # What happens to workers.

    def spawned(self, worker_id: str, pid: int) -> None:
        """The process exists; it leads its own session and group."""
        worker = self.workers[worker_id]
        worker.pid = worker.pgid = pid

    def registered(self, worker_id: str, now: float) -> None:
        """The process said who it is."""
        worker = self.workers[worker_id]
        if worker.state is WorkerState.STARTING:
            worker.take(WorkerEvent.REGISTERED, now)
            worker.due = now + self._policy.load_timeout

    def ready(
        self, worker_id: str, capacity: int, mode: str, info: dict[str, Any], now: float
    ) -> None:
        """The engine stands."""
        worker = self.workers[worker_id]
        if worker.state is not WorkerState.LOADING:
            return  # it was told to leave meanwhile
        worker.take(WorkerEvent.READY, now)
        worker.mode, worker.stage, worker.error = mode, "", None
        model = self.models[worker.model]
        model.info = info
        self._actions.append(Serve(worker_id, worker.model, capacity))
        self._settle(model)

    def failed(self, worker_id: str, error: VllmportError) -> None:
        """The process reported why it cannot go on; its exit follows."""
        self.workers[worker_id].error = error

    def exited(self, worker_id: str, cause: str, stderr: list[str], now: float) -> None:
        """The process is gone, with everything in its group."""
        worker = self.workers[worker_id]
        worker.last_exit = cause
        worker.pid = 0
        if worker.state is WorkerState.DRAINING:
            worker.take(WorkerEvent.STOPPED, now)
            self._forget(worker)
            return
        was_ready = worker.state is WorkerState.READY
        worker.deaths.append(now)
        while worker.deaths[0] < now - self._policy.restart_window:
            worker.deaths.popleft()
        if self._is_hopeless(worker, was_ready=was_ready):
            error = self._reason(worker, cause, stderr)
            worker.take(WorkerEvent.GAVE_UP, now)
            worker.error = error
        else:
            worker.take(WorkerEvent.DIED, now)
            worker.due = now + self._pause(len(worker.deaths))
        self._settle(self.models[worker.model])

    # Time.

    def next_deadline(self) -> float:
        """Return when `tick` has to be called at the latest."""
        return min((worker.due for worker in self.workers.values()), default=math.inf)

    def tick(self, now: float) -> None:
        """Do what is due: restart after a pause, take the next step of stopping."""
        for worker in [worker for worker in self.workers.values() if worker.due <= now]:
            worker.due = math.inf
            match worker.state:
                case WorkerState.BACKOFF:
                    worker.restarts += 1
                    worker.take(WorkerEvent.RETRY, now)
                    self._spawn(worker)
                case WorkerState.DRAINING:
                    self._stop_harder(worker, now)
                case WorkerState.STARTING | WorkerState.LOADING as state:
                    limit = self._policy.load_timeout
                    what = "did not register" if state is WorkerState.STARTING else "was not ready"
                    text = f"worker {worker.id} {what} within {limit:.0f} s"
                    worker.error = StartupFailed(text, phase="load", worker=worker.id)
                    self._actions.append(Kill(worker.id))

    def drained(self, worker_id: str, now: float) -> None:
        """A draining worker holds no call any more: it can stop at once."""
        if worker_id in self.emptying:
            self._stop_harder(self.workers[worker_id], now)

    def hurry(self, now: float) -> None:
        """Kill what has not stopped yet."""
        for worker in self.workers.values():
            if worker.state is WorkerState.DRAINING:
                worker.stop_step = 2
                self._stop_harder(worker, now)

    # Inside.

    def _start_all(self, model: Model, now: float) -> None:
        """Start the workers that there are not, and anew those that were given up."""
        model.settled = False
        for index in range(model.spec.replicas):
            worker_id = f"{model.spec.name}/{index}"
            known = model.workers.get(worker_id)
            if known is None or known.state is WorkerState.FAILED:
                worker = Worker(worker_id, model.spec.name, "", since=now)
                model.workers[worker_id] = self.workers[worker_id] = worker
                self._spawn(worker)

    def _spawn(self, worker: Worker) -> None:
        worker.nonce = self._new_nonce()
        worker.stage = "starting"
        worker.pid = worker.stop_step = 0
        worker.due = worker.since + self._policy.load_timeout
        self._actions.append(Spawn(worker.id, worker.nonce))

    def _stop_unwanted(self, model: Model, now: float) -> None:
        if not model.leases and not model.declared:
            self._stop_all(model, now)

    def _stop_all(self, model: Model, now: float) -> None:
        model.leaving = True
        for worker in list(model.workers.values()):
            if worker.state is WorkerState.DRAINING:
                continue
            was_ready = worker.state is WorkerState.READY
            worker.take(WorkerEvent.DRAIN, now)
            if worker.state is WorkerState.STOPPED:
                self._forget(worker)
            elif was_ready:
                self.emptying[worker.id] = None
                worker.due = now + self._policy.drain_timeout
                self._actions.append(Drain(worker.id))
            else:  # it loads, and reads no messages meanwhile
                worker.stop_step = 1
                self._stop_harder(worker, now)

    def _stop_harder(self, worker: Worker, now: float) -> None:
        """BYE, then SIGTERM to the group, then SIGKILL to the group."""
        self.emptying.pop(worker.id, None)
        steps: tuple[Action, ...] = (
            SayBye(worker.id),
            Kill(worker.id, gently=True),
            Kill(worker.id),
        )
        self._actions.append(steps[worker.stop_step])
        worker.stop_step = min(worker.stop_step + 1, 2)
        worker.due = now + self._policy.stop_timeout

    def _forget(self, worker: Worker) -> None:
        model = self.models[worker.model]
        self.emptying.pop(worker.id, None)
        del self.workers[worker.id], model.workers[worker.id]
        if not model.workers:
            del self.models[worker.model]
            self._actions.append(Removed(worker.model))

    def _is_hopeless(self, worker: Worker, *, was_ready: bool) -> bool:
        """A load that failed with a reason fails again; anything else may heal, a few times."""
        if worker.error is not None and not was_ready and worker.error.phase == "load":
            return True
        if isinstance(worker.error, InvalidRequest):
            return True
        return len(worker.deaths) > self._policy.max_restarts

    def _pause(self, deaths: int) -> float:
        """No pause before the first restart; then it doubles, with up to a quarter of jitter."""
        if deaths <= 1:
            return 0.0
        doubled = self._policy.backoff_initial * 2.0 ** min(deaths - 2, 64)
        pause = min(doubled, self._policy.backoff_max)
        return pause * (1 + self._jitter() / 4)

    def _reason(self, worker: Worker, cause: str, stderr: list[str]) -> VllmportError:
        if worker.error is not None:
            error = worker.error
            error.details.setdefault("stderr", stderr)
            return error
        spec = self.models[worker.model].spec
        return StartupFailed(
            f"worker {worker.id} {cause} {len(worker.deaths)} times within "
            f"{self._policy.restart_window:.0f} s and is not started again; "
            "load the model again once the cause is mended",
            phase="load",
            worker=worker.id,
            details={"path": spec.model, "exit": cause, "stderr": stderr},
        )

    def _settle(self, model: Model) -> None:
        """Tell when a model came up, and when it cannot."""
        states = [worker.state for worker in model.workers.values()]
        if WorkerState.FAILED in states and not LOADING.intersection(states):
            error = next(w.error for w in model.workers.values() if w.state is WorkerState.FAILED)
            assert error is not None, "a worker that was given up has a reason"
            if WorkerState.READY not in states:
                self._actions.append(Refuse(model.spec.name, error))
            self._actions.append(Settled(model.spec.name, error))
        elif not model.settled and all(state is WorkerState.READY for state in states):
            model.settled = True
            self._actions.append(Settled(model.spec.name, None))


def _difference(one: ModelSpec, other: ModelSpec) -> str:
    names = [n for n in ModelSpec.__dataclass_fields__ if getattr(one, n) != getattr(other, n)]
    if "engine_args" in names:
        keys = one.engine_args.keys() | other.engine_args.keys()
        changed = sorted(k for k in keys if one.engine_args.get(k) != other.engine_args.get(k))
        names[names.index("engine_args")] = ", ".join(changed)
    return "differs in " + ", ".join(names)
