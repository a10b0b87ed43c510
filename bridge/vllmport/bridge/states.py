"""The life of a worker and of a call, as data.

Pure. Everything that may change a state is in these tables; what is not listed may not happen,
and `advance` says so. `bridge/PROTOCOL.md` shows the same tables and a test compares them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar


class WorkerState(StrEnum):
    """Where one worker process, or the place kept for it, stands."""

    STARTING = "STARTING"
    """Asked for; it has not registered yet."""
    LOADING = "LOADING"
    """Registered; it imports the engine and loads the model."""
    READY = "READY"
    """Takes calls."""
    DRAINING = "DRAINING"
    """Finishes what it has and takes nothing new; then it stops."""
    BACKOFF = "BACKOFF"
    """Died; a new process is started after a pause."""
    FAILED = "FAILED"
    """Died too often, or in a way that cannot heal: no further try."""
    STOPPED = "STOPPED"
    """Gone on purpose."""


class WorkerEvent(StrEnum):
    """What happens to a worker."""

    REGISTERED = "registered"
    READY = "ready"
    DRAIN = "drain"
    DIED = "died"
    GAVE_UP = "gave up"
    RETRY = "retry"
    STOPPED = "stopped"


class CallState(StrEnum):
    """Where one call stands, as the supervisor sees it."""

    QUEUED = "QUEUED"
    """Waits for a worker with a free place."""
    RUNNING = "RUNNING"
    """Is on a worker; its terminal message comes from there."""
    ABANDONED = "ABANDONED"
    """The caller is answered or gone; the worker has yet to confirm that it let go."""
    DONE = "DONE"
    """Answered once, and on no worker."""


class CallEvent(StrEnum):
    """What happens to a call."""

    DISPATCHED = "dispatched"
    FINISHED = "finished"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CALLER_GONE = "caller gone"
    REQUEUED = "requeued"
    WORKER_GONE = "worker gone"


WORKER_TRANSITIONS: Final[Mapping[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (WorkerState.STARTING, WorkerEvent.REGISTERED): WorkerState.LOADING,
    (WorkerState.STARTING, WorkerEvent.DRAIN): WorkerState.DRAINING,
    (WorkerState.STARTING, WorkerEvent.DIED): WorkerState.BACKOFF,
    (WorkerState.STARTING, WorkerEvent.GAVE_UP): WorkerState.FAILED,
    (WorkerState.LOADING, WorkerEvent.READY): WorkerState.READY,
    (WorkerState.LOADING, WorkerEvent.DRAIN): WorkerState.DRAINING,
    (WorkerState.LOADING, WorkerEvent.DIED): WorkerState.BACKOFF,
    (WorkerState.LOADING, WorkerEvent.GAVE_UP): WorkerState.FAILED,
    (WorkerState.READY, WorkerEvent.DRAIN): WorkerState.DRAINING,
    (WorkerState.READY, WorkerEvent.DIED): WorkerState.BACKOFF,
    (WorkerState.READY, WorkerEvent.GAVE_UP): WorkerState.FAILED,
    (WorkerState.DRAINING, WorkerEvent.STOPPED): WorkerState.STOPPED,
    (WorkerState.BACKOFF, WorkerEvent.RETRY): WorkerState.STARTING,
    (WorkerState.BACKOFF, WorkerEvent.DRAIN): WorkerState.STOPPED,
    (WorkerState.FAILED, WorkerEvent.DRAIN): WorkerState.STOPPED,
}

CALL_TRANSITIONS: Final[Mapping[tuple[CallState, CallEvent], CallState]] = {
    (CallState.QUEUED, CallEvent.DISPATCHED): CallState.RUNNING,
    (CallState.QUEUED, CallEvent.FINISHED): CallState.DONE,
    (CallState.QUEUED, CallEvent.EXPIRED): CallState.DONE,
    (CallState.QUEUED, CallEvent.CANCELLED): CallState.DONE,
    (CallState.QUEUED, CallEvent.CALLER_GONE): CallState.DONE,
    (CallState.RUNNING, CallEvent.FINISHED): CallState.DONE,
    (CallState.RUNNING, CallEvent.EXPIRED): CallState.ABANDONED,
    (CallState.RUNNING, CallEvent.CALLER_GONE): CallState.ABANDONED,
    (CallState.RUNNING, CallEvent.REQUEUED): CallState.QUEUED,
    (CallState.RUNNING, CallEvent.WORKER_GONE): CallState.DONE,
    (CallState.ABANDONED, CallEvent.FINISHED): CallState.DONE,
    (CallState.ABANDONED, CallEvent.CALLER_GONE): CallState.ABANDONED,
    (CallState.ABANDONED, CallEvent.WORKER_GONE): CallState.DONE,
}

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


def advance(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """Return the state that follows.

    Raises:
        AssertionError: The table has no such transition; that is a bug here, never the peer's.
    """
    try:
        return table[state, event]
    except KeyError:
        raise AssertionError(f"{state} cannot take {event!r}") from None
