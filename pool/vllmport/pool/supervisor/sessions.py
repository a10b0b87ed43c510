"""Decides which worker a session is bound to, how long it lives, and where its calls may go.

Pure. A session is bound when its first call is given to a worker, in the same moment, so that two
first calls cannot bind it to two. It may go to another worker only while nothing of it is on the
one it is bound to: it holds no refs there, and has no universal call open that could make some.
"""

import math
import secrets
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import InvalidRequest, SessionLost
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import UNIVERSAL, Affinity

STRICT: Final = frozenset({Affinity.STRICT_QUEUE, Affinity.STRICT_FAIL_FAST})

Key = tuple[int, int]
"""(client, call id)."""


class Where(NamedTuple):
    """Where a call may go.

    Attributes:
        worker: The one its session is bound to; "" if any will do.
        only: Whether it may go to no other.
    """

    worker: str
    only: bool


class Session:
    """One session.

    Attributes:
        key: What callers know it by.
        id: What its worker knows it by; another one for each worker, and never used again.
        model: Whose workers it is on.
        worker: The one it is bound to, or "".
        holds: Whether it has refs there.
        open: Its universal calls that are on that worker.
        lost: Why its refs are gone, if they are.
        over: Whether it has ended.
    """

    __slots__ = ("holds", "id", "key", "lost", "model", "open", "over", "ttl", "worker")

    def __init__(self, key: Hashable, model: str, identity: str) -> None:
        self.key = key
        self.id = identity
        self.model = model
        self.worker = ""
        self.holds = False
        self.open: set[Key] = set()
        self.lost: str | None = None
        self.over = False
        self.ttl = math.inf

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.model!r} on {self.worker!r}, holds={self.holds}>"

    @property
    def settled(self) -> bool:
        """Whether something of it is, or may come to be, on its worker."""
        return self.holds or bool(self.open)


class Forget(NamedTuple):
    """Tell this worker that a session is over."""

    worker: str
    session: str


class Sessions:
    """All sessions of a pool.

    Args:
        new_id: Makes names that nobody guesses and that never come again.
    """

    def __init__(self, new_id: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._new_id = new_id
        self._by_key: dict[Hashable, Session] = {}
        self._by_id: dict[str, Session] = {}
        self._by_client: dict[int, set[Session]] = {}
        self._by_worker: dict[str, set[Session]] = {}
        self._due: Deadlines[Hashable] = Deadlines()
        self._forgets: list[Forget] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def take_forgets(self) -> list[Forget]:
        """Hand over what workers have to be told. The caller must send all of it."""
        forgets, self._forgets = self._forgets, []
        return forgets

    def next_deadline(self) -> float:
        """Return when `expire` has to be called at the latest."""
        return self._due.next()

    def on(self, worker: str) -> int:
        """Return how many sessions are bound to a worker."""
        return len(self._by_worker.get(worker, ()))

    # Calls.

    def of(self, client: int, owner: str, call: Call, now: float) -> Session | None:
        """Return the session that a call belongs to, begun now if need be; None if to none.

        Args:
            client: Whose connection.
            owner: Who may share a session that is not of one connection alone.
            call: The call.
            now: The time.
        """
        if not belongs(call):
            return None
        key = _key(client, owner, call)
        session = self._by_key.get(key)
        if session is None:
            session = Session(key, call.model, self._new_id())
            self._by_key[key] = self._by_id[session.id] = session
            if not call.ttl_ms:
                self._by_client.setdefault(client, set()).add(session)
        if call.ttl_ms:
            session.ttl = call.ttl_ms / 1000
            self._due.set(key, now + session.ttl)
        return session

    def where(self, session: Session, call: Call) -> Where:
        """Return where a call may go at this moment."""
        universal = call.verb in UNIVERSAL
        only = call.affinity in STRICT or (universal and session.settled)
        return Where(session.worker, only and bool(session.worker))

    def started(self, session: Session, key: Key, call: Call, worker: str) -> None:
        """A call was given to a worker: the session is bound to it, unless it stays where it is."""
        if session.over:
            return
        if worker != session.worker and not session.settled:
            self._bind(session, worker)
        if call.verb in UNIVERSAL:
            session.open.add(key)

    def ended(self, session: Session, key: Key) -> None:
        """A call is on no worker any more."""
        session.open.discard(key)

    # What happens to sessions.

    def holds(self, worker: str, identity: str, refs: int) -> None:
        """A worker says whether a session has refs there."""
        session = self._by_id.get(identity)
        if session is not None and session.worker == worker:
            session.holds = refs > 0

    def end(self, session: Session) -> None:
        """End a session for good; what it has on its worker is let go."""
        if session.over:
            return
        session.over = True
        self._due.discard(session.key)
        for mine in self._by_client.values():
            mine.discard(session)
        self._bind(session, "")
        del self._by_key[session.key], self._by_id[session.id]

    def client_gone(self, client: int) -> None:
        """End the sessions of a connection."""
        for session in list(self._by_client.pop(client, ())):
            self.end(session)

    def worker_gone(self, worker: str, cause: str) -> None:
        """Unbind the sessions of a worker that takes no more calls; what they had there is lost."""
        for session in self._by_worker.pop(worker, set()):
            if session.holds:
                session.lost = cause
            session.worker = ""
            session.holds = False
            session.open.clear()
            del self._by_id[session.id]
            session.id = self._new_id()
            self._by_id[session.id] = session

    def expire(self, now: float) -> None:
        """End the sessions that nobody has used for their time to live."""
        for key in self._due.pop_due(now):
            session = self._by_key[key]
            if session.open:
                self._due.set(key, now + session.ttl)
            else:
                self.end(session)

    def _bind(self, session: Session, worker: str) -> None:
        if session.worker:
            self._by_worker[session.worker].discard(session)
            self._forgets.append(Forget(session.worker, session.id))
            del self._by_id[session.id]  # numbers of refs begin anew, and so does the name
            session.id = self._new_id()
            self._by_id[session.id] = session
        session.worker = worker
        session.holds = False
        if worker:
            self._by_worker.setdefault(worker, set()).add(session)


def belongs(call: Call) -> bool:
    """Tell whether a call belongs to a session."""
    return bool(call.session or call.affinity) or call.verb in UNIVERSAL


def bad_terms(call: Call) -> InvalidRequest | None:
    """Return why what a call says of its session cannot be meant, if it cannot."""
    if call.retry and call.verb in UNIVERSAL:
        text = "a universal call is not run again: what it did before is not known"
        return InvalidRequest.of("retry", call.retry, text)
    if not call.affinity or call.affinity in set(Affinity):
        return None
    text = f"affinity is one of {', '.join(Affinity)}, not {call.affinity!r}"
    return InvalidRequest.of("affinity", call.affinity, text)


def lost(session: Session, call: Call) -> SessionLost | None:
    """Return why a universal call of a session cannot be made any more, if it cannot."""
    if call.verb not in UNIVERSAL or (session.lost is None and not session.over):
        return None
    name = call.session or "of this connection"
    if session.lost is None:
        return SessionLost(f"the session {name} has ended", details={"exit": ""})
    return SessionLost(
        f"the objects of the session {name} are gone with their worker: {session.lost}; "
        "end it, and make them again in a new one",
        details={"exit": session.lost},
    )


def _key(client: int, owner: str, call: Call) -> Hashable:
    """Return what tells sessions apart: those of one connection, and those that have a life."""
    if call.ttl_ms:
        return (call.model, "shared", owner, call.session)
    return (call.model, client, call.session)
