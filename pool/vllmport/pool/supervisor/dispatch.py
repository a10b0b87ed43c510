"""Decides which call goes to which worker, when it has waited too long, and who is told what.

Pure: no sockets, no clock. Every method takes what happened and `now`; what has to be sent is
collected and handed over by `take_outgoing`. The calls themselves are kept in `open_calls.py`.
"""

import heapq
from collections.abc import Mapping
from typing import Final

from vllmport.bridge.board import Held, OnRecord
from vllmport.bridge.codec import Bytes, Packed
from vllmport.bridge.errors import DeadlineExceeded, EngineDead, ProtocolError, VllmportError
from vllmport.bridge.limits import DEADLINE_GRACE_MS
from vllmport.bridge.messages import (
    Call,
    Credit,
    End,
    Error,
    Forget,
    Holds,
    Items,
    Result,
    encode,
)
from vllmport.bridge.states import CallEvent, CallState
from vllmport.bridge.universal import UNIVERSAL, Affinity, Verb
from vllmport.pool.supervisor import verdicts
from vllmport.pool.supervisor.access import Usage
from vllmport.pool.supervisor.calls import RESUME, Heap, Key, ModelQueue, OpenCall
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.open_calls import OpenCalls
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker
from vllmport.pool.supervisor.sessions import Sessions, bad_terms, belongs

GRACE: Final = DEADLINE_GRACE_MS / 1000

MAX_DEATHS: Final = 2
"""Workers that may die after they started a call; then it is held to be the cause."""

_NEVER_CAME: Final = OnRecord(Held.NOTHING, 0)


