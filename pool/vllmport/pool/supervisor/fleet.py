"""Decides which workers there have to be, and what is done to each: start, stop, replace, give up.

Pure: no processes, no clock. Every method takes what happened and `now`; what has to be done is
collected and handed over by `take_actions`.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from vllmport.bridge.errors import InvalidRequest, StartupFailed, VllmportError
from vllmport.bridge.states import WorkerEvent, WorkerState
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor import restarting
from vllmport.pool.supervisor.actions import (
    Action,
    Adopt,
    Drain,
    Kill,
    Refuse,
    Removed,
    SayBye,
    Serve,
    Settled,
    Spawn,
)
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.places import COMING, Model, Worker

STOPPING: Final = (0.5, 0.25, 0.25)
"""Shares of `stop_timeout` that BYE, SIGTERM to the leader and SIGTERM to the group get."""

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
        self.emptying: dict[str, None] = {}  # draining workers that still hold calls
        self._policy = policy
        self._events = events
        self._new_nonce = new_nonce
        self._take_spare = take_spare
        self._has_room = has_room
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
            if worker.state is READY:
                model.to_replace[worker.id] = "restart"
            elif worker.state is BACKOFF:
                worker.due = now
        self._start_failed(model, now)
        self._replace_next(model, now)
        return model

    def recycle(self, worker_id: str, reason: str, now: float) -> None:
        """Replace a worker that is READY, once the replacement is."""
        worker = self.workers[worker_id]
        model = self.models[worker.model]
        if now < model.recycle_after or worker.verdict or model.leaving:
            return
        if worker.state is READY and worker_id not in model.to_replace:
            self._events.add("worker.recycling", worker=worker_id, pid=worker.pid, reason=reason)
            model.to_replace[worker_id] = reason
            self._replace_next(model, now)

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
        worker.spawned = now
        if worker.state is WorkerState.STARTING:
            worker.due = now + self._policy.load_timeout

    def spawned(self, worker_id: str, pid: int) -> None:
        """The process exists; it leads its own session and group."""
        worker = self.workers[worker_id]
        worker.pid = pid
        self._events.add("worker.spawned", worker=worker_id, pid=pid, attempt=worker.restarts + 1)

    def registered(self, worker_id: str, now: float) -> None:
        """The process said who it is."""
        worker = self.workers[worker_id]
        if worker.state is WorkerState.STARTING:
            worker.take(WorkerEvent.REGISTERED, now)
            worker.due = now + self._policy.load_timeout
            self._events.add("worker.registered", worker=worker_id, pid=worker.pid)

    def ready(
        self, worker_id: str, capacity: int, mode: str, info: dict[str, Any], now: float
    ) -> bool:
        """The engine stands; return False if nobody wants it any more."""
        worker = self.workers[worker_id]
        if worker.state is not WorkerState.LOADING:
            return False  # it was told to leave meanwhile
        worker.take(WorkerEvent.READY, now)
        worker.mode, worker.stage, worker.error = mode, "", None
        model = self.models[worker.model]
        model.info, model.loads_in = info, now - worker.spawned
        took = round(model.loads_in, 3)
        self._events.add("worker.ready", worker=worker_id, pid=worker.pid, mode=mode, took=took)
        self._actions.append(Serve(worker_id, worker.model, capacity))
        if worker.replaces:
            model.failed_replacements, model.recycle_after = 0, -math.inf
        replaced = self.workers.get(worker.replaces)
        worker.replaces = ""
        if replaced is not None and replaced.state is not DRAINING:
            self._drain(replaced, model.to_replace.pop(replaced.id, "replaced"), now)
        self._replace_next(model, now)
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
        worker.due = now + self._policy.stop_timeout  # if SIGKILL does not help, say it again
        self._events.add("worker.hung", worker=worker_id, pid=worker.pid, reason=reason)
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
        return min((worker.due for worker in self.workers.values()), default=math.inf)

    def tick(self, now: float) -> None:
        """Do what is due: restart after a pause, take the next step of stopping."""
        for worker in [worker for worker in self.workers.values() if worker.due <= now]:
            worker.due = math.inf
            match worker.state:
                case WorkerState.BACKOFF:
                    worker.restarts += 1
                    self.restarts += 1
                    worker.take(WorkerEvent.RETRY, now)
                    self._spawn(worker, now)
                case WorkerState.DRAINING:
                    self._stop_harder(worker, now)
                case WorkerState.STARTING | WorkerState.LOADING as state:
                    limit = self._policy.load_timeout
                    what = "did not register" if state is WorkerState.STARTING else "was not ready"
                    text = f"worker {worker.id} {what} within {limit:.0f} s"
                    worker.error = StartupFailed(text, phase="load", worker=worker.id)
                    self._kill(worker)
                case WorkerState.READY:  # it was told to die, and did not
                    worker.due = now + self._policy.stop_timeout
                    self._kill(worker)

    def drained(self, worker_id: str, now: float) -> None:
        """A draining worker holds no call any more: it can stop at once."""
        if worker_id in self.emptying:
            self._stop_harder(self.workers[worker_id], now)

    def hurry(self, now: float) -> None:
        """Kill what has not stopped yet."""
        for worker in self.workers.values():
            if worker.state is DRAINING:
                worker.stop_step = len(STOPPING)
                self._stop_harder(worker, now)

    # Inside: starting.

    def _fill(self, model: Model, now: float) -> None:
        """Start the workers that a model should have and has not."""
        lasting = sum(not worker.replaces for worker in model.lasting)
        for _ in range(model.spec.replicas - lasting):
            model.settled = False
            self._new_worker(model, now)

    def _start_failed(self, model: Model, now: float) -> None:
        """Start those anew that were given up."""
        for worker in list(model.workers.values()):
            if worker.state is FAILED:
                worker.take(WorkerEvent.DRAIN, now)
                self._forget(worker, now)

    def _new_worker(self, model: Model, now: float, replaces: str = "") -> None:
        worker = Worker(model.free_place(), model.spec.name, since=now, replaces=replaces)
        model.workers[worker.id] = self.workers[worker.id] = worker
        self._spawn(worker, now)

    def _spawn(self, worker: Worker, now: float) -> None:
        worker.stage = "waits to be started"
        worker.pid = worker.stop_step = 0
        worker.error = None
        spare = self._take_spare(self.models[worker.model].spec)
        if spare is None:
            worker.nonce = self._new_nonce()
            self._actions.append(Spawn(worker.id, worker.nonce))
        else:
            worker.nonce, worker.spawned = spare.nonce, now
            self._actions.append(Adopt(spare.id, worker.id))

    def _back_off(self, worker: Worker, model: Model, stderr: list[str], now: float) -> None:
        worker.take(WorkerEvent.DIED, now)
        deaths = len(worker.deaths)
        worker.due = now + restarting.pause(deaths, self._policy, self._jitter())
        wait = round(worker.due - now, 3)
        self._events.add("worker.restarting", worker=worker.id, pause=wait, deaths=deaths)
        served = any(other.state is READY for other in model.workers.values())
        if deaths >= self._policy.fail_fast_after and not served:
            error = restarting.why_unavailable(worker, model, stderr, now)
            self._actions.append(Refuse(model.spec.name, error))
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
        model.to_replace.clear()
        model.failed_replacements += 1
        pause = restarting.pause(model.failed_replacements + 1, self._policy, self._jitter())
        model.recycle_after = now + max(pause, self._policy.backoff_max)
        model.settled = model.ready
        self._actions.append(Settled(model.spec.name, error))
        worker.take(WorkerEvent.GAVE_UP, now)
        worker.take(WorkerEvent.DRAIN, now)
        self._events.add("worker.gave_up", worker=worker.id, error=error.message)
        self._forget(worker, now)

    def _replace_next(self, model: Model, now: float) -> None:
        """Begin the next replacement, if none is on its way."""
        if model.leaving or any(worker.replaces for worker in model.workers.values()):
            return
        for worker_id, reason in list(model.to_replace.items()):
            worker = self.workers.get(worker_id)
            if worker is None or worker.state is not READY:
                del model.to_replace[worker_id]
            elif self._has_room(worker):
                self._new_worker(model, now, replaces=worker_id)
                return
            elif model.complete:  # no memory for two: one after the other
                del model.to_replace[worker_id]
                self._drain(worker, reason, now)
                return
            else:
                return

    # Inside: stopping.

    def _stop_unwanted(self, model: Model, now: float) -> None:
        if not model.leases and not model.declared:
            self._stop_all(model, "nobody holds a lease on its model", now)

    def _stop_all(self, model: Model, reason: str, now: float) -> None:
        model.leaving = True
        model.to_replace.clear()
        for worker in list(model.workers.values()):
            if worker.state is not DRAINING:
                self._drain(worker, reason, now)

    def _drain(self, worker: Worker, reason: str, now: float) -> None:
        """Let a worker finish what it has; one without a process is forgotten at once."""
        was_ready = worker.state is READY
        worker.take(WorkerEvent.DRAIN, now)
        worker.reason = reason
        if worker.state is WorkerState.STOPPED:
            self._forget(worker, now)
            return
        self._events.add("worker.draining", worker=worker.id, pid=worker.pid, reason=reason)
        if was_ready:
            self.emptying[worker.id] = None
            worker.due = now + self._policy.drain_timeout
            self._actions.append(Drain(worker.id))
        else:  # it loads, and reads no messages meanwhile
            worker.stop_step = 1
            self._stop_harder(worker, now)

    def _stop_harder(self, worker: Worker, now: float) -> None:
        """BYE, then SIGTERM to its leader, to its group, then SIGKILL to all it ever started."""
        self.emptying.pop(worker.id, None)
        steps: tuple[Action, ...] = (
            SayBye(worker.id),
            Kill(worker.id, "leader", gently=True),
            Kill(worker.id, "group", gently=True),
            Kill(worker.id),
        )
        step = worker.stop_step
        self._actions.append(steps[step])
        worker.stop_step = min(step + 1, len(STOPPING))
        share = STOPPING[step] if step < len(STOPPING) else 1.0
        worker.due = now + self._policy.stop_timeout * share

    def _kill(self, worker: Worker) -> None:
        self._actions.append(Kill(worker.id))

    def _forget(self, worker: Worker, now: float) -> None:
        """Take a place away; another one takes over if the model still wants as many."""
        model = self.models[worker.model]
        self.emptying.pop(worker.id, None)
        del self.workers[worker.id], model.workers[worker.id]
        if not model.leaving:
            self._fill(model, now)
            self._replace_next(model, now)
            self._settle(model)
        elif not model.workers:
            del self.models[worker.model]
            self._events.add("model.unloaded", model=worker.model)
            self._actions.append(Removed(worker.model))

    def _settle(self, model: Model) -> None:
        """Tell when a model came up, and when it cannot."""
        name = model.spec.name
        states = [worker.state for worker in model.workers.values()]
        if FAILED in states and not COMING.intersection(states):
            error = next(w.error for w in model.workers.values() if w.state is FAILED)
            assert error is not None, "a worker that was given up has a reason"
            if READY not in states:
                self._actions.append(Refuse(name, error))
            self._events.add("model.failed", model=name, error=error.message)
            self._actions.append(Settled(name, error))
        elif not model.settled and model.ready:
            model.settled = True
            self._events.add("model.ready", model=name)
            self._actions.append(Settled(name, None))


def _difference(one: ModelSpec, other: ModelSpec) -> str:
    names = [n for n in ModelSpec.__dataclass_fields__ if getattr(one, n) != getattr(other, n)]
    if "engine_args" in names:
        keys = one.engine_args.keys() | other.engine_args.keys()
        changed = sorted(k for k in keys if one.engine_args.get(k) != other.engine_args.get(k))
        names[names.index("engine_args")] = ", ".join(changed)
    return "differs in " + ", ".join(names)
