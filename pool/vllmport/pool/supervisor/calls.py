"""What the dispatcher knows of one call, of what its client has of a stream, and of one queue.

Pure: plain records with their own small changes; `dispatch.py` decides.
"""

import heapq
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllmport.bridge.codec import Packed, pack
from vllmport.bridge.errors import SessionLost, VllmportError
from vllmport.bridge.messages import Call
from vllmport.bridge.states import CALL_TRANSITIONS, CallEvent, CallState, advance
from vllmport.bridge.timeouts import from_wire
from vllmport.pool.supervisor.load import LeastLoaded
from vllmport.pool.supervisor.sessions import Session, lost

Key = tuple[int, int]
"""(client, call id)."""

RESUME = "resume"
"""The `retry` of a call that is run again though it was started."""

_NO_ARGUMENTS = Packed(b"", [])
_ARRAY_OF_TWO = b"\x92"


@dataclass(slots=True)
class ModelQueue:
    """The calls that wait for one model, and the workers that could take them.

    Attributes:
        bytes: Size of the arguments of the calls that wait.
        kept: Size of the arguments kept of calls that run.
        pinned: Worker → calls that wait for it and no other.
    """

    name: str
    heap: "Heap" = field(default_factory=list)
    pinned: "dict[str, Heap]" = field(default_factory=dict)
    waiting: int = 0
    bytes: int = 0
    kept: int = 0
    workers: LeastLoaded = field(default_factory=LeastLoaded)
    refusal: VllmportError | None = None
    pace: float = 0.05
    last_finish: float = math.nan

    def push(self, call: "OpenCall") -> None:
        """Let a call wait, at the place that its priority and arrival give it."""
        heapq.heappush(self.heap, (*call.place, call))
        self.waiting += 1
        self.bytes += call.size

    def leave(self, call: "OpenCall") -> None:
        """Count a call out; it leaves the heap when it comes to the front."""
        self.waiting -= 1
        self.bytes -= call.size
        if (
            sum(map(len, self.heaps())) > 2 * self.waiting + 64
        ):  # most of it is over: it expired, was cancelled
            for heap in self.heaps():
                heap[:] = filter(_waits, heap)
                heapq.heapify(heap)

    def heaps(self) -> "Sequence[Heap]":
        """Return all heaps of this queue."""
        return [self.heap, *self.pinned.values()] if self.pinned else (self.heap,)

    def ready_heap(self) -> "Heap | None":
        """Return where the first call is that a worker has room for; None if there is none."""
        free = self.heap if self.heap and self.workers.pick() is not None else None
        if not self.pinned:
            return free
        heaps = [heap for worker, heap in self.pinned.items() if self._is_ready(worker, heap)]
        if free is not None:
            heaps.append(free)
        return min(heaps, key=lambda heap: heap[0][:2], default=None)

    def pin(self, call: "OpenCall", worker: str) -> None:
        """Let the first call of the heap wait for one worker alone."""
        heapq.heappush(self.pinned.setdefault(worker, []), heapq.heappop(self.heap))
        call.pinned = worker

    def unpin(self, worker: str) -> "list[OpenCall]":
        """Let those that waited for one worker wait for any; return them."""
        found = [entry for entry in self.pinned.pop(worker, ()) if _waits(entry)]
        for entry in found:
            entry[2].pinned = ""
            heapq.heappush(self.heap, entry)
        return [entry[2] for entry in found]

    def take_all(self) -> "list[OpenCall]":
        """Empty the queue; return those that waited."""
        found = [entry[2] for heap in self.heaps() for entry in heap if _waits(entry)]
        self.heap, self.pinned = [], {}
        return found

    def _is_ready(self, worker: str, heap: "Heap") -> bool:
        return bool(heap) and self.workers.has_room(worker)

    def finished(self, now: float) -> None:
        """Learn how quickly calls end, for `retry_after`."""
        if not math.isnan(self.last_finish):
            self.pace += 0.1 * (min(now - self.last_finish, 10.0) - self.pace)
        self.last_finish = now


