"""Looks at the workers from time to time: does one hang, is one due to be replaced?

Reads /proc and the workers' boards; `health.py` and `fleet.py` decide.
"""

from collections.abc import Callable, Sequence

from vllmport.pool.plan import Policy
from vllmport.pool.supervisor.deciders import Deciders
from vllmport.pool.supervisor.health import Health, Vitals, why_recycle
from vllmport.pool.supervisor.incarnations import Incarnations
from vllmport.pool.supervisor.places import Worker
from vllmport.pool.supervisor.vitals import cpu_seconds, free_memory, members, memory

ROOM = 1.25
"""How many times a worker's memory must be free for a second one beside it."""


class Checkups:
    """The regular looks at the workers that are READY.

    Args:
        policy: What counts as a hang, and when a worker is replaced.
        deciders: Who is told.
        incarnations: Has the workers' boards.
        gpu_memory: Returns the bytes that processes use on the GPUs.
    """

    def __init__(
        self,
        policy: Policy,
        deciders: Deciders,
        incarnations: Incarnations,
        gpu_memory: Callable[[Sequence[int]], int],
    ) -> None:
        self._policy = policy
        self._fleet = deciders.fleet
        self._dispatcher = deciders.dispatcher
        self._incarnations = incarnations
        self._gpu_memory = gpu_memory
        self._health = Health(policy.stall_timeout)
        self._measures = policy.recycle_rss or policy.recycle_gpu_memory
        self._recycles = policy.recycle_age or policy.recycle_calls or self._measures

    def next_deadline(self) -> float:
        """Return when `run` has to be called at the latest."""
        return self._health.next_deadline()

    def watch(self, worker: str, now: float) -> None:
        """Look at a worker from now on: it is READY."""
        found = self._fleet.workers[worker]
        self._health.watch(worker, self._vitals(found, self._members(found)), now)

    def forget(self, worker: str) -> None:
        """Look at it no more."""
        self._health.forget(worker)

    def run(self, now: float) -> list[str]:
        """Look at all; return the workers whose loop has to be asked by a PING."""
        ask = []
        for worker_id in self._health.take_due(now):
            worker = self._fleet.workers[worker_id]
            pids = self._members(worker)
            hangs = self._health.look(worker_id, self._vitals(worker, pids), now)
            if hangs is not None:
                self._fleet.hung(worker_id, hangs, now)
                continue
            if self._health.wants_ping(worker_id, now):
                ask.append(worker_id)
            if self._recycles:
                self._look_at_age(worker, pids, now)
        return ask

    def _members(self, worker: Worker) -> list[int]:
        """Return a worker's processes; its own alone where the others do not matter."""
        all_matter = self._measures or self._dispatcher.in_flight(worker.id)
        return members(worker.pid) if all_matter else [worker.pid]

    def _vitals(self, worker: Worker, pids: Sequence[int]) -> Vitals:
        board = self._incarnations.board(worker.id)
        in_flight = self._dispatcher.owed_by(worker.id)
        if not in_flight:
            pids = pids[:1]
        elif worker.mode == "on" and len(pids) > 1:
            pids = pids[1:]  # what its front does for callers is no progress of the engine
        return Vitals(in_flight, board.turns, board.steps, cpu_seconds(pids), board.asleep)

    def _look_at_age(self, worker: Worker, pids: Sequence[int], now: float) -> None:
        policy = self._policy
        why = why_recycle(
            now - worker.since,
            self._dispatcher.done_by(worker.id),
            memory(pids) if policy.recycle_rss else 0,
            self._gpu_memory(pids),
            max_age=policy.recycle_age,
            max_calls=policy.recycle_calls,
            max_rss=policy.recycle_rss,
            max_gpu_memory=policy.recycle_gpu_memory,
        )
        if why is not None:
            self._fleet.recycle(worker.id, why, now)


def has_memory(worker: Worker) -> bool:
    """Tell whether a second worker of this kind fits into memory beside this one."""
    return free_memory() > ROOM * memory(members(worker.pid))
