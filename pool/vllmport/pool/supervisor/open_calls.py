"""The table of open calls: whose they are, who holds them, when they are due, and how they end.

Pure. What is said to clients and workers is collected here; what happens to a call, and when, is
decided in `dispatch.py`. Each call gets exactly one terminal message.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vllmport.bridge.codec import Bytes, pack, unpack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import VllmportError
from vllmport.bridge.messages import Cancel, Items, encode, error_message
from vllmport.bridge.states import CallEvent, CallState
from vllmport.bridge.timeouts import to_wire
from vllmport.bridge.universal import UNIVERSAL
from vllmport.pool.supervisor.access import Usage
from vllmport.pool.supervisor.calls import Key, OpenCall
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker


@dataclass(slots=True)
class Counters:
    """What happened so far, for `status`."""

    calls: int = 0
    finished: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    late: int = 0
    items: int = 0
    tokens: int = 0
    started: int = 0
    queue_seconds: float = 0.0
    restarts: int = 0


class OpenCalls:
    """Every call from its arrival until no worker holds it.

    Args:
        abort_grace: Seconds that a worker may take to let go of a call it was told to abort.
        events: Is told what became of calls whose worker or time was lost.
        on_end: Called with each call of which nothing is left.

    Attributes:
        by_key: All of them.
        resumable: The streams among them that may be run again.
    """

    def __init__(
        self, abort_grace: float, events: EventLog, on_end: Callable[[OpenCall], None]
    ) -> None:
        self.counters = Counters()
        self.by_key: dict[Key, OpenCall] = {}
        self.resumable: dict[Key, OpenCall] = {}
        self._abort_grace = abort_grace
        self._events = events
        self._on_end = on_end
        self._by_client: dict[int, set[Key]] = {}
        self._by_worker: dict[str, set[Key]] = {}
        self._done: dict[str, int] = {}
        self._due: Deadlines[Key] = Deadlines()
        self._aborted: Deadlines[Key] = Deadlines()  # until their worker has let go of them
        self._outgoing: list[ToClient | ToWorker] = []

    def __len__(self) -> int:
        return len(self.by_key)

    # Who holds what.

    def worker_ready(self, worker: str) -> None:
        """This worker may be given calls."""
        self._by_worker[worker] = set()
        self._done[worker] = 0

    def worker_gone(self, worker: str) -> list[OpenCall]:
        """Forget a worker; return the calls that it held."""
        self._done.pop(worker, None)
        return [self.by_key[key] for key in self._by_worker.pop(worker, ())]

    def client_gone(self, client: int) -> list[OpenCall]:
        """Forget a client; return its calls."""
        return [self.by_key[key] for key in self._by_client.pop(client, ())]

    @property
    def workers(self) -> int:
        """How many workers may hold calls."""
        return len(self._by_worker)

    def on(self, worker: str) -> set[Key]:
        """Return the keys of the calls that this worker holds."""
        return self._by_worker.get(worker, set())

    def owed_by(self, worker: str) -> int:
        """Return how many of the calls on this worker are its engine's to do."""
        held = (self.by_key[key] for key in self.on(worker))
        return sum(call.header.verb not in UNIVERSAL for call in held)

    def done_by(self, worker: str) -> int:
        """Return how many calls this worker has finished."""
        return self._done.get(worker, 0)

    def held_by(self, client: int) -> Usage:
        """Return what a client holds: its open calls, and those of them that wait."""
        calls = [self.by_key[key] for key in self._by_client.get(client, ())]
        waiting = sum(call.state is CallState.QUEUED for call in calls)
        return Usage(len(calls), waiting, sum(call.size for call in calls))

    # How a call goes.

    def add(self, call: OpenCall) -> None:
        """Take a call in."""
        self.by_key[call.key] = call
        if call.delivered is not None:
            self.resumable[call.key] = call
        self._by_client.setdefault(call.key[0], set()).add(call.key)
        self._due.set(call.key, call.deadline)

    def start(self, call: OpenCall, worker: str, now: float) -> None:
        """Give a call to a worker."""
        call.take(CallEvent.DISPATCHED)
        call.worker = worker
        call.attempt += 1
        self.counters.started += 1
        self.counters.queue_seconds += now - call.arrived
        self._by_worker[worker].add(call.key)
        header, packed = call.for_worker(to_wire(call.deadline - now))
        self.tell_worker(worker, encode(header, packed))

    def let_wait(self, call: OpenCall) -> None:
        """Its worker is lost, and another is to have it."""
        call.take(CallEvent.REQUEUED)
        call.worker = ""
        self._due.set(call.key, call.deadline)

    def let_go(self, call: OpenCall) -> None:
        """Its worker holds it no more."""
        self._by_worker[call.worker].discard(call.key)

    def abort(self, call: OpenCall, now: float) -> None:
        """Tell a worker to let go of a call, and note when it should have."""
        client, call_id = call.key
        self.tell_worker(call.worker, encode(Cancel(call_id, client)))
        self._aborted.set(call.key, now + self._abort_grace)

    def abandon(self, call: OpenCall) -> None:
        """Its caller is gone, but its worker holds it."""
        call.take(CallEvent.CALLER_GONE)
        self._due.discard(call.key)

    def held(self, worker: str, key: Key) -> OpenCall | None:
        """Return the call that a worker speaks of; None if it is not its call any more."""
        call = self.by_key.get(key)
        if call is not None and call.worker == worker:
            return call
        self.counters.late += 1
        return None

    def finish(self, call: OpenCall) -> bool:
        """Close a call that its worker is done with; return whether the caller still waits."""
        waited = call.state is CallState.RUNNING
        self.close(call, CallEvent.FINISHED)
        self.let_go(call)
        self._done[call.worker] += 1
        self.counters.finished += waited
        return waited

    def answer(self, call: OpenCall, error: VllmportError, event: CallEvent) -> None:
        """Give a call its terminal message from here."""
        if call.state is CallState.QUEUED:
            call.queue.leave(call)
        self.refuse(call, error)
        self.close(call, event)

    def close(self, call: OpenCall, event: CallEvent) -> None:
        """Note that a call ended; it stays while a worker holds it."""
        call.take(event)
        self._due.discard(call.key)
        if call.state is not CallState.DONE:
            return
        self._on_end(call)
        self._aborted.discard(call.key)
        del self.by_key[call.key]
        self.resumable.pop(call.key, None)
        mine = self._by_client.get(call.key[0])
        if mine is not None:
            mine.discard(call.key)

    # Time.

    def next_deadline(self) -> float:
        """Return when the next one is due."""
        return min(self._due.next(), self._aborted.next())

    def pop_due(self, now: float) -> Iterator[OpenCall]:
        """Yield the calls whose budget ran out."""
        return (self.by_key[key] for key in self._due.pop_due(now))

    def pop_held(self, now: float) -> Iterator[OpenCall]:
        """Yield the calls that a worker holds too long after it was told to let go."""
        return (self.by_key[key] for key in self._aborted.pop_due(now))

    def prolong(self, call: OpenCall, due: float) -> None:
        """Look at a call again at that time."""
        self._due.set(call.key, due)

    # What is said.

    def take_outgoing(self) -> list[ToClient | ToWorker]:
        """Hand over what has to be sent, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def tell_client(self, client: int, frames: list[Bytes]) -> None:
        """Have frames sent to a client."""
        self._outgoing.append(ToClient(client, frames))

    def tell_worker(self, worker: str, frames: list[Bytes]) -> None:
        """Have frames sent to a worker."""
        self._outgoing.append(ToWorker(worker, frames))

    def refuse(self, call: OpenCall, error: VllmportError) -> None:
        """Tell the caller of a call how it failed."""
        self.count_error(error.code)
        client, call_id = call.key
        details = error.details_for(call.header.request_id)
        self.tell_client(client, encode(error_message(error, call_id, client), pack(details)))

    def record(self, worker: str, message: Items, frames: list[Bytes]) -> None:
        """Note what the clients of resumable streams have; only batches with one are unpacked."""
        mine = [self.resumable.get((message.client, entry[0])) for entry in message.entries]
        if any(mine):
            values = unpack(frames[1], frames[2:])
            for call, value in zip(mine, values, strict=True):
                if call is not None and call.worker == worker and call.delivered is not None:
                    call.delivered.add(value)

    def count_error(self, code: str) -> None:
        """Count an error that a caller gets."""
        self.counters.errors[code] = self.counters.errors.get(code, 0) + 1

    def note(self, name: str, call: OpenCall, **fields: object) -> None:
        """Add an event about a call."""
        if name != "call.expired":
            fields["attempt"] = call.attempt
        self._events.add(name, request_id=call.header.request_id, worker=call.worker, **fields)
