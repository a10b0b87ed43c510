"""The errors that the dispatcher itself gives to callers, in words and details.

Pure.
"""

from collections.abc import Iterable

from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PoisonRequest,
    WorkerLost,
)
from vllmport.pool.supervisor.calls import RESUME, ModelQueue, OpenCall


def unknown_model(name: str, known: Iterable[str]) -> InvalidRequest:
    """There is no such model."""
    listed = ", ".join(sorted(known)) or "none is loaded"
    return InvalidRequest.of("model", name, f"no model {name!r} in this pool; known: {listed}")


def unknown_retry(retry: str) -> InvalidRequest:
    """There is no such way to retry."""
    return InvalidRequest.of("retry", retry, f'retry is "" or "{RESUME}", not {retry!r}')


def overloaded(queue: ModelQueue) -> Overloaded:
    """The queue is full; from its pace follows when to come back."""
    retry_after = min(max(queue.waiting * queue.pace, 0.1), 30.0)
    return Overloaded(
        f"{queue.waiting} calls ({queue.bytes} bytes) wait for {queue.name!r} already; "
        f"try again in {retry_after:.1f} s",
        phase="queue",
        details={"retry_after": retry_after, "queued": queue.waiting},
    )


def busy(call: OpenCall) -> Overloaded:
    """The worker of the call's session is full, and the call does not wait."""
    return Overloaded(
        "the worker of this session has no room, and strict_fail_fast does not wait for it",
        phase="queue",
        details={"retry_after": max(call.queue.pace, 0.1), "queued": call.queue.waiting},
    )


def expired(call: OpenCall, where: str, now: float) -> DeadlineExceeded:
    """The budget ran out; where that was the worker, it said nothing about it."""
    return DeadlineExceeded(
        f"the deadline passed in the {where} after {now - call.arrived:.3f} s",
        phase=where,
        worker=call.worker,
        attempt=call.attempt,
        details={"tokens": 0, "partial": None},
    )


def cancelled(call: OpenCall, tokens: int = 0) -> Cancelled:
    """The caller gave the call up, and no worker is left to say so."""
    return Cancelled(
        "the caller cancelled the call and its worker was lost"
        if call.worker
        else "the caller cancelled the call before it started",
        phase="running" if call.worker else "queue",
        worker=call.worker,
        attempt=call.attempt,
        details={"tokens": tokens},
    )


def lost(call: OpenCall, cause: str, tokens: int) -> WorkerLost:
    """The worker died after it had started the call."""
    return WorkerLost(
        f"worker {call.worker} was lost while it worked on this call: {cause}",
        phase="running",
        worker=call.worker,
        attempt=call.attempt,
        details={"exit": cause, "tokens": tokens},
    )


def poison(call: OpenCall) -> PoisonRequest:
    """Too many workers died after they had started the call."""
    return PoisonRequest(
        f"{len(call.deaths)} workers died after they had started this call "
        f"({'; '.join(call.deaths)}): it is given to no other",
        phase="running",
        worker=call.worker,
        attempt=call.attempt,
        details={"exits": call.deaths},
    )
