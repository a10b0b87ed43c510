"""One connection to a supervisor: calls go out, their events come back into mailboxes.

Owns the socket. Safe to use from many threads. It lives until supervisor or user ends it, and
never again; `link.py` opens the next one. What is said at one time is sent together (`outbox.py`).

Whoever waits for an answer reads the socket, if nobody else does: a thread in `wait`, an event loop
by `read`. An answer to a lone caller passes through no second thread. Whatever others wait for at
that time is put into their mailboxes. A thread of the connection's own reads for the callers that
are left when the one who read has gone.
"""

import contextlib
import itertools
import logging
import math
import os
import select
import threading
import time
from typing import Any, Final

import zmq

from vllmport.bridge.codec import Bytes, Packed, unpack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PoolClosed,
    PoolLost,
    ProtocolError,
    VllmportError,
)
from vllmport.bridge.limits import DEADLINE_GRACE_MS, MAX_FRAME
from vllmport.bridge.messages import (
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Items,
    Message,
    Result,
    check,
    decode,
    encode,
    error_from,
)
from vllmport.bridge.timeouts import milliseconds, to_wire
from vllmport.pool.client.greeting import greet, probe
from vllmport.pool.client.mailbox import Done, Event, Failed, Item, Mailbox, ThreadMailbox
from vllmport.pool.client.outbox import Outbox
from vllmport.pool.client.travel import pack_arguments
from vllmport.pool.keys import ClientKeys

logger = logging.getLogger("vllmport.client")

# As plain numbers: pyzmq's own are flags of Python, which cost more than the call they are for.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)

ENDINGS: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""What the monitor of a connection reports: that it ended, or never began."""

GRACE: Final = 2 * DEADLINE_GRACE_MS / 1000
"""Seconds after a deadline before this end gives up on the supervisor's answer."""


