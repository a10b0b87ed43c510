"""Sessions and refs for coroutines: `universal.py` with `await`."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

from vllmport.bridge.codec import Ref as WireRef
from vllmport.bridge.errors import SessionLost, VllmportError
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import Verb
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.loop import LoopMailbox
from vllmport.pool.client.mailbox import Done, Failed, Item
from vllmport.pool.client.refs import Holder, Remote, Terms, call_arguments, method_arguments
from vllmport.pool.client.window import Window

Connect = Callable[[], Awaitable[Connection]]


class AsyncRef(Remote):
    """An object in the worker; methods are those of `Ref`, to be awaited."""

    owner: "AsyncSession"

    async def attr(self, name: str) -> Any:
        """Return an attribute; `name` may have dots."""
        return await self.owner.attr(self, name)

    async def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute."""
        await self.owner.set_attr(self, name, value)

    async def method(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return its result."""
        return await self.owner.method(self, name, *args, **kwargs)

    def stream(self, name: str, /, *args: Any, **kwargs: Any) -> "AsyncItemStream":
        """Call a method that gives an iterator, and yield its items as they come."""
        return self.owner.stream_method(self, name, *args, **kwargs)

    async def item(self, key: Any) -> Any:
        """Return `object[key]`."""
        return await self.owner.item(self, key)

    async def release(self) -> None:
        """Let go of the object now; a second time does nothing."""
        await self.owner.release(self)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.owner.iterate(self)


class AsyncSession(Holder):
    """Owns the refs that its calls return. Methods, arguments and errors are those of `Session`."""

    def __init__(self, terms: Terms, connection: Connect, timeout: float) -> None:
        super().__init__(terms, timeout)
        self._connection = connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._terms.ttl_ms:
            with contextlib.suppress(VllmportError):  # a pool that is gone has no session
                await self.end()

    async def call(self, module: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a class or a method of a class."""
        return await self._run(Verb.CALL, call_arguments(module, name, args, kwargs))

    async def get(self, module: str, name: str) -> Any:
        """Return the value of a name in a module."""
        return await self._run(Verb.GET, {"module": module, "name": name})

    def stream(self, module: str, name: str, /, *args: Any, **kwargs: Any) -> "AsyncItemStream":
        """Call what gives an iterator, and yield its items as they come."""
        return self._stream(Verb.CALL, call_arguments(module, name, args, kwargs))

    async def attr(self, ref: WireRef, name: str) -> Any:
        """Return an attribute of an object."""
        return await self._run(Verb.ATTR, {"ref": ref, "name": name})

    async def set_attr(self, ref: WireRef, name: str, value: Any) -> None:
        """Set an attribute of an object."""
        await self._run(Verb.SET_ATTR, {"ref": ref, "name": name, "value": value})

    async def method(self, ref: WireRef, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an object."""
        return await self._run(Verb.METHOD, method_arguments(ref, name, args, kwargs))

    def stream_method(
        self, ref: WireRef, name: str, /, *args: Any, **kwargs: Any
    ) -> "AsyncItemStream":
        """Call a method that gives an iterator, and yield its items as they come."""
        return self._stream(Verb.METHOD, method_arguments(ref, name, args, kwargs))

    async def item(self, ref: WireRef, key: Any) -> Any:
        """Return `object[key]`."""
        return await self._run(Verb.ITEM, {"ref": ref, "key": key})

    def iterate(self, ref: WireRef) -> "AsyncItemStream":
        """Yield the items of an object."""
        return self._stream(Verb.ITERATE, {"ref": ref})

    async def release(self, *refs: WireRef) -> None:
        """Let go of objects now, and of those whose handles are gone; without any, of these."""
        with contextlib.suppress(SessionLost):
            await self._run(Verb.RELEASE, {"refs": [ref.number for ref in refs]})

    async def end(self) -> None:
        """End the session: everything it holds is let go, calls that still run are given up."""
        await self._run(Verb.END, {})

    async def _run(self, verb: Verb, args: dict[str, Any]) -> Any:
        from vllmport.pool.client.aio import run_call

        header = self._terms.header(verb)
        with self._telling(args):
            result = await run_call(await self._connection(), header, args, self._timeout)
        return self._adopted(result)

    def _stream(self, verb: Verb, args: dict[str, Any]) -> "AsyncItemStream":
        header = self._terms.header(verb, DEFAULT_WINDOW)
        with self._telling(args):
            return AsyncItemStream(self._connection, header, args, self._timeout, self._adopted)

    def _ref(self, ref: WireRef) -> AsyncRef:
        return AsyncRef(ref, self)


class AsyncItemStream(AsyncIterator[Any]):
    """What an iterator in the worker gives; leave it early with `await aclose()`.

    Attributes:
        result: What the call returned if that was no iterator, once the stream has ended.
    """

    def __init__(
        self,
        connect: Connect,
        call: Call,
        args: dict[str, Any],
        timeout: float,
        adopt: Callable[[Any], Any],
    ) -> None:
        self.result: Any = None
        self._connect = connect
        self._request = (call, args, timeout)
        self._adopt = adopt
        self._mailbox = LoopMailbox()
        self._connection: Connection | None = None
        self._call = 0
        self._window = Window()
        self._ended = False

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:  # a cancelled task: the call must not go on unseen
            self._abandon()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit little works any more
            self._abandon()

    async def aclose(self) -> None:
        """Cancel the call if it still runs."""
        self._abandon()

    async def _next(self) -> Any:
        if self._connection is None:
            connection = await self._connect()
            self._call = connection.submit(*self._request, self._mailbox)
            self._connection = connection
        match await self._mailbox.get():
            case Item(_, value):
                self._grant(self._connection)
                return self._adopt(value)
            case Done(_, value):
                self._ended = True
                self.result = self._adopt(value)
                raise StopAsyncIteration
            case Failed(_, error):
                self._ended = True
                raise error

    def _grant(self, connection: Connection) -> None:
        if room := self._window.took():
            connection.credit(self._call, room)

    def _abandon(self) -> None:
        if not self._ended:
            self._ended = True
            if self._connection is not None:
                self._connection.abandon(self._call)
