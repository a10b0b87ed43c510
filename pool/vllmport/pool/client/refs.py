"""What both clients know of a session: its terms, its calls, and which refs are still in use.

No I/O. A ref that nobody has any more is noted by its finalizer, which may run anywhere and so does
nothing else; the session's next call tells the worker.
"""

import contextlib
import copy
import itertools
import weakref
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self, TypeVar

from vllmport.bridge.codec import Ref as WireRef
from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.limits import MAX_TIMEOUT_MS
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import Affinity, Verb
from vllmport.pool.client.request_ids import new_request_id

DEFAULT_TTL: Final = 3600.0
"""Seconds that a named session lives on after its last call."""

_numbers = itertools.count(1)

R = TypeVar("R", bound="Remote")


class Remote(WireRef):
    """A ref with the session it came by; goes back to the worker as an argument."""

    def __init__(self, ref: WireRef, owner: Any) -> None:
        super().__init__(ref.session, ref.worker, ref.number, ref.type)
        object.__setattr__(self, "owner", owner)

    owner: Any

    def __repr__(self) -> str:
        return f"<Ref {self.number} {self.type} on {self.worker}>"


class Terms(NamedTuple):
    """What the calls of a session say of it.

    Attributes:
        model: Whose worker it is on.
        name: Its name.
        affinity: What becomes of a call whose worker has no room.
        ttl_ms: How long it lives on; 0 for as long as the connection.
    """

    model: str
    name: str
    affinity: Affinity
    ttl_ms: int

    @classmethod
    def of(cls, model: str, name: str | None, affinity: str, ttl: float | None) -> "Terms":
        """Check what a caller wants.

        Raises:
            InvalidRequest: The affinity is unknown, or the time to live is none.
        """
        if affinity not in set(Affinity):
            text = f"affinity is one of {', '.join(Affinity)}, not {shown(affinity)}"
            raise InvalidRequest.of("affinity", shown(affinity), text)
        if name is None:
            if ttl is not None:
                text = "only a session with a name lives on: give name= as well"
                raise InvalidRequest.of("ttl", ttl, text)
            return cls(model, f"#{next(_numbers)}", Affinity(affinity), 0)
        seconds = DEFAULT_TTL if ttl is None else ttl
        if not 0 < seconds * 1000 <= MAX_TIMEOUT_MS:
            text = f"ttl is seconds above 0, at most 23 days, not {shown(ttl)}"
            raise InvalidRequest.of("ttl", shown(ttl), text)
        return cls(model, name, Affinity(affinity), max(1, int(seconds * 1000)))

    def header(self, verb: Verb, window: int = 0) -> Call:
        """Build the header of a call."""
        return Call(
            0,
            self.model,
            verb,
            None,
            window=window,
            request_id=new_request_id(),
            session=self.name,
            affinity=self.affinity,
            ttl_ms=self.ttl_ms,
        )


class Book:
    """Which refs of a session are in use here."""

    def __init__(self) -> None:
        self._session = ""
        self._used: Counter[int] = Counter()
        self._dropped: deque[tuple[str, int]] = deque()

    def adopt(self, value: Any, make: Callable[[WireRef], R]) -> Any:
        """Return a result with handles in place of its refs; each is counted until it is gone."""
        match value:
            case WireRef():
                return self._handle(value, make)
            case list():
                return [self.adopt(item, make) for item in value]
            case dict():
                return {key: self.adopt(item, make) for key, item in value.items()}
            case tuple() if type(value) is tuple:
                return tuple(self.adopt(item, make) for item in value)
        return value

    def take_dropped(self) -> list[int]:
        """Return the numbers that nobody has any more, to be released."""
        free = []
        while self._dropped:
            session, number = self._dropped.popleft()
            if session != self._session:
                continue  # that one is over, and everything of it
            self._used[number] -= 1
            if self._used[number] <= 0:
                del self._used[number]
                free.append(number)
        return free

    def put_back(self, numbers: Iterable[int]) -> None:
        """Release these another time: the call that should have told of them failed."""
        for number in numbers:
            self._used[number] += 1
            self._dropped.append((self._session, number))

    def _handle(self, ref: WireRef, make: Callable[[WireRef], R]) -> R:
        if ref.session != self._session:
            self._session = ref.session
            self._used.clear()
        self._used[ref.number] += 1
        handle = make(ref)
        drop = weakref.finalize(handle, self._dropped.append, (ref.session, ref.number))
        drop.atexit = False
        return handle


class Holder:
    """A session without its connection; `Session` and `AsyncSession` make its calls.

    Args:
        terms: What its calls say of it.
        timeout: Seconds for each call.
    """

    def __init__(self, terms: Terms, timeout: float) -> None:
        self._terms = terms
        self._timeout = timeout
        self._book = Book()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._terms.name!r} of {self._terms.model!r}>"

    def within(self, timeout: float) -> Self:
        """Return this session with another time-out for its calls, in seconds."""
        other = copy.copy(self)
        other.__dict__["_timeout"] = timeout
        return other

    @abstractmethod
    def _ref(self, ref: WireRef) -> Remote:
        """Return a handle of an object."""

    def _adopted(self, value: Any) -> Any:
        return self._book.adopt(value, self._ref)

    @contextlib.contextmanager
    def _telling(self, args: dict[str, Any]) -> Iterator[None]:
        """Say in the arguments of a call which objects nobody has any more; again if it fails."""
        dropped = self._book.take_dropped()
        if dropped:
            args["released"] = dropped
        try:
            yield
        except BaseException:
            self._book.put_back(dropped)
            raise


def arguments(**args: Any) -> dict[str, Any]:
    """Build the arguments of a call; those that are empty stay out."""
    return {name: value for name, value in args.items() if value or name not in ("args", "kwargs")}


def call_arguments(
    module: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the arguments of `ffi.call`."""
    return arguments(module=module, name=name, args=list(args), kwargs=dict(kwargs))


def method_arguments(
    ref: WireRef, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the arguments of `ffi.method`."""
    return arguments(ref=ref, name=name, args=list(args), kwargs=dict(kwargs))