class Connection:
    """An open connection.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT` of the pool.
        timeout: Seconds to wait for the pool's answer to HELLO.
        keys: What a pool that listens on TCP asks for.

    Raises:
        ConnectFailed: Nobody answers there.
        PermissionDenied: It refuses this user or this key.
        ProtocolError: Somebody does, but not in this protocol.
    """

    def __init__(self, endpoint: str, timeout: float = 5.0, keys: ClientKeys | None = None) -> None:
        probe(endpoint)
        self.endpoint = endpoint
        self.pid = os.getpid()
        self.late = 0
        self._error: VllmportError | None = None
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._mailboxes: dict[int, Mailbox] = {}
        self._deadlines: Deadlines[int] = Deadlines()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # streams are bounded by credit
        self._socket.setsockopt(zmq.IPV6, 1)
        if keys is not None:
            keys.put_on(self._socket)
        self._outbox = Outbox(self._socket)
        self._monitor = self._socket.get_monitor_socket(ENDINGS)
        self._socket.connect(endpoint)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.welcome, self.timeouts = greet(self._socket, self._monitor, endpoint, timeout)
        except VllmportError:
            self._release()
            raise
        self._poller = select.poll()
        for source in (self._socket, self._monitor):
            self._poller.register(int(source.getsockopt(zmq.FD)), select.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self._reading = threading.Lock()  # held by the one who reads
        self._watched = False  # by an event loop, or more
        self._left = 0  # threads that wait for what somebody else reads
        self._needed = threading.Event()  # set when the connection's own thread has to read
        self._thread = threading.Thread(target=self._serve, name="vllmport-client", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = f"lost: {self._error}" if self._error is not None else "open"
        return f"<Connection {self.endpoint} {state}, {len(self._mailboxes)} calls>"

    @property
    def alive(self) -> bool:
        """Whether calls can be made on it, in this process."""
        if self._error is not None or self.pid != os.getpid():
            return False
        with self._lock:
            lost = self._error is not None or _readable(self._monitor)
        return not lost

    def submit(
        self,
        call: Call,
        args: dict[str, Any],
        timeout: float,
        mailbox: Mailbox,
        *,
        more: bool = False,
    ) -> int:
        """Send a call; its events go to `mailbox` until the terminal one.

        A pool that takes no more messages at the moment is an event as well: Failed, Overloaded.

        Args:
            call: Model, verb and options; its id and budget are set here.
            args: The verb's arguments.
            timeout: Seconds for the whole call; `math.inf` for no limit.
            mailbox: Where the events go.
            more: Whether the caller calls `flush` soon, so that calls can be sent together.

        Returns:
            The id of the call.

        Raises:
            InvalidRequest: One of the arguments cannot travel.
            PoolLost: The connection is gone.
        """
        payload = pack_arguments(args)
        call_id = next(self._ids)
        frames = _checked(call._replace(id=call_id, remaining_ms=to_wire(timeout)), payload)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._mailboxes[call_id] = mailbox
            wake = self._deadlines.next()
            self._deadlines.set(call_id, time.monotonic() + timeout + GRACE)
            if self._deadlines.next() < wake and self._reading.locked():
                self._poke()  # who reads sleeps too long; who comes later will know
            self._outbox.add(frames, call_id)
        if self._outbox.full:
            self.flush()
        if not more:
            mailbox.see_to(self)
        return call_id

    def flush(self) -> None:
        """Send what waits to be sent.

        Sending may swallow the socket's wake-up. It is passed on to whoever sleeps on it; who
        comes to it only now looks before he sleeps.
        """
        with self._lock:
            if self._error is not None:  # whoever ended the connection answers the calls
                self._outbox.clear()
            if not self._outbox:
                return
            unsent = self._outbox.send()
            if (self._watched or self._reading.locked()) and _readable(self._socket):
                self._poke()
            if unsent and _readable(self._monitor):
                return  # it has ended: so it will be answered
            failed = [(call_id, self._forget(call_id)) for call_id in unsent]
        for call_id, mailbox in failed:
            if mailbox is not None:
                text = "the pool does not take more messages at the moment"
                mailbox.put(Failed(call_id, Overloaded(text, details={"retry_after": 0.1})))
            else:
                logger.warning("a message was not sent: the pool does not read")

    def wait(self, mailbox: ThreadMailbox, timeout: float | None = None) -> Event:
        """Wait for the next event of a mailbox; read the socket meanwhile if nobody else does.

        Raises:
            queue.Empty: Nothing came within `timeout` seconds.
        """
        if self._outbox:
            self.flush()
        if not mailbox.empty():
            return mailbox.get()
        if not self._reading.acquire(blocking=False):
            return self._wait_for_others(mailbox, timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while mailbox.empty() and self._error is None:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._pump(left)
        finally:
            self._reading.release()
            self._leave()
        # Where the connection was ended by another thread, that one is about to put the error here.
        return mailbox.get(None if timeout is None else max(0.0, end - time.monotonic()))

    def filenos(self) -> list[int]:
        """Return copies of the descriptors that an event loop waits for; the caller closes them."""
        with self._lock:
            if self._wake < 0:
                return []
            self._watched = True
            sources = (self._socket, self._monitor)
            return [
                os.dup(fd) for fd in (*(int(s.getsockopt(zmq.FD)) for s in sources), self._wake)
            ]

    def next_deadline(self) -> float:
        """Return when the next call of somebody's runs out."""
        with self._lock:
            return self._deadlines.next()

    def read(self) -> float | None:
        """Handle what is there, unless somebody else reads.

        Returns:
            When it has to be called again at the latest; None if the connection has ended.
        """
        if self._error is None and self._reading.acquire(blocking=False):
            try:
                with self._lock:
                    if self._wake >= 0:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                while self._look():
                    pass
            finally:
                self._reading.release()
                self._leave()
        return self.next_deadline() if self._error is None else None

    def cancel(self, call_id: int) -> None:
        """Ask for a call to be given up; its terminal event still comes."""
        self._notify(Cancel(call_id))

    def abandon(self, call_id: int) -> None:
        """Give a call up and forget it: nothing of it comes any more."""
        with self._lock:
            known = self._forget(call_id) is not None
        if known:
            self._notify(Cancel(call_id))

    def credit(self, call_id: int, count: int) -> None:
        """Let a stream send `count` more items."""
        self._notify(Credit(call_id, count))

    def close(self) -> None:
        """Leave; open calls fail with PoolClosed."""
        if self.pid != os.getpid():
            return  # a forked child: the connection is its parent's
        self._notify(Bye("closed"))
        self._end(PoolClosed("this client was closed"))
        self._needed.set()
        with self._lock:
            self._poke()
        with self._reading:  # whoever read has let go
            self._release()

    # Waiting for somebody else.

    def _wait_for_others(self, mailbox: ThreadMailbox, timeout: float | None) -> Event:
        """Wait for what somebody else reads, and have somebody read when that one has gone."""
        with self._lock:
            self._left += 1
        try:
            if not self._reading.locked():  # it went before we were counted
                self._needed.set()
            return mailbox.get(timeout)
        finally:
            with self._lock:
                self._left -= 1

    def _leave(self) -> None:
        """Leave the socket to those who are still waiting; `_reading` was released."""
        if self._left:
            self._needed.set()

    # Sending.

    def _notify(self, message: Message) -> None:
        with self._lock:
            self._outbox.add(encode(message))
        self.flush()

    def _poke(self) -> None:
        """Wake the reading thread, under the lock."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # Receiving, by the one who holds `_reading`.

    def _serve(self) -> None:
        """Read for those who cannot, as long as there is something to wait for."""
        while self._error is None:
            self._needed.wait()
            self._needed.clear()
            with self._reading:
                while self._left and self._error is None:
                    self._pump(math.inf)

    def _pump(self, timeout: float) -> None:
        """Handle what is there; if nothing is, wait for more, once."""
        if self._look():
            return
        with self._lock:
            due = self._deadlines.next() - time.monotonic()
        for fd, _ in self._poller.poll(milliseconds(min(timeout, due))):
            if fd == self._wake:
                os.eventfd_read(self._wake)
                self._look()  # whom it was for may sleep, and this one leave

    def _look(self) -> bool:
        """Handle what is there; return whether anything was."""
        if self._error is not None:
            return False
        try:
            if self._receive():
                return True
            self._expire(time.monotonic())
            if not _readable(self._monitor):
                return False
            self._end(PoolLost("the supervisor is gone", details={"endpoint": self.endpoint}))
        except VllmportError as exc:
            self._end(exc)
        return True

    def _receive(self) -> bool:
        """Handle all messages that are there; return whether there was one."""
        found = False
        while True:
            with self._lock:
                if not _readable(self._socket):
                    return found
                frames = self._socket.recv_multipart()
            found = True
            self._handle(frames)

    def _handle(self, frames: list[bytes]) -> None:
        message, payload, buffers = decode(frames)
        match message:
            case Items(entries):
                self._on_items(entries, unpack(payload, buffers))
            case Result(call_id, _, _, attempt):
                self._deliver(Done(call_id, unpack(payload, buffers), attempt))
            case End(entries):
                summaries = unpack(payload, buffers)
                for (call_id, attempt), summary in zip(entries, summaries, strict=True):
                    self._deliver(Done(call_id, summary, attempt))
            case Error(0):
                raise error_from(message, unpack(payload, buffers))
            case Error(call_id):
                self._deliver(Failed(call_id, error_from(message, unpack(payload, buffers))))
            case Bye(reason):
                raise PoolLost(f"the supervisor left: {reason}")
            case _:
                raise ProtocolError(f"a supervisor sends no {type(message).__name__}")

    def _on_items(self, entries: list[list[int]], values: Any) -> None:
        for (call_id, _), value in zip(entries, values, strict=True):
            mailbox = self._mailboxes.get(call_id)
            if mailbox is None:
                self.late += 1  # of a call that was given up
            else:
                mailbox.put(Item(call_id, value))

    def _deliver(self, event: Done | Failed) -> None:
        with self._lock:
            mailbox = self._forget(event.call)
        if mailbox is None:
            self.late += 1
        else:
            mailbox.put(event)

    def _expire(self, now: float) -> None:
        """Last resort: the supervisor enforces deadlines, unless it hangs itself."""
        with self._lock:
            late = [(call_id, self._forget(call_id)) for call_id in self._deadlines.pop_due(now)]
        for call_id, mailbox in late:
            if mailbox is not None:
                error = DeadlineExceeded(
                    "the deadline passed and the pool said nothing", phase="connection"
                )
                mailbox.put(Failed(call_id, error))

    # Ending.

    def _forget(self, call_id: int) -> Mailbox | None:
        """Take a call out of the tables, under the lock."""
        self._deadlines.discard(call_id)
        return self._mailboxes.pop(call_id, None)

    def _end(self, error: VllmportError) -> None:
        """Fail every open call, once."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            open_calls, self._mailboxes = self._mailboxes, {}
            self._poke()  # event loops look, and let go
        for call_id, mailbox in open_calls.items():
            mailbox.put(Failed(call_id, error))

    def _release(self) -> None:
        with self._lock:
            if self._wake >= 0:
                self._socket.disable_monitor()
                self._context.destroy(linger=200)
                os.close(self._wake)
                self._wake = -1


def _readable(socket: "zmq.Socket[bytes]") -> bool:
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


def _checked(header: Call, packed: Packed) -> list[Bytes]:
    """Encode a call whose header a supervisor will accept.

    Raises:
        InvalidRequest: A field of it cannot stand: a name too long, say.
    """
    try:
        check(header)
    except ProtocolError as exc:
        raise InvalidRequest(f"this call cannot be made: {exc}") from exc
    return encode(header, packed)
