"""The worker's end of the wire: calls in, results out, deadlines and stream credit in between.

Owns the socket and the table of open calls. It knows no engine but the interface in `engine.py`.
"""

import logging
import select
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import zmq

from vllmport.bridge.board import Board, Held
from vllmport.bridge.bundles import unbundled
from vllmport.bridge.codec import Bytes, pack, unpack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    ProtocolError,
    VllmportError,
    WorkerLost,
)
from vllmport.bridge.messages import (
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Forget,
    Items,
    Message,
    Ping,
    Pong,
    Progress,
    encode,
)
from vllmport.bridge.timeouts import from_wire, milliseconds
from vllmport.bridge.universal import UNIVERSAL
from vllmport.worker.answers import as_ours, error_frames
from vllmport.worker.deltas import merge
from vllmport.worker.engine import Engine, Key, Partial, Request
from vllmport.worker.replay import DivergedError, Replay

if TYPE_CHECKING:
    from vllmport.worker.universal.desk import Desk

logger = logging.getLogger("vllmport.worker")

MAX_BATCH = 64 * 1024
"""Bytes of outputs in one message; more are divided."""

_NOTHING = Partial("waiting", 0, None)

# As plain numbers: pyzmq's own are flags of Python, which cost more than the call they are for.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class _OpenCall:
    """One call between its CALL and its terminal message."""

    __slots__ = (
        "attempt",
        "credit",
        "finished",
        "lost_by",
        "pending",
        "replay",
        "request_id",
        "sequence",
        "slot",
        "summary",
        "tokens",
    )

    def __init__(self, call: Call, slot: int) -> None:
        self.slot = slot
        self.tokens = 0
        self.replay: Replay | None = None
        self.lost_by = ""
        self.request_id = call.request_id
        self.credit = call.window
        self.attempt = call.attempt
        self.sequence = 0
        self.pending: dict[str, Any] | None = None
        self.summary: Any = None
        self.finished = False

    def resume(self, delivered: dict[str, Any]) -> None:
        """Go on where a worker before had come."""
        self.replay = Replay(delivered["outputs"])
        self.lost_by = delivered["exit"]
        self.sequence = delivered["items"]
        self.credit = delivered["room"]


