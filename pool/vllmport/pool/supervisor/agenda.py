"""What the fleet wants to have done: now, as actions, and later, as reminders. Pure."""

import math
from collections.abc import Mapping

from vllmport.bridge.deadlines import Deadlines
from vllmport.pool.supervisor.actions import Action
from vllmport.pool.supervisor.places import Worker


class Agenda:
    """Actions in order, and the workers about whom something has to be done at their time.

    Args:
        workers: All that there are, by id.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers
        self._actions: list[Action] = []
        self._due: Deadlines[str] = Deadlines()

    def add(self, action: Action) -> None:
        """Have this done."""
        self._actions.append(action)

    def take(self) -> list[Action]:
        """Hand over what has to be done, in order."""
        if not self._actions:
            return []
        actions, self._actions = self._actions, []
        return actions

    def remind(self, worker: Worker, at: float) -> None:
        """See to this worker at that time, unless its state changes before."""
        worker.due = at
        self._due.set(worker.id, at)

    def next(self) -> float:
        """Return when somebody has to be seen to; infinity for never."""
        while (first := self._due.first()) is not None:
            due, worker_id = first
            worker = self._workers.get(worker_id)
            if worker is not None and worker.due == due:
                return due
            self._due.discard(worker_id)  # something else became of it
        return math.inf

    def pop_due(self, now: float) -> list[Worker]:
        """Return the workers to be seen to now; what is set from now on has its own turn."""
        known = (self._workers.get(worker_id) for worker_id in self._due.pop_due(now))
        found = [worker for worker in known if worker is not None and worker.due <= now]
        for worker in found:
            worker.due = math.inf
        return found
