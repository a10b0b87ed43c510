"""Every error a caller can meet, and how each one crosses the wire.

Pure. A class has one stable `code`; hosts in other languages switch on the code alone.

    VllmportError
    ├── ConnectFailed      nobody answers at the endpoint
    ├── PoolLost           the supervisor went away while the call was open
    ├── PoolClosed         this client, or the pool, is closed or closing
    ├── ProtocolError      bytes that break bridge/PROTOCOL.md
    ├── InvalidRequest     the request can never succeed as it stands
    ├── PermissionDenied   the key that the client came with may not do this
    │   └── NotAllowed            a universal call may not reach this name
    ├── Overloaded         a queue or a quota is full; come back after `retry_after`
    ├── Unavailable        the model's workers keep dying; come back after `retry_after`
    ├── DeadlineExceeded   the call's budget ran out
    ├── Cancelled          the caller gave the call up
    ├── StartupFailed      a worker did not become ready
    │   ├── KVCacheTooSmall       the memory for the KV cache is too small for one request
    │   ├── GpuMemoryUtilization  less memory is free than gpu_memory_utilization claims
    │   └── CudaOutOfMemory       a GPU ran out of memory
    ├── WorkerLost         the worker died while the call was on it
    ├── SessionLost        the worker that had a session's objects is gone, or the session ended
    ├── QuotaExceeded      a session holds as many objects as it may
    ├── PoisonRequest      two workers died while they worked on the call
    ├── EngineDead         the engine inside a worker died
    └── EngineError        the engine refused or failed this one call
"""

import reprlib
from typing import Any, Self


