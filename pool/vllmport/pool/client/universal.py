"""Sessions and refs for threads: any documented object of the library, used where it is.

`aio_universal.py` is the same with `await`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self

from vllmport.bridge.codec import Ref as WireRef
from vllmport.bridge.errors import SessionLost, VllmportError
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import Verb
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.mailbox import Done, Failed, Item, ThreadMailbox
from vllmport.pool.client.refs import Holder, Remote, Terms, call_arguments, method_arguments
from vllmport.pool.client.window import Window


class Ref(Remote):
    """An object in the worker; let go of there when this handle is gone."""

    owner: "Session"

    def attr(self, name: str) -> Any:
        """Return an attribute; `name` may have dots."""
        return self.owner.attr(self, name)

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.owner.set_attr(self, name, value)

    def method(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return its result."""
        return self.owner.method(self, name, *args, **kwargs)

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> "ItemStream":
        """Call a method that gives an iterator, and yield its items as they come."""
        return self.owner.stream_method(self, name, *args, **kwargs)

    def release(self) -> None:
        """Let go of the object now; a second time does nothing."""
        self.owner.release(self)

    def __getitem__(self, key: Any) -> Any:
        return self.owner.item(self, key)

    def __iter__(self) -> Iterator[Any]:
        return self.owner.iterate(self)


class Session(Holder):
    """Owns the refs that its calls return; `LLM.session` makes one.

    Results that can travel are returned as values, others as `Ref`. All methods raise:
        NotAllowed: A name is not on the allow-list.
        SessionLost: A ref's worker is gone; end this session and begin another.
        QuotaExceeded: The session holds too many objects.
        DeadlineExceeded: Time was up.
        EngineError: The library raised; `details["class"]` says what.
    """

    def __init__(self, terms: Terms, connection: Callable[[], Connection], timeout: float) -> None:
        super().__init__(terms, timeout)
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._terms.ttl_ms:
            with contextlib.suppress(VllmportError):  # a pool that is gone has no session
                self.end()

    # Modules.

    def call(self, module: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a class or a method of a class: `("vllm", "SamplingParams", n=2)`."""
        return self._run(Verb.CALL, call_arguments(module, name, args, kwargs))

    def get(self, module: str, name: str) -> Any:
        """Return the value of a name in a module."""
        return self._run(Verb.GET, {"module": module, "name": name})

    def stream(self, module: str, name: str, /, *args: Any, **kwargs: Any) -> "ItemStream":
        """Call what gives an iterator, and yield its items as they come."""
        return self._stream(Verb.CALL, call_arguments(module, name, args, kwargs))

    # Refs.

    def attr(self, ref: WireRef, name: str) -> Any:
        """Return an attribute of an object."""
        return self._run(Verb.ATTR, {"ref": ref, "name": name})

    def set_attr(self, ref: WireRef, name: str, value: Any) -> None:
        """Set an attribute of an object."""
        self._run(Verb.SET_ATTR, {"ref": ref, "name": name, "value": value})

    def method(self, ref: WireRef, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an object."""
        return self._run(Verb.METHOD, method_arguments(ref, name, args, kwargs))

    def stream_method(self, ref: WireRef, name: str, /, *args: Any, **kwargs: Any) -> "ItemStream":
        """Call a method that gives an iterator, and yield its items as they come."""
        return self._stream(Verb.METHOD, method_arguments(ref, name, args, kwargs))

    def item(self, ref: WireRef, key: Any) -> Any:
        """Return `object[key]`."""
        return self._run(Verb.ITEM, {"ref": ref, "key": key})

    def iterate(self, ref: WireRef) -> "ItemStream":
        """Yield the items of an object."""
        return self._stream(Verb.ITERATE, {"ref": ref})

    # Life.

    def release(self, *refs: WireRef) -> None:
        """Let go of objects now, and of those whose handles are gone; without any, of these."""
        with contextlib.suppress(SessionLost):
            self._run(Verb.RELEASE, {"refs": [ref.number for ref in refs]})

    def end(self) -> None:
        """End the session: everything it holds is let go, calls that still run are given up."""
        self._run(Verb.END, {})

    # Inside.

    def _run(self, verb: Verb, args: dict[str, Any]) -> Any:
        from vllmport.pool.client.llm import run_call

        header = self._terms.header(verb)
        with self._telling(args):
            result = run_call(self._connection(), header, args, self._timeout)
        return self._adopted(result)

    def _stream(self, verb: Verb, args: dict[str, Any]) -> "ItemStream":
        header = self._terms.header(verb, DEFAULT_WINDOW)
        with self._telling(args):
            return ItemStream(self._connection(), header, args, self._timeout, self._adopted)

    def _ref(self, ref: WireRef) -> Ref:
        return Ref(ref, self)


class ItemStream(Iterator[Any]):
    """What an iterator in the worker gives, as it comes; leaving it early cancels the call.

    Attributes:
        result: What the call returned if that was no iterator, once the stream has ended.
    """

    def __init__(
        self,
        connection: Connection,
        call: Call,
        args: dict[str, Any],
        timeout: float,
        adopt: Callable[[Any], Any],
    ) -> None:
        self.result: Any = None
        self._open = False
        self._adopt = adopt
        self._connection = connection
        self._mailbox = ThreadMailbox()
        self._window = Window(call.window)
        self._call = connection.submit(call, args, timeout, self._mailbox)
        self._open = True

    def __next__(self) -> Any:
        if not self._open:
            raise StopIteration
        try:
            event = self._connection.wait(self._mailbox)
        except BaseException:  # Ctrl-C while waiting: the call must not go on unseen
            self.close()
            raise
        match event:
            case Item(_, value):
                self._grant()
                return self._adopt(value)
            case Done(_, value):
                self._open = False
                self.result = self._adopt(value)
                raise StopIteration
            case Failed(_, error):
                self._open = False
                raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit little works any more
            self.close()

    def close(self) -> None:
        """Cancel the call if it still runs."""
        if self._open:
            self._open = False
            self._connection.abandon(self._call)

    def _grant(self) -> None:
        if room := self._window.took():
            self._connection.credit(self._call, room)
