"""Whether a worker that died is started again, when, and what is said if it is not.

Pure functions of a place and the policy.
"""

from vllmport.bridge.errors import InvalidRequest, StartupFailed, Unavailable, VllmportError
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.places import Model, Worker


def note_death(worker: Worker, policy: Policy, now: float, *, was_ready: bool) -> None:
    """Count a death; those before a stable time, and those too long ago, no longer count.

    A process that never came so far as to serve takes as long as it likes to die: all count.
    """
    if was_ready and now - worker.since >= policy.stable_after:
        worker.deaths.clear()
    worker.deaths.append(now)
    while was_ready and worker.deaths[0] < now - policy.restart_window:
        worker.deaths.popleft()


def is_hopeless(worker: Worker, policy: Policy, *, was_ready: bool) -> bool:
    """A load that failed with a reason fails again; anything else may heal, a few times."""
    error = worker.error
    if error is not None and not was_ready and error.phase == "load" and not error.retryable:
        return True
    if isinstance(worker.error, InvalidRequest):
        return True
    return len(worker.deaths) > policy.max_restarts


def pause(deaths: int, policy: Policy, jitter: float) -> float:
    """No pause before the first restart; then it doubles, with up to a quarter of jitter."""
    if deaths <= 1:
        return 0.0
    doubled = policy.backoff_initial * 2.0 ** min(deaths - 2, 64)
    return min(doubled, policy.backoff_max) * (1 + jitter / 4)


def why_failed(worker: Worker, spec: ModelSpec, policy: Policy, stderr: list[str]) -> VllmportError:
    """Return the error that everybody gets who asks for a worker that was given up."""
    if worker.error is not None:
        worker.error.details.setdefault("stderr", stderr)
        return worker.error
    return StartupFailed(
        f"worker {worker.id} {worker.last_exit} {len(worker.deaths)} times within "
        f"{policy.restart_window:.0f} s and is not started again; "
        "once the cause is mended, run `vllmport restart` or load the model again",
        phase="load",
        worker=worker.id,
        details={"path": spec.model, "exit": worker.last_exit, "stderr": stderr},
    )


def why_unavailable(worker: Worker, model: Model, stderr: list[str], now: float) -> Unavailable:
    """Return the error that callers get while a model's workers keep dying."""
    retry_after = round(max(0.0, worker.due - now) + model.loads_in, 1)
    return Unavailable(
        f"model {model.spec.name!r} has no worker: {worker.id} {worker.last_exit}, "
        f"{len(worker.deaths)} times lately; try again in {retry_after:.1f} s",
        phase="queue",
        worker=worker.id,
        details={"retry_after": retry_after, "exit": worker.last_exit, "stderr": stderr},
    )
