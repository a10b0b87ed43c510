"""Decides which workers there have to be, and what is done to each: start, stop, replace, give up.

Pure: no processes, no clock. Every method takes what happened and `now`; what has to be done is
collected and handed over by `take_actions`. The steps of stopping are in `stopping.py`, who is
replaced next in `replacing.py`, whether a worker that died is started again in `restarting.py`.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vllmport.bridge.errors import InvalidRequest, StartupFailed, VllmportError
from vllmport.bridge.states import WorkerEvent, WorkerState
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor import restarting
from vllmport.pool.supervisor.actions import (
    Action,
    Adopt,
    Kill,
    Refuse,
    Removed,
    Serve,
    Settled,
    Spawn,
)
from vllmport.pool.supervisor.agenda import Agenda
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.places import COMING, Model, Worker
from vllmport.pool.supervisor.replacing import Replacing
from vllmport.pool.supervisor.stopping import Stopping

READY, DRAINING, BACKOFF, FAILED = (
    WorkerState.READY,
    WorkerState.DRAINING,
    WorkerState.BACKOFF,
    WorkerState.FAILED,
)


class Spare(NamedTuple):
    """A standby process that may become a worker: what it is called, and its nonce."""

    id: str
    nonce: str


class Fleet:
    """All models with their workers, and the reasons to change them.

    Args:
        policy: How patient to be.
        events: Is told what happens.
        new_nonce: Makes the name of an incarnation.
        take_spare: Hands over a standby process that fits the specification, if there is one.
        has_room: Tells whether a second worker of this kind fits in beside this one.
        jitter: Makes numbers from 0 to 1.
    """

    def __init__(
        self,
        policy: Policy,
        events: EventLog,
        new_nonce: Callable[[], str],
        take_spare: Callable[[ModelSpec], Spare | None] = lambda _spec: None,
        has_room: Callable[[Worker], bool] = lambda _worker: True,
        jitter: Callable[[], float] = random.random,
    ):
        self.models: dict[str, Model] = {}
        self.workers: dict[str, Worker] = {}
        self.restarts = 0
        self._agenda = Agenda(self.workers)
        self._stopping = Stopping(policy, events, self._agenda)
        self._replacing = Replacing(self.workers, policy, events, has_room, self)
        self._policy = policy
        self._events = events
        self._new_nonce = new_nonce
        self._take_spare = take_spare
        self._jitter = jitter

    def __repr__(self) -> str:
        states = Counter(worker.state.value for worker in self.workers.values())
        return f"<Fleet {len(self.models)} models, workers {dict(states)}>"

    def take_actions(self) -> list[Action]:
        """Hand over what has to be done, in order. The caller must do all of it."""
        return self._agenda.take()

    @property
    def emptying(self) -> Mapping[str, None]:
        """The draining workers that still hold calls."""
        return self._stopping.emptying

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
            self._fill(model, now)
        elif model.spec != spec:
            raise InvalidRequest.of(
                "name",
                spec.name,
                f"a model named {spec.name!r} runs already with another specification "
                f"({_difference(model.spec, spec)}); unload it first or choose another name",
            )
        else:
            self._start_failed(model, now)
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
        model = self.find(name)
        self._stop_all(model, "unloaded", now)
        return model

    def restart(self, name: str, now: float) -> Model:
        """Replace every worker of a model, one after the other; calls go on.

        Raises:
            InvalidRequest: There is no such model, or it is being unloaded.
        """
        model = self.find(name)
        if model.leaving:
            raise InvalidRequest.of("name", name, f"model {name!r} is being unloaded")
        model.settled = False
        for worker in list(model.workers.values()):
            if worker.state is BACKOFF:
                self._agenda.remind(worker, now)
        self._start_failed(model, now)
        self._replacing.want_all(model, now)
        return model

    def recycle(self, worker_id: str, reason: str, now: float) -> None:
        """Replace a worker that is READY, once the replacement is."""
        worker = self.workers[worker_id]
        self._replacing.want(worker, self.models[worker.model], reason, now)

    def find(self, name: str) -> Model:
        """Return the model of this name.

        Raises:
            InvalidRequest: There is none.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.models)) or "none is loaded"
            raise InvalidRequest.of("name", name, f"no model {name!r} in this pool; known: {known}")
        return model

    def stop(self, now: float) -> None:
        """Stop every model."""
        for model in list(self.models.values()):
            self._stop_all(model, "the pool stops", now)

    # What happens to workers.

    def spawning(self, worker_id: str, now: float) -> None:
        """The process is started now; its time to load begins."""
        worker = self.workers[worker_id]
        worker.spawned, worker.stage = now, "starting"
        if worker.state is WorkerState.STARTING and self._policy.load_timeout:
            self._agenda.remind(worker, now + self._policy.load_timeout)

    def spawned(self, worker_id: str, pid: int) -> None:
        """The process exists; it leads its own session and group."""
        worker = self.workers[worker_id]
        worker.pid = pid
        self._events.add("worker.spawned", worker=worker_id, pid=pid, attempt=worker.restarts + 1)

    def registered(self, worker_id: str, now: float) -> None:
        """The process said who it is."""
        worker = self.workers[worker_id]
        if worker.state is WorkerState.STARTING:
            due = worker.due
            worker.take(WorkerEvent.REGISTERED, now)
            self._agenda.remind(worker, due)  # its time to load goes on
            self._events.add("worker.registered", worker=worker_id, pid=worker.pid)

    def ready(
        self, worker_id: str, capacity: int, mode: str, info: dict[str, Any], now: float
    ) -> bool:
        """The engine stands; return False if nobody wants it any more."""
        worker = self.workers[worker_id]
        if worker.state is not WorkerState.LOADING or worker.error is not None:
            return False  # it was told to leave meanwhile, or is being killed
        worker.take(WorkerEvent.READY, now)
        worker.mode, worker.stage, worker.error = mode, "", None
        model = self.models[worker.model]
        model.info, model.loads_in = info, now - worker.spawned
        took = round(model.loads_in, 3)
        self._events.add("worker.ready", worker=worker_id, pid=worker.pid, mode=mode, took=took)
        self._agenda.add(Serve(worker_id, worker.model, capacity))
        self._replacing.ready(worker, model, now)
        self._settle(model)
        return True

    def failed(self, worker_id: str, error: VllmportError) -> None:
        """The process reported why it cannot go on; its exit follows."""
        self.workers[worker_id].error = error

    def hung(self, worker_id: str, reason: str, now: float) -> None:
        """The process lives and does nothing, or does not let go of a call: replace it."""
        worker = self.workers[worker_id]
        if worker.verdict or worker.state is not READY:
            return
        worker.verdict = reason
        self._agenda.remind(worker, now + self._policy.stop_timeout)  # to say it again
        self._events.add("worker.hung", worker=worker_id, pid=worker.pid, reason=reason)
        self._kill(worker)

    def stalled(self, worker_id: str, reason: str) -> None:
        """The process will not come up any more: end it, and give it up."""
        worker = self.workers[worker_id]
        if worker.state not in (WorkerState.STARTING, WorkerState.LOADING):
            return
        at = {"stage": worker.stage} if worker.stage else {}
        text = f"worker {worker_id} {reason}{f' (at: {worker.stage})' if at else ''}"
        worker.error = StartupFailed(text, phase="load", worker=worker_id, details=at)
        self._kill(worker)

    def exit_cause(self, worker_id: str, cause: str) -> str:
        """Return how a process ended, with our own reason if it was us."""
        verdict = self.workers[worker_id].verdict
        return f"{verdict}, and {cause}" if verdict else cause

    def exited(self, worker_id: str, cause: str, stderr: list[str], now: float) -> None:
        """The process is gone, with everything in its group."""
        worker = self.workers[worker_id]
        model = self.models[worker.model]
        worker.last_exit, worker.verdict, worker.pid = cause, "", 0
        model.to_replace.pop(worker_id, None)
        if worker.state is DRAINING:
            worker.take(WorkerEvent.STOPPED, now)
            self._forget(worker, now)
            return
        if worker.replaces:
            self._give_replacing_up(worker, model, stderr, now)
            return
        was_ready = worker.state is READY
        model.settled = False
        restarting.note_death(worker, self._policy, now, was_ready=was_ready)
        if restarting.is_hopeless(worker, self._policy, was_ready=was_ready):
            worker.error = restarting.why_failed(worker, model.spec, self._policy, stderr)
            worker.take(WorkerEvent.GAVE_UP, now)
            message = worker.error.message
            self._events.add("worker.gave_up", worker=worker_id, error=message)
        else:
            self._back_off(worker, model, stderr, now)
        self._settle(model)

    # Time.

    def next_deadline(self) -> float:
        """Return when `tick` has to be called at the latest."""
        return self._agenda.next()

    def tick(self, now: float) -> None:
        """Do what is due: restart after a pause, take the next step of stopping."""
        for worker in self._agenda.pop_due(now):
            match worker.state:
                case WorkerState.BACKOFF:
                    worker.restarts += 1
                    self.restarts += 1
                    worker.take(WorkerEvent.RETRY, now)
                    self._spawn(worker, now)
                case WorkerState.DRAINING:
                    self._stopping.go_on(worker, now)
                case WorkerState.STARTING | WorkerState.LOADING as state:
                    limit = self._policy.load_timeout
                    what = "did not register" if state is WorkerState.STARTING else "was not ready"
                    text = f"{what} within {limit:.0f} s; the limit is load_timeout"
                    self.stalled(worker.id, text)
                case WorkerState.READY:  # it was told to die, and did not
                    self._agenda.remind(worker, now + self._policy.stop_timeout)
                    self._kill(worker)

    def drained(self, worker_id: str, now: float) -> None:
        """A draining worker holds no call any more: it can stop at once."""
        if worker_id in self.emptying:
            self._stopping.go_on(self.workers[worker_id], now)

    def hurry(self, now: float) -> None:
        """Kill what has not stopped yet."""
        for worker in self.workers.values():
            if worker.state is DRAINING:
                self._stopping.kill(worker, now)

    # Each change of who there is.

    def new_worker(self, model: Model, now: float, replaces: str = "") -> None:
        """Start one more worker of a model."""
        worker = model.add(now, replaces)
        self.workers[worker.id] = worker
        self._spawn(worker, now)

    def drain(self, worker: Worker, reason: str, now: float) -> None:
        """Let a worker finish what it has; one without a process is forgotten at once."""
        if not self._stopping.begin(worker, reason, now):
            self._forget(worker, now)

    # Inside.

    def _fill(self, model: Model, now: float) -> None:
        """Start the workers that a model should have and has not."""
        for _ in range(model.spec.replicas - model.standing):
            model.settled = False
            self.new_worker(model, now)

    def _start_failed(self, model: Model, now: float) -> None:
        """Start those anew that were given up."""
        for worker in list(model.workers.values()):
            if worker.state is FAILED:
                worker.take(WorkerEvent.DRAIN, now)
                self._forget(worker, now)

    def _spawn(self, worker: Worker, now: float) -> None:
        worker.stage = "waits to be started"
        worker.pid = worker.stop_step = 0
        worker.error = None
        spare = self._take_spare(self.models[worker.model].spec)
        if spare is None:
            worker.nonce = self._new_nonce()
            self._agenda.add(Spawn(worker.id, worker.nonce))
        else:
            worker.nonce, worker.spawned = spare.nonce, now
            self._agenda.add(Adopt(spare.id, worker.id))

    def _back_off(self, worker: Worker, model: Model, stderr: list[str], now: float) -> None:
        worker.take(WorkerEvent.DIED, now)
        deaths = len(worker.deaths)
        self._agenda.remind(worker, now + restarting.pause(deaths, self._policy, self._jitter()))
        wait = round(worker.due - now, 3)
        self._events.add("worker.restarting", worker=worker.id, pause=wait, deaths=deaths)
        if deaths >= self._policy.fail_fast_after and not model.has(READY):
            error = restarting.why_unavailable(worker, model, stderr, now)
            self._agenda.add(Refuse(model.spec.name, error))
            self._events.add(
                "model.unavailable",
                model=model.spec.name,
                retry_after=error.retry_after,
                reason=worker.last_exit,
            )

    def _give_replacing_up(
        self, worker: Worker, model: Model, stderr: list[str], now: float
    ) -> None:
        """The replacement died before it was READY: the worker it was to replace goes on."""
        error = restarting.why_failed(worker, model.spec, self._policy, stderr)
        self._replacing.failed(model, now, self._jitter())
        model.settled = model.ready
        self._agenda.add(Settled(model.spec.name, error))
        worker.take(WorkerEvent.GAVE_UP, now)
        worker.take(WorkerEvent.DRAIN, now)
        self._events.add("worker.gave_up", worker=worker.id, error=error.message)
        self._forget(worker, now)

    def _stop_unwanted(self, model: Model, now: float) -> None:
        if not model.leases and not model.declared:
            self._stop_all(model, "nobody holds a lease on its model", now)

    def _stop_all(self, model: Model, reason: str, now: float) -> None:
        model.leaving = True
        model.to_replace.clear()
        for worker in list(model.workers.values()):
            if worker.state is not DRAINING:
                self.drain(worker, reason, now)

    def _kill(self, worker: Worker) -> None:
        self._agenda.add(Kill(worker.id))

    def _forget(self, worker: Worker, now: float) -> None:
        """Take a place away; another one takes over if the model still wants as many."""
        model = self.models[worker.model]
        self._stopping.ended(worker)
        del self.workers[worker.id]
        model.drop(worker)
        if not model.leaving:
            self._fill(model, now)
            self._replacing.next(model, now)
            self._settle(model)
        elif not model.workers:
            del self.models[worker.model]
            self._events.add("model.unloaded", model=worker.model)
            self._agenda.add(Removed(worker.model))

    def _settle(self, model: Model) -> None:
        """Tell when a model came up, and when it cannot."""
        name = model.spec.name
        if model.has(FAILED) and not model.has(*COMING):
            error = next(w.error for w in model.workers.values() if w.state is FAILED)
            assert error is not None, "a worker that was given up has a reason"
            if not model.has(READY):
                self._agenda.add(Refuse(name, error))
            self._events.add("model.failed", model=name, error=error.message)
            self._agenda.add(Settled(name, error))
        elif not model.settled and model.ready:
            model.settled = True
            self._events.add("model.ready", model=name)
            self._agenda.add(Settled(name, None))


def _difference(one: ModelSpec, other: ModelSpec) -> str:
    names = [n for n in ModelSpec.__dataclass_fields__ if getattr(one, n) != getattr(other, n)]
    if "engine_args" in names:
        keys = one.engine_args.keys() | other.engine_args.keys()
        changed = sorted(k for k in keys if one.engine_args.get(k) != other.engine_args.get(k))
        names[names.index("engine_args")] = ", ".join(changed)
    return "differs in " + ", ".join(names)