class Dispatcher:
    """The table of open calls, the queues and the workers' load.

    Args:
        max_queue: Calls that may wait for one model.
        max_queue_bytes: Bytes of arguments that may wait for one model; and, apart from those, that
            are kept of its running calls, to run them again if their worker is lost.
        abort_grace: Seconds that a worker may take to let go of a call it was told to abort.
        events: Is told what became of calls whose worker or time was lost.
    """

    def __init__(
        self, max_queue: int, max_queue_bytes: int, abort_grace: float, events: EventLog
    ) -> None:
        self._sessions = Sessions()
        self._calls = OpenCalls(abort_grace, events, self._ended)
        self.counters = self._calls.counters
        self._stuck: dict[str, None] = {}
        self._outstayed: dict[str, None] = {}
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._models: dict[str, ModelQueue] = {}
        self._model_of: dict[str, str] = {}
        self._arrivals = 0

    def __repr__(self) -> str:
        waiting = sum(queue.waiting for queue in self._models.values())
        workers = self._calls.workers
        return f"<Dispatcher {len(self._calls)} open, {waiting} queued, {workers} workers>"

    def take_outgoing(self) -> list[ToClient | ToWorker]:
        """Hand over what has to be sent, in order. The caller must send all of it."""
        for worker, session in self._sessions.take_forgets():
            self._calls.tell_worker(worker, encode(Forget(session)))
        return self._calls.take_outgoing()

    def next_deadline(self) -> float:
        """Return when `expire` has to be called at the latest."""
        return min(self._calls.next_deadline(), self._sessions.next_deadline())

    def take_stuck(self) -> list[str]:
        """Hand over the workers that did not let go of a call in time."""
        stuck, self._stuck = self._stuck, {}
        return list(stuck)

    def take_outstayed(self) -> list[str]:
        """Hand over the workers in which a universal call computes on after it was given up."""
        outstayed, self._outstayed = self._outstayed, {}
        return list(outstayed)

    # Models and workers.

    def add_model(self, name: str) -> None:
        """Take calls for this model from now on; they wait until a worker is ready."""
        self._models.setdefault(name, ModelQueue(name)).refusal = None

    def refuse(self, name: str, error: VllmportError) -> None:
        """Fail what waits for this model and all that comes, until `add_model` again."""
        queue = self._models[name]
        queue.refusal = error
        for call in queue.take_all():
            self._calls.answer(call, error, CallEvent.FINISHED)

    def remove_model(self, name: str, error: VllmportError) -> None:
        """Forget a model; what waits for it fails with `error`."""
        if name in self._models:
            self.refuse(name, error)
            del self._models[name]

    def worker_ready(self, worker: str, model: str, capacity: int, now: float) -> None:
        """Give this worker up to `capacity` calls at one time."""
        queue = self._models[model]
        queue.refusal = None
        self._calls.worker_ready(worker)
        self._model_of[worker] = model
        queue.workers.add(worker, capacity)
        self._dispatch(queue, now)

    def worker_draining(self, worker: str, now: float, why: str = "it is being replaced") -> None:
        """Give this worker nothing new; what sessions hold there is lost, and `why` says how."""
        queue = self._models.get(self._model_of.get(worker, ""))
        self._sessions.worker_gone(worker, why)
        if queue is not None:
            queue.workers.remove(worker)
            for call in queue.unpin(worker):
                self._fail_if_lost(call)
            self._dispatch(queue, now)

    def worker_gone(
        self,
        worker: str,
        cause: str,
        board: Mapping[Key, OnRecord],
        now: float,
        *,
        expected: bool = False,
    ) -> None:
        """Deal with every call that is on this worker, at once.

        What it had not started waits for another worker, what it had started fails or is resumed.

        Args:
            worker: Whose process is gone.
            cause: How it ended.
            board: What it left on record of its calls.
            now: The time.
            expected: Whether its end was asked for; then no call is held to be the cause.
        """
        self.worker_draining(worker, now, cause)
        queue = self._models.get(self._model_of.pop(worker, ""))
        for call in self._calls.worker_gone(worker):
            if call.state is CallState.ABANDONED:
                self._calls.close(call, CallEvent.WORKER_GONE)
            else:
                on_record = board.get(call.key, _NEVER_CAME)
                self._lost_worker(call, cause, on_record, expected=expected)
        if queue is not None:
            self._dispatch(queue, now)

    def fail_all(self, error: VllmportError, now: float) -> None:
        """End every call with this error, and abort those that run."""
        for name in self._models:
            self.refuse(name, error)
        for call in list(self._calls.by_key.values()):
            if call.state is CallState.RUNNING:
                self._calls.abort(call, now)
                self._calls.answer(call, error, CallEvent.EXPIRED)

    def in_flight(self, worker: str) -> int:
        """Return how many calls this worker holds."""
        return len(self._calls.on(worker))

    def owed_by(self, worker: str) -> int:
        """Return how many of its calls are the engine's to do."""
        return self._calls.owed_by(worker)

    def sessions_on(self, worker: str) -> int:
        """Return how many sessions are bound to this worker."""
        return self._sessions.on(worker)

    def done_by(self, worker: str) -> int:
        """Return how many calls this worker has finished."""
        return self._calls.done_by(worker)

    def queued(self, model: str) -> int:
        """Return how many calls wait for this model."""
        return self._models[model].waiting

    def held_by(self, client: int) -> Usage:
        """Return what a client holds: its open calls, and those of them that wait."""
        return self._calls.held_by(client)

    @property
    def open_calls(self) -> int:
        """How many calls have not had their terminal message or are still held by a worker."""
        return len(self._calls)

    # What clients say.

    def call(self, client: int, header: Call, packed: Packed, now: float, owner: str = "") -> None:
        """Take a call: give it to a worker, queue it, or refuse it.

        Args:
            client: Whose it is.
            header: The call.
            packed: Its arguments.
            now: The time.
            owner: With whom the client shares sessions that live on.
        """
        self.counters.calls += 1
        call = OpenCall(client, header, packed, now)
        error = self._refusal(call, now)
        if error is None:
            call.session = self._sessions.of(client, owner, header, now)
            if call.session is not None and header.verb == Verb.END:
                self._sessions.end(call.session)
                self._calls.tell_client(client, encode(Result(header.id, client)))
                return
            error = call.lost_session()
        if error is not None:
            self._calls.refuse(call, error)
            return
        self._calls.add(call)
        self._arrivals += 1
        call.place = (header.priority, self._arrivals)
        call.queue = self._models[header.model]
        call.queue.push(call)
        self._dispatch(call.queue, now)
        if call.state is CallState.QUEUED and header.affinity == Affinity.STRICT_FAIL_FAST:
            self._calls.answer(call, verdicts.busy(call), CallEvent.FINISHED)

    def cancel(self, client: int, call_id: int, now: float) -> None:
        """Give a call up. One that waits is answered here, one that runs by its worker."""
        call = self._calls.by_key.get((client, call_id))
        if call is None:
            return  # its terminal message is on the way
        if call.state is CallState.QUEUED:
            self._calls.answer(call, verdicts.cancelled(call), CallEvent.CANCELLED)
        elif call.state is CallState.RUNNING:
            call.given_up = True
            self._calls.abort(call, now)

    def credit(self, client: int, call_id: int, count: int) -> None:
        """Pass on that the reader of a stream has room."""
        call = self._calls.by_key.get((client, call_id))
        if call is None or count <= 0:
            return
        if call.delivered is not None:
            call.delivered.room += count
        if call.state is CallState.RUNNING:
            self._calls.tell_worker(call.worker, encode(Credit(call_id, count, client)))

    def client_gone(self, client: int, now: float) -> None:
        """Drop what the client left waiting and abort what it left running."""
        for call in self._calls.client_gone(client):
            if call.state is CallState.QUEUED:
                call.queue.leave(call)
                self._calls.close(call, CallEvent.CALLER_GONE)
                continue
            if call.state is CallState.RUNNING:
                self._calls.abort(call, now)
            self._calls.abandon(call)
        self._sessions.client_gone(client)

    # What workers say.

    def items(self, worker: str, message: Items, frames: list[Bytes]) -> None:
        """Pass a batch of stream items on, if any of its calls still wants it."""
        client = message.client
        calls = self._calls.by_key
        for call_id, _ in message.entries:
            call = calls.get((client, call_id))
            if call is not None and call.worker == worker and call.state is CallState.RUNNING:
                self.counters.items += len(message.entries)
                self._calls.tell_client(client, frames)
                if self._calls.resumable:
                    self._calls.record(worker, message, frames)
                return
        self.counters.late += 1

    def end(self, worker: str, message: End, frames: list[Bytes], now: float) -> None:
        """Close the streams that ended."""
        ended = [
            self._finish(worker, (message.client, call_id), now) for call_id, _ in message.entries
        ]
        if any(ended):
            self._calls.tell_client(message.client, frames)
        self._refill(worker, now)

    def result(
        self,
        worker: str,
        client: int,
        call_id: int,
        frames: list[Bytes],
        now: float,
        error: Error | None = None,
    ) -> None:
        """Close a call with its result, or with the error a worker gave it."""
        if error is not None and error.code == EngineDead.code:
            self.worker_draining(worker, now)  # it will say so itself, but not before this
            if self._was_resumed(worker, (client, call_id), error.message, now):
                return
        call = self._calls.by_key.get((client, call_id))
        if self._finish(worker, (client, call_id), now):
            self._calls.tell_client(client, frames)
            if error is not None and call is not None:
                self._calls.count_error(error.code)
                if error.code == DeadlineExceeded.code:
                    self._calls.note("call.expired", call, phase=error.phase)
        self._refill(worker, now)

    def holds(self, worker: str, message: Holds) -> None:
        """Take note of whether a session has refs."""
        self._sessions.holds(worker, message.session, message.refs)

    # Time.

    def expire(self, now: float) -> None:
        """Answer the calls whose budget ran out.

        A call that runs is left to its worker, which knows how far it came; only if the worker has
        said nothing a grace later is it answered from here.
        """
        for call in self._calls.pop_held(now):
            if call.header.verb in UNIVERSAL:
                self._let_go(call)
            else:
                self._stuck[call.worker] = None
        self._sessions.expire(now)
        for call in self._calls.pop_due(now):
            if call.state is CallState.RUNNING and now < call.deadline + GRACE:
                self._calls.prolong(call, call.deadline + GRACE)
            else:
                self._expire(call, now)

    # Inside.

    def _refusal(  # noqa: PLR0911  # one reason after the other
        self, call: OpenCall, now: float
    ) -> VllmportError | None:
        queue = self._models.get(call.header.model)
        if call.key in self._calls.by_key:
            return ProtocolError(f"call id {call.header.id} is already open on this connection")
        if queue is None:
            return verdicts.unknown_model(call.header.model, self._models)
        if queue.refusal is not None:
            return queue.refusal
        if call.header.retry not in ("", RESUME):
            return verdicts.unknown_retry(call.header.retry)
        if (bad := bad_terms(call.header)) is not None:
            return bad
        if call.deadline <= now:
            return DeadlineExceeded("the deadline had passed on arrival", phase="queue")
        full = queue.waiting >= self._max_queue or queue.bytes + call.size > self._max_queue_bytes
        if full and (belongs(call.header) or queue.workers.pick() is None):
            return verdicts.overloaded(queue)
        return None

    def _dispatch(self, queue: ModelQueue, now: float) -> None:
        while (heap := self._next_heap(queue, now)) is not None:
            call = heap[0][2]
            worker = self._worker_for(call)
            if worker is None:
                continue
            heapq.heappop(heap)
            queue.leave(call)
            self._start(call, worker, now)
            queue.workers.shift(worker, 1)

    def _next_heap(self, queue: ModelQueue, now: float) -> Heap | None:
        """Return where the call is that is next; what is over does not stand in its way."""
        for heap in queue.heaps():
            while heap:
                call = heap[0][2]
                if call.state is CallState.QUEUED and call.deadline > now:
                    break
                if call.state is CallState.QUEUED:
                    self._expire(call, now)  # it must never start
                if heap and heap[0][2] is call:  # and not gone with others that were over
                    heapq.heappop(heap)
        return queue.ready_heap()

    def _worker_for(self, call: OpenCall) -> str | None:
        """Return who gets a call; None if it was answered, or has to wait for one worker alone."""
        workers, session = call.queue.workers, call.session
        if session is None:
            return workers.pick()
        if self._fail_if_lost(call):
            return None
        if call.pinned:
            return call.pinned
        bound, only = self._sessions.where(session, call.header)
        if workers.has_room(bound):
            return bound
        if not only:
            return workers.pick()
        call.queue.pin(call, bound)
        return None

    def _fail_if_lost(self, call: OpenCall) -> bool:
        error = call.lost_session()
        if error is not None:
            self._calls.answer(call, error, CallEvent.FINISHED)
        return error is not None

    def _let_go(self, call: OpenCall) -> None:
        """Count a universal call that computes on as over; its worker has to be replaced."""
        self._outstayed[call.worker] = None
        self._calls.let_go(call)
        if call.state is CallState.RUNNING:
            self._calls.answer(call, verdicts.cancelled(call), CallEvent.WORKER_GONE)
        else:
            self._calls.close(call, CallEvent.WORKER_GONE)

    def _start(self, call: OpenCall, worker: str, now: float) -> None:
        if call.session is not None:
            self._sessions.started(call.session, call.key, call.header, worker)
        self._calls.start(call, worker, now)
        call.keep(self._max_queue_bytes)

    def _lost_worker(
        self, call: OpenCall, cause: str, on_record: OnRecord, *, expected: bool = False
    ) -> None:
        """Let a call that lost its worker wait for another, or end it.

        A call is started as well if the worker ended it: then its end was lost on the way.
        """
        started = on_record.held in (Held.STARTED, Held.ENDED)
        tokens = max(on_record.tokens, call.delivered.tokens if call.delivered is not None else 0)
        call.lost_by = cause
        if started and not expected:
            call.deaths.append(cause)
        may_run_again = call.kept and call.queue.refusal is None
        lost_session = call.lost_session()
        if lost_session is not None:
            lost_session.worker = call.worker
            self._calls.answer(call, lost_session, CallEvent.WORKER_GONE)
        elif call.given_up:
            self._calls.answer(call, verdicts.cancelled(call, tokens), CallEvent.WORKER_GONE)
        elif len(call.deaths) >= MAX_DEATHS:
            self._calls.note("call.poisoned", call)
            self._calls.answer(call, verdicts.poison(call), CallEvent.WORKER_GONE)
        elif may_run_again and (not started or call.header.retry == RESUME):
            self._calls.note("call.retried", call, tokens=tokens)
            self._calls.let_wait(call)
            call.queue.push(call)
        else:
            self._calls.note("call.lost", call, tokens=tokens)
            self._calls.answer(call, verdicts.lost(call, cause, tokens), CallEvent.WORKER_GONE)

    def _was_resumed(self, worker: str, key: Key, cause: str, now: float) -> bool:
        """Resume a call whose engine died in a worker that lives, if it is one to be resumed."""
        call = self._calls.by_key.get(key)
        if call is None or call.worker != worker or call.header.retry != RESUME:
            return False
        if call.state is not CallState.RUNNING:
            return False
        self._calls.let_go(call)
        self._lost_worker(call, cause, OnRecord(Held.STARTED, 0))
        self._dispatch(call.queue, now)
        return True

    def _expire(self, call: OpenCall, now: float) -> None:
        where = "queue" if call.state is CallState.QUEUED else "worker"
        error = verdicts.expired(call, where, now)
        self._calls.note("call.expired", call, phase=where)
        if call.state is CallState.RUNNING:
            self._calls.abort(call, now)
        self._calls.answer(call, error, CallEvent.EXPIRED)

    def _finish(self, worker: str, key: Key, now: float) -> bool:
        """Close a call that its worker is done with; return whether the caller still waits."""
        call = self._calls.held(worker, key)
        if call is None:
            return False
        call.queue.workers.shift(worker, -1)
        call.queue.finished(now)
        return self._calls.finish(call)

    def _refill(self, worker: str, now: float) -> None:
        queue = self._models.get(self._model_of.get(worker, ""))
        if queue is not None and queue.waiting:
            self._dispatch(queue, now)

    def _ended(self, call: OpenCall) -> None:
        if call.session is not None:
            self._sessions.ended(call.session, call.key)
