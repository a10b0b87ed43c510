"""The places that workers fill, and the models they belong to. Pure data."""

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

    def take(self, event: WorkerEvent, now: float) -> None:
        """Move on in the state table."""
        self.state = advance(WORKER_TRANSITIONS, self.state, event)
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

    @property
    def state(self) -> WorkerState:
        """The model's state in one word: the best that one of its workers has."""
        states = {worker.state for worker in self.workers.values()}
        order = ("READY", "LOADING", "STARTING", "BACKOFF", "DRAINING", "FAILED")
        return next((WorkerState(name) for name in order if name in states), WorkerState.STOPPED)

    @property
    def lasting(self) -> list[Worker]:
        """The workers that are not on their way out."""
        return [w for w in self.workers.values() if w.state is not WorkerState.DRAINING]

    @property
    def complete(self) -> bool:
        """Whether it has all the workers it should have, and none is on its way in."""
        states = [worker.state for worker in self.lasting]
        return len(states) == self.spec.replicas and not COMING.intersection(states)

    @property
    def ready(self) -> bool:
        """Whether every worker it should have serves, and none is waiting to be replaced."""
        states = {worker.state for worker in self.lasting}
        return self.complete and states == {WorkerState.READY} and not self.to_replace

    def free_place(self) -> str:
        """Name a place that no worker has."""
        index = 0
        while f"{self.spec.name}/{index}" in self.workers:
            index += 1
        return f"{self.spec.name}/{index}"