class SocketPort:
    """Carries calls between the supervisor's socket and an engine driver.

    Everything that leaves is put first and sent by `flush`, so that one engine step makes one
    ITEMS message for each client, whatever the number of its streams.

    On the board a call is started from the moment it comes: whatever takes the worker down while it
    is taken in was caused by it. If the engine has as many as it runs at one time, it waits from
    then on: until one of those has ended, or until it says something.

    Args:
        socket: Connected to the supervisor.
        worker: The id of this worker.
        board: Where progress is left, for the case that nobody is left to tell of it.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", worker: str, board: Board) -> None:
        self.closed = False
        self._socket = socket
        self._worker = worker
        self._board = board
        self._engine: Engine | None = None
        self._desk: Desk | None = None
        self._ready = select.epoll()
        self._ready.register(int(socket.getsockopt(zmq.FD)), select.EPOLLIN)
        self._engine_died = False
        self._tokens = 0
        self._calls: dict[Key, _OpenCall] = {}
        self._waiting: OrderedDict[Key, _OpenCall] = OrderedDict()
        self._diverged: dict[Key, WorkerLost] = {}
        self._deadlines: Deadlines[Key] = Deadlines()
        self._dirty: dict[Key, _OpenCall] = {}
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Cancel: self._on_cancel,
            Credit: self._on_credit,
            Ping: self._on_ping,
            Bye: self._on_bye,
            Forget: self._on_forget,
        }

    def attach(self, engine: Engine, desk: "Desk | None" = None) -> None:
        """Give the calls that come from now on to this engine, universal ones to the desk."""
        self._engine = engine
        self._desk = desk
        if desk is not None:
            self._ready.register(desk.fileno(), select.EPOLLIN)

    # What a driver calls.

    def fileno(self) -> int:
        return self._ready.fileno()

    def next_deadline(self) -> float:
        due = self._deadlines.next()
        return due if self._desk is None else min(due, self._desk.next_deadline())

    def receive(self, timeout: float) -> None:
        if self._engine is not None:
            self._board.turn(self._engine.steps, self._tokens, asleep=self._engine.asleep)
        if timeout > 0 and not self._has_message():
            self._wait_for_news(timeout)
        while self._has_message():
            self._handle(self._socket.recv_multipart())
        now = time.monotonic()
        if self._desk is not None:
            self._desk.collect()
            self._desk.expire(now)
        self._expire(now)

    def delta(self, key: Key, value: dict[str, Any]) -> None:
        call = self._calls.get(key)
        if call is None:
            return  # the call ended while this output was on its way
        if key in self._waiting:
            self._start(key)
        new_tokens = sum(len(output["token_ids"]) for output in value["outputs"])
        self._tokens += new_tokens
        call.tokens += new_tokens
        self._board.count(call.slot, call.tokens)
        if call.replay is None:
            new: dict[str, Any] | None = value
        else:
            new = self._replayed(key, call, value)
        if new is not None:
            call.pending = new if call.pending is None else merge(call.pending, new)
            self._dirty[key] = call

    def finish(self, key: Key, value: Any) -> None:
        call = self._calls.get(key)
        if call is None or key in self._diverged:
            return
        if call.replay is not None and self._is_short(key, call):
            return
        if not call.tokens and isinstance(value, dict):
            self._tokens += value.get("usage", {}).get("completion_tokens", 0)
        call.summary = value
        call.finished = True
        self._dirty[key] = call

    def fail(self, key: Key, error: BaseException) -> None:
        if isinstance(error, EngineDead):
            self._engine_died = True
            if key in self._waiting:
                return  # the supervisor gives it to another worker
        call = self._forget(key)
        if call is None:
            return
        self._send_items(key[0], {key: call})  # what came before the failure still counts
        self._send_error(key, call, as_ours(error))

    def fail_all(self, error: BaseException) -> None:
        """Fail every open call; where the engine died, those that it had started."""
        for key in list(self._calls):
            self.fail(key, error)

    def flush(self) -> None:
        if self._diverged:
            self._fail_diverged()
        if not self._dirty:
            return
        clients: dict[int, dict[Key, _OpenCall]] = {}
        for key, call in self._dirty.items():
            clients.setdefault(key[0], {})[key] = call
        self._dirty = {}
        for client, calls in clients.items():
            self._send_items(client, calls)
            self._send_ends(client, calls)

    def progress(self, stage: str, text: str = "") -> None:
        logger.info("stage=%s %s", stage, text)
        self._socket.send_multipart(encode(Progress(stage, text)))

    # What comes from the supervisor.

    def _wait_for_news(self, timeout: float) -> None:
        """Wait until something came, or may have: the socket's descriptor tells of more."""
        left = milliseconds(timeout)
        self._ready.poll(None if left is None else left / 1000)

    def _has_message(self) -> bool:
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def _handle(self, frames: list[bytes]) -> None:
        try:
            for message, (_, payload, *buffers) in unbundled(frames):
                if isinstance(message, Call):
                    self._on_call(message, payload, buffers)
                elif (handler := self._handlers.get(type(message))) is not None:
                    handler(message)
                else:
                    raise ProtocolError(f"a worker takes no {type(message).__name__}")
        except ProtocolError as exc:  # the supervisor checks headers: this is a bug, not a peer
            logger.error("dropped a message: %s", exc)

    def _on_call(self, call: Call, payload: Bytes, buffers: list[Bytes]) -> None:
        if self._desk is not None and call.verb in UNIVERSAL:
            self._desk.call(call, payload, buffers)
            return
        key = (call.client, call.id)
        opened = _OpenCall(call, self._board.hold(call.client, call.id, Held.STARTED))
        self._calls[key] = opened
        self._deadlines.set(key, from_wire(call.remaining_ms, time.monotonic()))
        try:
            args = unpack(payload, buffers)
            if call.retry:
                args, delivered = args
                opened.resume(delivered)
            if not isinstance(args, dict):
                raise InvalidRequest("the payload of a CALL is a map of arguments")
            assert self._engine is not None, "calls come only after READY"
            self._engine.submit(
                Request(key, call.verb, args, call.window > 0, call.priority, call.request_id)
            )
            if not self._has_room(0):
                self._wait(key, opened)
        except VllmportError as exc:
            self.fail(key, exc)
        except Exception as exc:  # outermost: one bad call must not end the worker
            logger.exception("call failed request_id=%s verb=%s", call.request_id, call.verb)
            self.fail(key, exc)

    def _on_cancel(self, message: Cancel) -> None:
        key = (message.client, message.id)
        self._give_up(key, Cancelled, "the caller cancelled the call")
        if self._desk is not None:
            self._desk.cancel(key)

    def _on_credit(self, message: Credit) -> None:
        key = (message.client, message.id)
        call = self._calls.get(key)
        if call is not None:
            call.credit += message.room
            if call.pending is not None:
                self._dirty[key] = call
        elif self._desk is not None:
            self._desk.credit(key, message.room)

    def _on_forget(self, message: Forget) -> None:
        if self._desk is not None:
            self._desk.forget(message.session)

    def _on_ping(self, message: Ping) -> None:
        stats = self._engine.stats() if self._engine is not None else {}
        self._socket.send_multipart(encode(Pong(message.token), pack(stats)))

    def _on_bye(self, _message: Bye) -> None:
        self.closed = True

    # Who has started.

    def _has_room(self, calls: int) -> bool:
        """Tell whether the engine runs all that have started, and so many more, at one time."""
        assert self._engine is not None, "calls come only after READY"
        return len(self._calls) - len(self._waiting) + calls <= self._engine.running_limit

    def _wait(self, key: Key, call: _OpenCall) -> None:
        if self._calls.get(key) is call:  # not refused, nor answered at once
            self._board.move(call.slot, Held.WAITING)
            self._waiting[key] = call

    def _start(self, key: Key) -> None:
        self._board.move(self._waiting.pop(key).slot, Held.STARTED)

    # Streams that are run again.

    def _replayed(self, key: Key, call: _OpenCall, value: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is new in a delta, if anything is; note it if the stream diverged."""
        assert call.replay is not None, "only for those"
        if key in self._diverged:
            return None
        try:
            return call.replay.cut(value)
        except DivergedError as exc:
            self._diverged[key] = _diverged(call, exc)
        return None

    def _is_short(self, key: Key, call: _OpenCall) -> bool:
        assert call.replay is not None, "only for those"
        try:
            call.replay.end()
        except DivergedError as exc:
            self._diverged[key] = _diverged(call, exc)
        return key in self._diverged

    def _fail_diverged(self) -> None:
        """Take diverged streams out of the engine: now, since it is not in the middle of a step."""
        diverged, self._diverged = self._diverged, {}
        for key, error in diverged.items():
            if key in self._calls and self._engine is not None:
                self._engine.abort(key)
                self.fail(key, error)

    # Ends.

    def _forget(self, key: Key) -> "_OpenCall | None":
        self._deadlines.discard(key)
        self._dirty.pop(key, None)
        call = self._calls.pop(key, None)
        if call is not None:
            self._board.end(call.slot)
            self._waiting.pop(key, None)
            if self._waiting and self._has_room(1) and not self._engine_died:
                self._start(next(iter(self._waiting)))
        return call

    def _expire(self, now: float) -> None:
        for key in self._deadlines.pop_due(now):
            self._give_up(key, DeadlineExceeded, "the deadline passed")

    def _give_up(self, key: Key, error: type[VllmportError], why: str) -> None:
        """Take a call out of the engine, then answer it with how far it had come."""
        if key not in self._calls:
            return
        partial = self._engine.abort(key) if self._engine is not None else _NOTHING
        details = {"tokens": partial.tokens, "partial": partial.result}
        text = f"{why} after {partial.tokens} tokens, in phase {partial.phase}"
        self.fail(key, error(text, phase=partial.phase, details=details))

    def _send_items(self, client: int, calls: dict[Key, _OpenCall]) -> None:
        entries: list[list[int]] = []
        values = []
        for key, call in calls.items():
            # The last item of a stream goes out even without credit: END must not wait.
            last = call.finished or key not in self._calls
            if call.pending is None or (call.credit <= 0 and not last):
                continue
            entries.append([key[1], call.sequence])
            values.append(call.pending)
            call.pending = None
            call.sequence += 1
            call.credit -= 1
        if entries:
            self._send_values(Items(entries, client), values)

    def _send_ends(self, client: int, calls: dict[Key, _OpenCall]) -> None:
        # A call that has just failed with its last item has had its end.
        ended = [
            key for key, call in calls.items() if call.finished and self._calls.get(key) is call
        ]
        if not ended:
            return
        entries = [[key[1], calls[key].attempt] for key in ended]
        summaries = [calls[key].summary for key in ended]
        self._send_values(End(entries, client, self._worker), summaries)
        for key in ended:
            self._forget(key)

    def _send_values(self, batch: Items | End, values: list[Any]) -> None:
        """Send a batch, or its parts if it is large or cannot travel as a whole.

        A part that cannot travel fails its call alone. Small messages let the supervisor bound
        what waits for a client that does not read.
        """
        try:
            packed = pack(values)
            small = sum(map(len, (packed.payload, *packed.buffers))) <= MAX_BATCH
        except InvalidRequest as exc:
            if len(values) == 1:
                self._fail_output((batch.client, batch.entries[0][0]), exc)
                return
            small = False
        if small or len(values) == 1:
            self._socket.send_multipart(encode(batch, packed), copy=False)
            return
        half = len(values) // 2
        for part in (slice(half), slice(half, None)):
            self._send_values(batch._replace(entries=batch.entries[part]), values[part])

    def _fail_output(self, key: Key, exc: InvalidRequest) -> None:
        if self._engine is not None:
            self._engine.abort(key)
        call = self._forget(key)
        if call is not None:
            self._send_error(key, call, _cannot_travel(exc))

    def _send_error(self, key: Key, call: _OpenCall, error: VllmportError) -> None:
        error.worker, error.attempt = self._worker, call.attempt
        self._socket.send_multipart(error_frames(key, call.request_id, error))


def _diverged(call: _OpenCall, exc: DivergedError) -> WorkerLost:
    return WorkerLost(
        f"the worker was lost ({call.lost_by}), and the call cannot be resumed: run again, {exc}",
        phase="decode",
        details={"exit": call.lost_by, "tokens": call.tokens},
    )


def _cannot_travel(exc: InvalidRequest) -> EngineError:
    return EngineError(f"the engine's output cannot travel: {exc}")
