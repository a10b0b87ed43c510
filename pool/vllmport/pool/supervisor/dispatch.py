"""Decides which call goes to which worker, when it has waited too long, and who is told what.

Pure: no sockets, no clock. Every method takes what happened and `now`; what has to be sent is
collected and handed over by `take_outgoing`. Each call gets exactly one terminal message.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vllmport.bridge.codec import Bytes, Packed, pack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    VllmportError,
    WorkerLost,
)
from vllmport.bridge.limits import DEADLINE_GRACE_MS
from vllmport.bridge.messages import Call, Cancel, Credit, End, Items, encode, error_message
from vllmport.bridge.states import CALL_TRANSITIONS, CallEvent, CallState, advance
from vllmport.bridge.timeouts import from_wire, to_wire
from vllmport.pool.supervisor.load import LeastLoaded

GRACE: Final = DEADLINE_GRACE_MS / 1000

Key = tuple[int, int]
"""(client, call id)."""


class ToClient(NamedTuple):
    """Frames for one client."""

    client: int
    frames: list[Bytes]


class ToWorker(NamedTuple):
    """Frames for one worker."""

    worker: str
    frames: list[Bytes]


class OpenCall:
    """One call from its arrival until no worker holds it."""

    __slots__ = (
        "arrived",
        "attempt",
        "deadline",
        "header",
        "key",
        "packed",
        "size",
        "state",
        "worker",
    )

    def __init__(self, client: int, header: Call, packed: Packed, now: float) -> None:
        self.key: Key = (client, header.id)
        self.header = header
        self.packed = packed
        self.size = len(packed.payload) + sum(map(len, packed.buffers))
        self.deadline = from_wire(header.remaining_ms, now)
        self.arrived = now
        self.state = CallState.QUEUED
        self.worker = ""
        self.attempt = 0

    def __repr__(self) -> str:
        return f"<OpenCall {self.key} {self.header.verb} {self.state} worker={self.worker!r}>"

    def take(self, event: CallEvent) -> None:
        """Move on in the state table."""
        self.state = advance(CALL_TRANSITIONS, self.state, event)


@dataclass(slots=True)
class ModelQueue:
    """The calls that wait for one model, and the workers that could take them."""

    name: str
    heap: list[tuple[int, int, OpenCall]] = field(default_factory=list)
    waiting: int = 0
    bytes: int = 0
    workers: LeastLoaded = field(default_factory=LeastLoaded)
    refusal: VllmportError | None = None
    pace: float = 0.05
    last_finish: float = math.nan

    def finished(self, now: float) -> None:
        """Learn how quickly calls end, for `retry_after`."""
        if not math.isnan(self.last_finish):
            self.pace += 0.1 * (min(now - self.last_finish, 10.0) - self.pace)
        self.last_finish = now


@dataclass(slots=True)
class Counters:
    """What happened so far, for `status`."""

    calls: int = 0
    finished: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    late: int = 0
    items: int = 0


class Dispatcher:
    """The table of open calls, the queues and the workers' load."""

    def __init__(self, max_queue: int, max_queue_bytes: int) -> None:
        self.counters = Counters()
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._models: dict[str, ModelQueue] = {}
        self._calls: dict[Key, OpenCall] = {}
        self._by_client: dict[int, set[Key]] = {}
        self._by_worker: dict[str, set[Key]] = {}
        self._model_of: dict[str, str] = {}
        self._done: dict[str, int] = {}
        self._due: Deadlines[Key] = Deadlines()
        self._arrivals = 0
        self._outgoing: list[ToClient | ToWorker] = []

    def __repr__(self) -> str:
        waiting = sum(queue.waiting for queue in self._models.values())
        workers = len(self._by_worker)
        return f"<Dispatcher {len(self._calls)} open, {waiting} queued, {workers} workers>"

    def take_outgoing(self) -> list[ToClient | ToWorker]:
        """Hand over what has to be sent, in order. The caller must send all of it."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_deadline(self) -> float:
        """Return when `expire` has to be called at the latest."""
        return self._due.next()

    # Models and workers.

    def add_model(self, name: str) -> None:
        """Take calls for this model from now on; they wait until a worker is ready."""
        self._models.setdefault(name, ModelQueue(name)).refusal = None

    def refuse(self, name: str, error: VllmportError) -> None:
        """Fail what waits for this model and all that comes, until `add_model` again."""
        queue = self._models[name]
        queue.refusal = error
        for _, _, call in queue.heap:
            if call.state is CallState.QUEUED:
                self._answer(call, error, CallEvent.FINISHED)
        queue.heap.clear()

    def remove_model(self, name: str, error: VllmportError) -> None:
        """Forget a model; what waits for it fails with `error`."""
        if name in self._models:
            self.refuse(name, error)
            del self._models[name]

    def worker_ready(self, worker: str, model: str, capacity: int, now: float) -> None:
        """Give this worker up to `capacity` calls at one time."""
        queue = self._models[model]
        queue.refusal = None
        self._by_worker[worker] = set()
        self._done[worker] = 0
        self._model_of[worker] = model
        queue.workers.add(worker, capacity)
        self._dispatch(queue, now)

    def worker_draining(self, worker: str) -> None:
        """Give this worker nothing new."""
        queue = self._models.get(self._model_of.get(worker, ""))
        if queue is not None:
            queue.workers.remove(worker)

    def worker_gone(self, worker: str, cause: str) -> list[str]:
        """Fail every call that is on this worker, at once; return the request ids of those."""
        lost = []
        self.worker_draining(worker)
        for key in self._by_worker.pop(worker, set()):
            call = self._calls[key]
            if call.state is CallState.ABANDONED:
                self._close(call, CallEvent.WORKER_GONE)
                continue
            error = WorkerLost(
                f"worker {worker} was lost while it worked on this call: {cause}",
                phase="running",
                worker=worker,
                attempt=call.attempt,
                details={"exit": cause},
            )
            self._answer(call, error, CallEvent.WORKER_GONE)
            lost.append(call.header.request_id)
        self._model_of.pop(worker, None)
        self._done.pop(worker, None)
        return lost

    def in_flight(self, worker: str) -> int:
        """Return how many calls this worker holds."""
        return len(self._by_worker.get(worker, ()))

    def done_by(self, worker: str) -> int:
        """Return how many calls this worker has finished."""
        return self._done.get(worker, 0)

    def queued(self, model: str) -> int:
        """Return how many calls wait for this model."""
        return self._models[model].waiting

    @property
    def open_calls(self) -> int:
        """How many calls have not had their terminal message or are still held by a worker."""
        return len(self._calls)

    # What clients say.

    def call(self, client: int, header: Call, packed: Packed, now: float) -> None:
        """Take a call: give it to a worker, queue it, or refuse it."""
        self.counters.calls += 1
        call = OpenCall(client, header, packed, now)
        error = self._refusal(call, now)
        if error is not None:
            self._tell(client, header.id, error)
            return
        self._calls[call.key] = call
        self._by_client.setdefault(client, set()).add(call.key)
        self._due.set(call.key, call.deadline)
        queue = self._models[header.model]
        self._arrivals += 1
        heapq.heappush(queue.heap, (header.priority, self._arrivals, call))
        queue.waiting += 1
        queue.bytes += call.size
        self._dispatch(queue, now)

    def cancel(self, client: int, call_id: int) -> None:
        """Give a call up. One that waits is answered here, one that runs by its worker."""
        call = self._calls.get((client, call_id))
        if call is None:
            return  # its terminal message is on the way
        if call.state is CallState.QUEUED:
            text = "the caller cancelled the call before it started"
            error = Cancelled(text, phase="queue", details={"tokens": 0})
            self._answer(call, error, CallEvent.CANCELLED)
        elif call.state is CallState.RUNNING:
            self._outgoing.append(ToWorker(call.worker, encode(Cancel(call_id, client))))

    def credit(self, client: int, call_id: int, count: int) -> None:
        """Pass on that the reader of a stream has room."""
        call = self._calls.get((client, call_id))
        if call is not None and call.state is CallState.RUNNING and count > 0:
            self._outgoing.append(ToWorker(call.worker, encode(Credit(call_id, count, client))))

    def client_gone(self, client: int) -> None:
        """Drop what the client left waiting and abort what it left running."""
        for key in list(self._by_client.pop(client, ())):
            call = self._calls[key]
            if call.state is CallState.QUEUED:
                self._unqueue(call)
                self._close(call, CallEvent.CALLER_GONE)
                continue
            if call.state is CallState.RUNNING:
                self._outgoing.append(ToWorker(call.worker, encode(Cancel(call.header.id, client))))
            call.take(CallEvent.CALLER_GONE)
            self._due.discard(key)

    # What workers say.

    def items(self, worker: str, message: Items, frames: list[Bytes]) -> None:
        """Pass a batch of stream items on, if any of its calls still wants it."""
        client = message.client
        calls = self._calls
        for call_id, _ in message.entries:
            call = calls.get((client, call_id))
            if call is not None and call.worker == worker and call.state is CallState.RUNNING:
                self.counters.items += len(message.entries)
                self._outgoing.append(ToClient(client, frames))
                return
        self.counters.late += 1

    def end(self, worker: str, message: End, frames: list[Bytes], now: float) -> None:
        """Close the streams that ended."""
        ended = [
            self._finish(worker, (message.client, call_id), now) for call_id, _ in message.entries
        ]
        if any(ended):
            self._outgoing.append(ToClient(message.client, frames))
        self._refill(worker, now)

    def result(
        self,
        worker: str,
        client: int,
        call_id: int,
        frames: list[Bytes],
        now: float,
        error: str = "",
    ) -> None:
        """Close a call with its result, or with the error a worker gave it."""
        if self._finish(worker, (client, call_id), now):
            self._outgoing.append(ToClient(client, frames))
            if error:
                self._count_error(error)
        self._refill(worker, now)

    # Time.

    def expire(self, now: float) -> None:
        """Answer the calls whose budget ran out.

        A call that runs is left to its worker, which knows how far it came; only if the worker has
        said nothing a grace later is it answered from here.
        """
        for key in self._due.pop_due(now):
            call = self._calls[key]
            if call.state is CallState.RUNNING and now < call.deadline + GRACE:
                self._due.set(key, call.deadline + GRACE)
            else:
                self._expire(call, now)

    # Inside.

    def _refusal(self, call: OpenCall, now: float) -> VllmportError | None:
        queue = self._models.get(call.header.model)
        if call.key in self._calls:
            return ProtocolError(f"call id {call.header.id} is already open on this connection")
        if queue is None:
            known = ", ".join(sorted(self._models)) or "none is loaded"
            text = f"no model {call.header.model!r} in this pool; known: {known}"
            return InvalidRequest.of("model", call.header.model, text)
        if queue.refusal is not None:
            return queue.refusal
        if call.deadline <= now:
            return DeadlineExceeded("the deadline had passed on arrival", phase="queue")
        full = queue.waiting >= self._max_queue or queue.bytes + call.size > self._max_queue_bytes
        if full and queue.workers.pick() is None:
            retry_after = min(max(queue.waiting * queue.pace, 0.1), 30.0)
            return Overloaded(
                f"{queue.waiting} calls ({queue.bytes} bytes) wait for {queue.name!r} already; "
                f"try again in {retry_after:.1f} s",
                phase="queue",
                details={"retry_after": retry_after, "queued": queue.waiting},
            )
        return None

    def _dispatch(self, queue: ModelQueue, now: float) -> None:
        while queue.heap:
            call = queue.heap[0][2]
            if call.state is not CallState.QUEUED:
                heapq.heappop(queue.heap)
                continue
            if call.deadline <= now:  # it must never start
                self._expire(call, now)
                continue
            worker = queue.workers.pick()
            if worker is None:
                return
            heapq.heappop(queue.heap)
            self._unqueue(call)
            self._start(call, worker, now)
            queue.workers.shift(worker, 1)

    def _start(self, call: OpenCall, worker: str, now: float) -> None:
        call.take(CallEvent.DISPATCHED)
        call.worker = worker
        call.attempt += 1
        self._by_worker[worker].add(call.key)
        header = call.header._replace(
            remaining_ms=to_wire(call.deadline - now), client=call.key[0], attempt=call.attempt
        )
        self._outgoing.append(ToWorker(worker, encode(header, call.packed)))
        call.packed = Packed(b"", [])  # the worker has it now

    def _expire(self, call: OpenCall, now: float) -> None:
        where = "queue" if call.state is CallState.QUEUED else "worker"
        error = DeadlineExceeded(
            f"the deadline passed in the {where} after {now - call.arrived:.3f} s",
            phase=where,
            worker=call.worker,
            attempt=call.attempt,
            details={"tokens": 0, "partial": None},
        )
        if call.state is CallState.RUNNING:
            self._outgoing.append(ToWorker(call.worker, encode(Cancel(call.key[1], call.key[0]))))
        self._answer(call, error, CallEvent.EXPIRED)

    def _unqueue(self, call: OpenCall) -> None:
        queue = self._models[call.header.model]
        queue.waiting -= 1
        queue.bytes -= call.size
        if (
            len(queue.heap) > 2 * queue.waiting + 64
        ):  # most of it is over: it expired, was cancelled
            queue.heap = [entry for entry in queue.heap if entry[2].state is CallState.QUEUED]
            heapq.heapify(queue.heap)

    def _finish(self, worker: str, key: Key, now: float) -> bool:
        """Close a call that its worker is done with; return whether the caller still waits."""
        call = self._calls.get(key)
        if call is None or call.worker != worker:
            self.counters.late += 1
            return False
        waited = call.state is CallState.RUNNING
        self._close(call, CallEvent.FINISHED)
        self._by_worker[worker].discard(key)
        self._done[worker] += 1
        queue = self._models.get(call.header.model)
        if queue is not None:
            queue.workers.shift(worker, -1)
            queue.finished(now)
        self.counters.finished += waited
        return waited

    def _refill(self, worker: str, now: float) -> None:
        queue = self._models.get(self._model_of.get(worker, ""))
        if queue is not None and queue.heap:
            self._dispatch(queue, now)

    def _answer(self, call: OpenCall, error: VllmportError, event: CallEvent) -> None:
        """Give a call its terminal message from here."""
        if call.state is CallState.QUEUED:
            self._unqueue(call)
        self._tell(call.key[0], call.key[1], error)
        self._close(call, event)

    def _close(self, call: OpenCall, event: CallEvent) -> None:
        call.take(event)
        self._due.discard(call.key)
        if call.state is CallState.DONE:
            call.packed = Packed(b"", [])  # a queue may hold the call a little longer
            del self._calls[call.key]
            mine = self._by_client.get(call.key[0])
            if mine is not None:
                mine.discard(call.key)

    def _tell(self, client: int, call_id: int, error: VllmportError) -> None:
        self._count_error(error.code)
        frames = encode(error_message(error, call_id, client), pack(error.details))
        self._outgoing.append(ToClient(client, frames))

    def _count_error(self, code: str) -> None:
        self.counters.errors[code] = self.counters.errors.get(code, 0) + 1
