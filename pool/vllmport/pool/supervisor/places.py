"""The places that workers fill, and the models they belong to. Pure data."""

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from vllmport.bridge.errors import VllmportError
from vllmport.bridge.states import WORKER_TRANSITIONS, WorkerEvent, WorkerState, advance
from vllmport.pool.plan import ModelSpec

ALIVE = frozenset(
    {WorkerState.STARTING, WorkerState.LOADING, WorkerState.READY, WorkerState.DRAINING}
)
"""States in which a process exists, or is about to."""

COMING = frozenset({WorkerState.STARTING, WorkerState.LOADING, WorkerState.BACKOFF})
"""States that may still lead to READY."""


@dataclass(slots=True)
class Worker:
    """The place of one replica, and the process that fills it now.

    Attributes:
        since: When it came into its present state.
        spawned: When its present process was asked for.
        stage: What it is at, for people.
        restarts: How many processes filled the place before this one.
        deaths: When its processes died lately.
        verdict: Why it is being killed, noted before the signal; "" if it is not.
        reason: Why it drains.
        replaces: The worker that drains once this one is READY, or "".
        due: When something has to be done about it.
        stop_step: How far stopping it has gone.
        tally: How many workers of its model are in each state.
    """

    id: str
    model: str
    nonce: str = ""
    state: WorkerState = WorkerState.STARTING
    since: float = 0.0
    spawned: float = 0.0
    pid: int = 0
    mode: str = ""
    stage: str = ""
    restarts: int = 0
    last_exit: str = ""
    verdict: str = ""
    reason: str = ""
    replaces: str = ""
    error: VllmportError | None = None
    deaths: deque[float] = field(default_factory=deque)
    due: float = math.inf
    stop_step: int = 0
    tally: Counter[WorkerState] = field(default_factory=Counter, repr=False)

    def take(self, event: WorkerEvent, now: float) -> None:
        """Move on in the state table."""
        self.tally[self.state] -= 1
        self.state = advance(WORKER_TRANSITIONS, self.state, event)
        self.tally[self.state] += 1
        self.since = now
        self.due = math.inf


@dataclass(slots=True)
class Model:
    """A specification, who holds a lease on it, and its workers.

    Attributes:
        declared: It stays, whoever leaves.
        leaving: It is being unloaded.
        settled: Its callers were told that it is READY.
        info: What its engine resolved.
        loads_in: Seconds from a process's start to READY, as last seen.
        to_replace: Workers to be replaced, one after the other, each with the reason.
        replacing: The worker that comes up to replace another, or "".
        failed_replacements: How many in a row did not come up.
        recycle_after: When recycling may be tried again.
    """

    spec: ModelSpec
    declared: bool
    workers: dict[str, Worker] = field(default_factory=dict)
    leases: Counter[int] = field(default_factory=Counter)
    leaving: bool = False
    settled: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    loads_in: float = 10.0
    to_replace: dict[str, str] = field(default_factory=dict)
    failed_replacements: int = 0
    recycle_after: float = -math.inf
    replacing: str = ""
    tally: Counter[WorkerState] = field(default_factory=Counter, repr=False)
    _free: list[int] = field(default_factory=list, repr=False)

    def add(self, now: float, replaces: str = "") -> Worker:
        """Make a place for one more worker, under the lowest number that is free."""
        number = heapq.heappop(self._free) if self._free else len(self.workers)
        worker_id = f"{self.spec.name}/{number}"
        worker = Worker(worker_id, self.spec.name, since=now, replaces=replaces, tally=self.tally)
        self.workers[worker_id] = worker
        self.tally[worker.state] += 1
        if replaces:
            self.replacing = worker_id
        return worker

    def drop(self, worker: Worker) -> None:
        """Take a place away."""
        del self.workers[worker.id]
        self.tally[worker.state] -= 1
        heapq.heappush(self._free, int(worker.id.rpartition("/")[2]))
        if self.replacing == worker.id:
            self.replacing = ""

    def has(self, *states: WorkerState) -> bool:
        """Tell whether a worker is in one of these states."""
        return any(self.tally[state] for state in states)

    @property
    def state(self) -> WorkerState:
        """The model's state in one word: the best that one of its workers has."""
        order = ("READY", "LOADING", "STARTING", "BACKOFF", "DRAINING", "FAILED")
        states = (WorkerState(name) for name in order if self.tally[WorkerState(name)])
        return next(states, WorkerState.STOPPED)

    @property
    def lasting(self) -> int:
        """How many workers are not on their way out."""
        return len(self.workers) - self.tally[WorkerState.DRAINING]

    @property
    def standing(self) -> int:
        """How many of these do not come up to replace another."""
        coming = self.workers.get(self.replacing)
        extra = coming is not None and coming.state is not WorkerState.DRAINING
        return self.lasting - extra

    @property
    def complete(self) -> bool:
        """Whether it has all the workers it should have, and none is on its way in."""
        return self.lasting == self.spec.replicas and not self.has(*COMING)

    @property
    def ready(self) -> bool:
        """Whether every worker it should have serves, and none is waiting to be replaced."""
        serving = self.tally[WorkerState.READY]
        return self.complete and serving == self.lasting and not self.to_replace