class OpenCall:
    """One call from its arrival until no worker holds it.

    Attributes:
        packed: Its arguments; empty while it runs and they are not kept.
        place: (priority, arrival): where it stands in its queue, also when it comes back.
        lost_by: How the last worker ended that was lost with this call.
        deaths: How each worker ended that died after it had started this call.
        given_up: Whether its caller sent CANCEL.
        delivered: What its client has of the stream, where it may be run again; else None.
        session: The session it belongs to, if to one.
        pinned: The only worker that it waits for, or "".
    """

    __slots__ = (
        "arrived",
        "attempt",
        "deadline",
        "deaths",
        "delivered",
        "given_up",
        "header",
        "kept",
        "key",
        "lost_by",
        "packed",
        "pinned",
        "place",
        "queue",
        "session",
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
        self.queue: ModelQueue
        self.place = (header.priority, 0)
        self.session: Session | None = None
        self.pinned = ""
        self.worker = ""
        self.attempt = 0
        self.kept = False
        self.lost_by = ""
        self.deaths: list[str] = []
        self.given_up = False
        self.delivered: Delivered | None = None
        if header.window and header.retry == RESUME:
            self.delivered = Delivered(header.window)

    def __repr__(self) -> str:
        return f"<OpenCall {self.key} {self.header.verb} {self.state} worker={self.worker!r}>"

    def take(self, event: CallEvent) -> None:
        """Move on in the state table."""
        if self.state is CallState.RUNNING:
            self._stop_keeping(forget=event is not CallEvent.REQUEUED)
        self.state = advance(CALL_TRANSITIONS, self.state, event)
        if self.state is CallState.DONE:
            self.packed = _NO_ARGUMENTS  # a queue may hold the call a little longer

    def keep(self, limit: int) -> None:
        """Keep the arguments of a call that starts to run, if those kept stay within `limit`."""
        if self.queue.kept + self.size <= limit:
            self.kept = True
            self.queue.kept += self.size
        else:
            self.packed = _NO_ARGUMENTS

    def for_worker(self, remaining_ms: int | None) -> tuple[Call, Packed]:
        """Return header and arguments as the next worker gets them."""
        header = self.header._replace(
            remaining_ms=remaining_ms,
            client=self.key[0],
            attempt=self.attempt,
            retry="",
            session=self.session.id if self.session is not None else "",
            affinity="",
            ttl_ms=0,
        )
        if self.delivered is None:
            return header, self.packed
        if not self.delivered.items:
            return header._replace(window=self.delivered.room), self.packed
        before = pack(self.delivered.to_wire(self.lost_by)).payload
        payload = b"".join((_ARRAY_OF_TWO, self.packed.payload, before))
        return header._replace(retry=RESUME), Packed(payload, self.packed.buffers)

    def lost_session(self) -> SessionLost | None:
        """Return why its session cannot have it any more, if that is so."""
        return lost(self.session, self.header) if self.session is not None else None

    def _stop_keeping(self, *, forget: bool) -> None:
        if self.kept:
            self.kept = False
            self.queue.kept -= self.size
        if forget:
            self.packed = _NO_ARGUMENTS


Heap = list[tuple[int, int, OpenCall]]
"""Calls in the order of priority and arrival."""


def _waits(entry: tuple[int, int, OpenCall]) -> bool:
    return entry[2].state is CallState.QUEUED


class _Output:
    """One sequence of a stream, as far as its client has it."""

    __slots__ = ("characters", "finished", "tokens")

    def __init__(self) -> None:
        self.tokens = array("Q")
        self.characters = 0
        self.finished = False


class Delivered:
    """What the client of a stream has, to be left out when the call is run again.

    Attributes:
        items: How many items; the sequence number of the next.
        room: Credit that its client has given and that was not used.
    """

    __slots__ = ("_outputs", "items", "room")

    def __init__(self, window: int) -> None:
        self.items = 0
        self.room = window
        self._outputs: dict[int, _Output] = {}

    def add(self, item: Mapping[str, Any]) -> None:
        """Add one more item."""
        self.items += 1
        self.room -= 1
        for grown in item["outputs"]:
            output = self._outputs.setdefault(grown["index"], _Output())
            output.tokens.extend(grown["token_ids"])
            output.characters += len(grown["text"])
            output.finished = grown["finish_reason"] is not None

    @property
    def tokens(self) -> int:
        """How many tokens, over all outputs."""
        return sum(len(output.tokens) for output in self._outputs.values())

    def to_wire(self, cause: str) -> dict[str, Any]:
        """Tell the next worker; `cause` is how the one before ended."""
        return {
            "exit": cause,
            "items": self.items,
            "room": self.room,
            "outputs": [
                {
                    "index": index,
                    "token_ids": output.tokens.tolist(),
                    "characters": output.characters,
                    "finished": output.finished,
                }
                for index, output in self._outputs.items()
            ],
        }
