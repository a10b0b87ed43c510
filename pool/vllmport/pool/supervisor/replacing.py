"""Which worker is replaced next, and what becomes of replacements that do not come up. Pure.

One at a time for each model: where there is memory, the replacement is READY before the old one
drains; where there is not, the old one goes first.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from vllmport.bridge.states import WorkerState
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor import restarting
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.places import Model, Worker


class Changes(Protocol):
    """What replacing asks of the fleet."""

    def new_worker(self, model: Model, now: float, replaces: str = "") -> None:
        """Start one more."""

    def drain(self, worker: Worker, reason: str, now: float) -> None:
        """Let one go."""


class Replacing:
    """The replacements of all models.

    Args:
        workers: All that there are, by id.
        policy: How patient to be.
        events: Is told who is recycled.
        has_room: Tells whether a second worker of this kind fits in beside this one.
        changes: Does it.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        policy: Policy,
        events: EventLog,
        has_room: Callable[[Worker], bool],
        changes: Changes,
    ) -> None:
        self._workers = workers
        self._policy = policy
        self._events = events
        self._has_room = has_room
        self._changes = changes

    def want_all(self, model: Model, now: float) -> None:
        """Replace every worker that serves."""
        for worker in list(model.workers.values()):
            if worker.state is WorkerState.READY:
                model.to_replace[worker.id] = "restart"
        self.next(model, now)

    def want(self, worker: Worker, model: Model, reason: str, now: float) -> None:
        """Replace a worker that is READY, unless replacements failed lately."""
        if now < model.recycle_after or worker.verdict or model.leaving:
            return
        if worker.state is WorkerState.READY and worker.id not in model.to_replace:
            self._events.add("worker.recycling", worker=worker.id, pid=worker.pid, reason=reason)
            model.to_replace[worker.id] = reason
            self.next(model, now)

    def next(self, model: Model, now: float) -> None:
        """Begin the next replacement, if none is on its way."""
        if model.leaving or model.replacing:
            return
        for worker_id, reason in list(model.to_replace.items()):
            worker = self._workers.get(worker_id)
            if worker is None or worker.state is not WorkerState.READY:
                del model.to_replace[worker_id]
            elif self._has_room(worker):
                self._changes.new_worker(model, now, replaces=worker_id)
                return
            elif model.complete:  # no memory for two: one after the other
                del model.to_replace[worker_id]
                self._changes.drain(worker, reason, now)
                return
            else:
                return

    def ready(self, worker: Worker, model: Model, now: float) -> None:
        """A worker came up: the one that it replaces drains."""
        if worker.replaces:
            model.failed_replacements, model.recycle_after, model.replacing = 0, -math.inf, ""
        replaced = self._workers.get(worker.replaces)
        worker.replaces = ""
        if replaced is not None and replaced.state is not WorkerState.DRAINING:
            self._changes.drain(replaced, model.to_replace.pop(replaced.id, "replaced"), now)
        self.next(model, now)

    def failed(self, model: Model, now: float, jitter: float) -> None:
        """A replacement died before it was READY: none is tried again for a while."""
        model.to_replace.clear()
        model.failed_replacements += 1
        pause = restarting.pause(model.failed_replacements + 1, self._policy, jitter)
        model.recycle_after = now + max(pause, self._policy.backoff_max)
