"""How a worker goes: it drains, is told, is asked by signal, is killed. Pure."""

from typing import Final

from vllmport.bridge.states import WorkerEvent, WorkerState
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor.actions import Action, Drain, Kill, SayBye
from vllmport.pool.supervisor.agenda import Agenda
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.places import Worker

SHARES: Final = (0.5, 0.25, 0.25)
"""Shares of `stop_timeout` that BYE, SIGTERM to the leader and SIGTERM to the group get."""


class Stopping:
    """The workers that are on their way out.

    Args:
        policy: How patient to be.
        events: Is told who drains.
        agenda: Takes what has to be done.

    Attributes:
        emptying: Those that still hold calls.
    """

    def __init__(self, policy: Policy, events: EventLog, agenda: Agenda) -> None:
        self.emptying: dict[str, None] = {}
        self._policy = policy
        self._events = events
        self._agenda = agenda

    def begin(self, worker: Worker, reason: str, now: float) -> bool:
        """Let a worker finish what it has; return False if it has no process to stop."""
        was_ready = worker.state is WorkerState.READY
        worker.take(WorkerEvent.DRAIN, now)
        worker.reason = reason
        if worker.state is WorkerState.STOPPED:
            return False
        self._events.add("worker.draining", worker=worker.id, pid=worker.pid, reason=reason)
        if was_ready:
            self.emptying[worker.id] = None
            self._agenda.remind(worker, now + self._policy.drain_timeout)
            self._agenda.add(Drain(worker.id))
        else:  # it loads, and reads no messages meanwhile
            worker.stop_step = 1
            self.go_on(worker, now)
        return True

    def go_on(self, worker: Worker, now: float) -> None:
        """BYE, then SIGTERM to its leader, to its group, then SIGKILL to all it ever started."""
        self.emptying.pop(worker.id, None)
        steps: tuple[Action, ...] = (
            SayBye(worker.id),
            Kill(worker.id, "leader", gently=True),
            Kill(worker.id, "group", gently=True),
            Kill(worker.id),
        )
        step = worker.stop_step
        self._agenda.add(steps[step])
        worker.stop_step = min(step + 1, len(SHARES))
        share = SHARES[step] if step < len(SHARES) else 1.0
        self._agenda.remind(worker, now + self._policy.stop_timeout * share)

    def kill(self, worker: Worker, now: float) -> None:
        """Wait no longer."""
        worker.stop_step = len(SHARES)
        self.go_on(worker, now)

    def ended(self, worker: Worker) -> None:
        """It is gone, or its place is."""
        self.emptying.pop(worker.id, None)