class VllmportError(Exception):
    """Base of all errors of this project.

    Attributes:
        code: Stable name on the wire.
        retryable: Whether the same call may succeed if it is made again.
        phase: Where it happened: "connect", "queue", "load", "prefill", "decode", … or "".
        worker: Id of the worker concerned, or "".
        attempt: Which dispatch of the call failed, from 1; 0 if it never left the queue.
        details: Plain data that belongs to the error; keys are named by the subclasses.
    """

    code: str = "error"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retryable: bool | None = None,
        phase: str = "",
        worker: str = "",
        attempt: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details if details is not None else {}
        self.phase = phase
        self.worker = worker
        self.attempt = attempt
        if retryable is not None:
            self.retryable = retryable

    def details_for(self, request_id: str) -> dict[str, Any]:
        """Return the details as they go to the caller of this request."""
        return {**self.details, "request_id": request_id} if request_id else self.details

    @property
    def request_id(self) -> str:
        """The caller's name for the call, "" if it never reached the pool."""
        return str(self.details.get("request_id", ""))

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        parts = [repr(self.message), f"retryable={self.retryable}"]
        parts += [
            f"{name}={getattr(self, name)!r}" for name in ("phase", "worker") if getattr(self, name)
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("details", "retryable", "phase", "worker", "attempt")
        return (_rebuild, (self.code, self.message, {name: getattr(self, name) for name in names}))


class ConnectFailed(VllmportError, ConnectionError):
    """Raised when nobody answers at the endpoint. `details["endpoint"]` says where."""

    code = "connect_failed"
    retryable = True


class PoolLost(VllmportError, ConnectionError):
    """Raised for every open call when the supervisor dies or is replaced."""

    code = "pool_lost"
    retryable = True


class PoolClosed(VllmportError):
    """Raised when the client was closed, or the pool is shutting down."""

    code = "pool_closed"


class ProtocolError(VllmportError):
    """Raised for bytes that break `bridge/PROTOCOL.md`, whichever side sent them."""

    code = "protocol_error"


class InvalidRequest(VllmportError, ValueError):
    """Raised when a request can never succeed as it stands.

    Attributes:
        parameter: The name of the offending argument, or "".
        value: Its value as far as it is plain data, or None.
    """

    code = "invalid_request"

    @classmethod
    def of(cls, parameter: str, value: Any, message: str, **kwargs: Any) -> Self:
        """Build one that names the offending parameter and its value."""
        return cls(message, details={"parameter": parameter, "value": value}, **kwargs)

    @property
    def parameter(self) -> str:
        return str(self.details.get("parameter", ""))

    @property
    def value(self) -> Any:
        return self.details.get("value")


class PermissionDenied(VllmportError, PermissionError):
    """Raised when the pool does not know the client's key, or the key's role may not do this.

    Attributes:
        role: What the refused thing needs, or "".
    """

    code = "permission_denied"

    @property
    def role(self) -> str:
        return str(self.details.get("role", ""))


class NotAllowed(PermissionDenied):
    """Raised when a universal call names, or would hand out, what is not on the allow-list.

    Attributes:
        name: The name at which the path was refused.
    """

    code = "not_allowed"

    @property
    def name(self) -> str:
        return str(self.details.get("name", ""))


class Overloaded(VllmportError):
    """Raised when a bounded queue, or a key's quota, is full.

    Attributes:
        retry_after: Seconds after which another try makes sense.
    """

    code = "overloaded"
    retryable = True

    @property
    def retry_after(self) -> float:
        return float(self.details.get("retry_after", 1.0))


class Unavailable(VllmportError):
    """Raised at once while a model has no worker because its workers keep dying.

    Attributes:
        retry_after: Seconds after which another try makes sense.
    """

    code = "unavailable"
    retryable = True

    @property
    def retry_after(self) -> float:
        return float(self.details.get("retry_after", 1.0))


class DeadlineExceeded(VllmportError, TimeoutError):
    """Raised when the budget of a call ran out.

    Attributes:
        tokens: How many tokens had been generated by then.
        partial: The unfinished result as far as it is known, else None.
    """

    code = "deadline_exceeded"

    @property
    def tokens(self) -> int:
        return int(self.details.get("tokens", 0))

    @property
    def partial(self) -> Any:
        return self.details.get("partial")


class Cancelled(VllmportError):
    """Raised when the caller gave the call up before its end."""

    code = "cancelled"


class StartupFailed(VllmportError):
    """Raised when a worker did not become ready.

    Attributes:
        interpreter: The Python that ran the worker, or "".
        path: The model it was to load, or "".
        stderr: The last lines it wrote to standard error.
    """

    code = "startup_failed"

    @property
    def interpreter(self) -> str:
        return str(self.details.get("interpreter", ""))

    @property
    def path(self) -> str:
        return str(self.details.get("path", ""))

    @property
    def stderr(self) -> list[str]:
        return list(self.details.get("stderr", ()))

    def __str__(self) -> str:
        lines = "".join(f"\n    {line}" for line in self.stderr[-8:])
        return (
            f"{self.message}\n  last lines of the worker's stderr:{lines}"
            if lines
            else self.message
        )


class KVCacheTooSmall(StartupFailed):
    """Raised when no request of full length fits into the memory left for the KV cache."""

    code = "kv_cache_too_small"


class GpuMemoryUtilization(StartupFailed):
    """Raised when less memory is free than `gpu_memory_utilization` claims."""

    code = "gpu_memory_utilization"


class CudaOutOfMemory(StartupFailed):
    """Raised when a GPU ran out of memory while the model was loaded."""

    code = "cuda_out_of_memory"


class WorkerLost(VllmportError):
    """Raised when the worker died, or was replaced, after it had started the call.

    Attributes:
        exit: How it ended, for people: "killed by SIGKILL", "exited with status 3".
        tokens: How many tokens of a stream had been generated by then.
    """

    code = "worker_lost"
    retryable = True

    @property
    def exit(self) -> str:
        return str(self.details.get("exit", ""))

    @property
    def tokens(self) -> int:
        return int(self.details.get("tokens", 0))


class SessionLost(VllmportError):
    """Raised when the objects of a session are gone: with their worker, or because it ended.

    Make them again in a new session.

    Attributes:
        exit: How the worker ended, for people; "" if the session itself had ended.
    """

    code = "session_lost"

    @property
    def exit(self) -> str:
        return str(self.details.get("exit", ""))


class QuotaExceeded(VllmportError):
    """Raised when a session would hold more objects than it may; nothing of the call is kept.

    Attributes:
        limit: How many it may hold.
    """

    code = "quota_exceeded"

    @property
    def limit(self) -> int:
        return int(self.details.get("limit", 0))


class PoisonRequest(VllmportError):
    """Raised for a call that had been started on two workers when they died: no third gets it.

    Attributes:
        exits: How each of them ended.
    """

    code = "poison_request"

    @property
    def exits(self) -> list[str]:
        return list(self.details.get("exits", ()))


class EngineDead(VllmportError):
    """Raised when the engine inside a worker died; the worker is replaced."""

    code = "engine_dead"
    retryable = True


class EngineError(VllmportError):
    """Raised when the engine failed this one call; `details["class"]` names its exception."""

    code = "engine_error"


ERRORS: dict[str, type[VllmportError]] = {
    cls.code: cls
    for cls in (
        ConnectFailed,
        PoolLost,
        PoolClosed,
        ProtocolError,
        InvalidRequest,
        PermissionDenied,
        NotAllowed,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        StartupFailed,
        KVCacheTooSmall,
        GpuMemoryUtilization,
        CudaOutOfMemory,
        WorkerLost,
        SessionLost,
        QuotaExceeded,
        PoisonRequest,
        EngineDead,
        EngineError,
    )
}
"""Wire code → class. A code of a newer peer that is missing here becomes a VllmportError."""


def error_from_code(code: str, message: str, **kwargs: Any) -> VllmportError:
    """Build the error that `code` names; an unknown code gives a VllmportError that keeps it."""
    error = ERRORS.get(code, VllmportError)(message, **kwargs)
    error.code = code
    return error


def shown(value: Any) -> str:
    """Return a short text for any value that came over the wire, to quote it in a message.

    `repr` itself fails on values nested too deeply, and is as long as the value.
    """
    try:
        text = _REPR.repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


_MAX_SHOWN = 120
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = _REPR.maxother = 80


def _rebuild(code: str, message: str, parts: dict[str, Any]) -> VllmportError:
    return error_from_code(code, message, **parts)
