"""The universal calls of a worker: between its port and the rooms of the sessions.

Owns the table of these calls and of the rooms. Everything here runs in the worker's main thread;
what the rooms say is put into a queue, and an eventfd tells of it.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from vllmport.bridge.board import Board, Held
from vllmport.bridge.codec import Bytes, Packed, unpack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    VllmportError,
)
from vllmport.bridge.messages import Call, End, Holds, Items, encode
from vllmport.bridge.timeouts import from_wire
from vllmport.worker.answers import as_ours, error_frames
from vllmport.worker.engine import Key
from vllmport.worker.universal.allow import AllowList
from vllmport.worker.universal.performing import Performer, Root
from vllmport.worker.universal.refs import Refs
from vllmport.worker.universal.room import Item, Job, Outcome, Room

logger = logging.getLogger("vllmport.worker")


MAX_SAID: Final = 1024
"""Items that wait to be sent before streams pause, whatever credit they have."""


class Limits(NamedTuple):
    """What one worker allows.

    Attributes:
        max_refs: Objects that one session may hold.
        max_sessions: Sessions at one time.
    """

    max_refs: int
    max_sessions: int


class _OpenCall:
    """One universal call between its CALL and its terminal message."""

    __slots__ = ("attempt", "error", "job", "request_id", "sequence", "session", "slot")

    def __init__(self, call: Call, job: Job, slot: int) -> None:
        self.session = call.session
        self.attempt = call.attempt
        self.request_id = call.request_id
        self.job = job
        self.slot = slot
        self.sequence = 0
        self.error: VllmportError | None = None  # what ends it, once its room lets go of it


class Desk:
    """Takes universal calls and sends what comes of them.

    A call that computes cannot be stopped. It is answered when its room lets go of it; if that
    takes too long, the supervisor has answered it before and replaces the worker.

    Args:
        worker: The id of this worker.
        board: Where calls are left on record.
        allow: Returns the allow-list.
        roots: What the loaded engine offers.
        limits: How much is allowed.
        send: Sends a message to the supervisor.
    """

    def __init__(
        self,
        worker: str,
        board: Board,
        allow: Callable[[], AllowList],
        roots: Mapping[str, Root],
        limits: Limits,
        send: Callable[[list[Bytes]], object],
    ) -> None:
        self._worker = worker
        self._board = board
        self._allow = allow
        self._roots = roots
        self._limits = limits
        self._send = send
        self._rooms: dict[str, Room] = {}
        self._told: set[str] = set()  # the sessions that the supervisor knows to hold objects
        self._calls: dict[Key, _OpenCall] = {}
        self._deadlines: Deadlines[Key] = Deadlines()
        self._said: deque[Item | Outcome] = deque()
        self._used = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return a descriptor that is readable while something waits for `collect`."""
        return self._bell

    def next_deadline(self) -> float:
        """Return when `expire` has to be called at the latest."""
        return self._deadlines.next()

    # What the supervisor says.

    def call(self, call: Call, payload: Bytes, buffers: list[Bytes]) -> None:
        """Take a call."""
        key = (call.client, call.id)
        slot = self._board.hold(call.client, call.id, Held.STARTED)
        try:
            args = unpack(payload, buffers)
            if not isinstance(args, dict):
                raise InvalidRequest("the payload of a CALL is a map of arguments")
            room = self._room(call.session)
        except VllmportError as exc:
            self._board.end(slot)
            self._fail(key, call.request_id, call.attempt, exc)
            return
        job = Job(key, call.verb, args, call.window)
        self._calls[key] = _OpenCall(call, job, slot)
        self._deadlines.set(key, from_wire(call.remaining_ms, time.monotonic()))
        room.submit(job)

    def cancel(self, key: Key) -> None:
        """Give a call up."""
        self._give_up(key, Cancelled("the caller cancelled the call", phase="running"))

    def credit(self, key: Key, room: int) -> None:
        """Let a stream go on."""
        call = self._calls.get(key)
        if call is not None and room > 0:
            self._rooms[call.session].grant(call.job, room)

    def forget(self, session: str) -> None:
        """End a session: free what it holds, give up its calls."""
        room = self._rooms.pop(session, None)
        if room is None:
            return
        for key, call in list(self._calls.items()):
            if call.session == session:
                over = Cancelled("the session has ended", phase="running")
                if room.give_up(call.job):
                    self._end(key, None, over)
                else:
                    call.error = call.error or over
        room.close()
        self._told.discard(session)

    # What the rooms say.

    def collect(self) -> None:
        """Send what the rooms have said since the last time."""
        if not self._used:
            return
        with contextlib.suppress(BlockingIOError):  # first: what is said from now on rings again
            os.eventfd_read(self._bell)
        while self._said:
            match self._said.popleft():
                case Item(key, packed):
                    self._item(key, packed)
                case Outcome(key, packed, error):
                    self._end(key, packed, error)

    def expire(self, now: float) -> None:
        """Give up the calls whose time is over."""
        for key in self._deadlines.pop_due(now):
            self._give_up(key, DeadlineExceeded("the deadline passed", phase="running"))

    # Inside.

    def _room(self, session: str) -> Room:
        room = self._rooms.get(session)
        if room is None:
            if len(self._rooms) >= self._limits.max_sessions:
                text = f"this worker has {len(self._rooms)} sessions; end some, or try again"
                raise Overloaded(text, details={"retry_after": 1.0})
            refs = Refs(session, self._worker, self._limits.max_refs)
            performer = Performer(self._allow, self._roots, refs)
            self._used = True
            room = Room(session, performer, refs, self._post, self._crowded)
            self._rooms[session] = room
        return room

    def _post(self, said: Item | Outcome) -> None:
        """Take what a room says; called from its thread."""
        self._said.append(said)
        os.eventfd_write(self._bell, 1)

    def _crowded(self) -> bool:
        return len(self._said) > MAX_SAID

    def _give_up(self, key: Key, error: VllmportError) -> None:
        call = self._calls.get(key)
        if call is None or call.error is not None:
            return
        room = self._rooms.get(call.session)
        if room is None or room.give_up(call.job):
            self._end(key, None, error)
        else:
            call.error = error

    def _item(self, key: Key, packed: Packed) -> None:
        call = self._calls.get(key)
        if call is None or call.error is not None:
            return
        self._tell(call.session)
        self._send(encode(Items([[key[1], call.sequence]], key[0]), packed))
        call.sequence += 1
        self._board.count(call.slot, call.sequence)

    def _end(self, key: Key, packed: Packed | None, error: BaseException | None) -> None:
        call = self._calls.pop(key, None)
        if call is None:
            return
        self._deadlines.discard(key)
        self._board.end(call.slot)
        self._tell(call.session)
        if call.error is not None or packed is None:
            why = call.error or error
            assert why is not None, "a call without a result has an error"
            self._fail(key, call.request_id, call.attempt, why)
            return
        self._send(encode(End([[key[1], call.attempt]], key[0], self._worker), packed))

    def _tell(self, session: str) -> None:
        """Say whether a session holds anything, where that is new; before what it was held for."""
        room = self._rooms.get(session)
        count = len(room.refs) if room is not None else 0
        if room is not None and bool(count) != (session in self._told):
            self._told ^= {session}
            self._send(encode(Holds(session, count)))

    def _fail(self, key: Key, request_id: str, attempt: int, error: BaseException) -> None:
        ours = as_ours(error)
        ours.worker, ours.attempt = self._worker, attempt
        self._send(error_frames(key, request_id, ours))
