"""The same client for asyncio: AsyncPool, AsyncLLM.

The connection and its thread are those of the sync client; only the waiting is different.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from vllmport.bridge.errors import PoolClosed, VllmportError
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.bridge.messages import Call
from vllmport.bridge.timeouts import Timeouts
from vllmport.pool.client.adapters import Adapters
from vllmport.pool.client.aio_events import AsyncEventStream
from vllmport.pool.client.aio_stream import AsyncStream
from vllmport.pool.client.aio_universal import AsyncSession
from vllmport.pool.client.aio_verbs import AsyncEngineVerbs
from vllmport.pool.client.batch import Batch
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.llm import LOAD_TIMEOUT, warn_of
from vllmport.pool.client.loop import LoopMailbox
from vllmport.pool.client.mailbox import Done, Failed, Item
from vllmport.pool.client.pool import CONTROL_TIMEOUT, RESTART_TIMEOUT, Pool, announce_demonstration
from vllmport.pool.client.progress import batch_bar, load_line
from vllmport.pool.client.refs import Terms
from vllmport.pool.client.requests import (
    Extras,
    Limits,
    Message,
    Params,
    Priority,
    Prompt,
    Prompts,
    Retry,
    call_for,
    calls_for,
    chat_requests,
    check_limits,
    generate_requests,
    load_arguments,
)
from vllmport.pool.client.results import RequestOutput, result_from

if TYPE_CHECKING:
    from vllmport.pool.engine_args import EngineArgs

T = TypeVar("T")


class AsyncLLM(AsyncEngineVerbs):
    """A model of a pool, for coroutines. Methods, arguments and errors are those of `LLM`."""

    def __init__(self, pool: "AsyncPool", model: str | None, options: dict[str, Any]) -> None:
        name = options.pop("name")
        self.closed = False
        self.name = str(name or model or "tiny")
        self._pool = pool
        self._wait = bool(options.pop("wait"))
        self._load_arguments = load_arguments(model, name, **options)
        self._adapters = Adapters()
        self._lease: Connection | None = None
        self._loading = asyncio.Lock()

    def __repr__(self) -> str:
        return (
            f"<AsyncLLM {self.name!r} at {self._pool.endpoint}{' closed' if self.closed else ''}>"
        )

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def _opened(self) -> Self:
        await self.connection()
        return self

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def generate(
        self,
        prompts: Prompts,
        sampling_params: Params | Sequence[Params] = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: Priority = None,
        request_id: str | None = None,
        retry: Retry = None,
        use_tqdm: bool | Callable[..., Any] = False,
        **extras: Unpack[Extras],
    ) -> list[RequestOutput]:
        """Complete prompts; see `LLM.generate`."""
        extras["lora_request"] = self._adapters.resolve(extras.get("lora_request"))
        requests = generate_requests(prompts, sampling_params, extras)
        calls = calls_for(self.name, "generate", len(requests), priority, request_id, retry)
        seconds = self._seconds(timeout, timeout_profile)
        return await self._batch(calls, requests, result_from, seconds, use_tqdm)

    async def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | Sequence[Params] = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: Priority = None,
        request_id: str | None = None,
        retry: Retry = None,
        use_tqdm: bool | Callable[..., Any] = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answer conversations; see `LLM.chat`."""
        template["lora_request"] = self._adapters.resolve(template.get("lora_request"))
        requests = chat_requests(messages, sampling_params, template)
        calls = calls_for(self.name, "chat", len(requests), priority, request_id, retry)
        seconds = self._seconds(timeout, timeout_profile)
        return await self._batch(calls, requests, result_from, seconds, use_tqdm)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: Params = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        retry: Retry = None,
        first_token_timeout: float | None = None,
        token_timeout: float | None = None,
        **extras: Unpack[Extras],
    ) -> AsyncStream:
        """Complete one prompt and yield what is new as it comes; see `LLM.stream`."""
        extras["lora_request"] = self._adapters.resolve(extras.get("lora_request"))
        (args,) = generate_requests([prompt], sampling_params, extras)
        call = call_for(self.name, "generate", priority, request_id, DEFAULT_WINDOW, retry)
        pauses = self._pool.timeouts.pauses(first_token_timeout, token_timeout)
        seconds = self._seconds(timeout, timeout_profile)
        return AsyncStream(self, call, args, seconds, pauses)

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: Params = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        retry: Retry = None,
        first_token_timeout: float | None = None,
        token_timeout: float | None = None,
        **template: Any,
    ) -> AsyncStream:
        """Answer one conversation and yield what is new as it comes; see `LLM.stream_chat`."""
        template["lora_request"] = self._adapters.resolve(template.get("lora_request"))
        (args,) = chat_requests(messages, sampling_params, template)
        call = call_for(self.name, "chat", priority, request_id, DEFAULT_WINDOW, retry)
        pauses = self._pool.timeouts.pauses(first_token_timeout, token_timeout)
        seconds = self._seconds(timeout, timeout_profile)
        return AsyncStream(self, call, args, seconds, pauses)

    async def tokenize(self, prompt: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        args = {"prompt": prompt, "add_special_tokens": add_special_tokens}
        return list((await self.call("tokenize", args))["token_ids"])

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str((await self.call("detokenize", {"token_ids": list(token_ids)}))["text"])

    async def call(self, verb: str, args: dict[str, Any], *, timeout: float | None = None) -> Any:
        """Call a verb of the engine by its name and return its plain result."""
        call = call_for(self.name, verb, None, None)
        seconds = self._seconds(timeout)
        return await run_call(await self.connection(), call, args, seconds)

    async def engine_config(self) -> dict[str, Any]:
        """Return what the engine resolved its arguments to."""
        return dict(await self._pool.call("engine_config", {"name": self.name}))

    def session(
        self,
        name: str | None = None,
        *,
        affinity: str = "hint",
        ttl: float | None = None,
        timeout: float | None = None,
        timeout_profile: str | None = None,
    ) -> AsyncSession:
        """Begin a session of universal calls; see `LLM.session`."""
        terms = Terms.of(self.name, name, affinity, ttl)
        seconds = self._seconds(timeout, timeout_profile)
        return AsyncSession(terms, self.connection, seconds)

    async def aclose(self) -> None:
        """Give up this handle's lease; the engine stops with the last one, unless declared."""
        if self.closed:
            return
        self.closed = True
        if self._lease is not None and self._lease.alive:
            with contextlib.suppress(VllmportError):  # a pool that is gone holds no lease
                call = call_for("", "release", None, None)
                await run_call(self._lease, call, {"name": self.name}, 10.0)

    async def connection(self) -> Connection:
        """Return a live connection on which this handle has its lease."""
        if self.closed:
            raise PoolClosed(f"this handle of model {self.name!r} was closed")
        connection = await self._pool.connection()
        if connection is self._lease:
            return connection
        async with self._loading:
            if connection is not self._lease:
                call = call_for("", "load", None, None, DEFAULT_WINDOW)
                arguments = {**self._load_arguments, "wait": self._wait}
                with load_line(self.name, wanted=True) as show:
                    warn_of(await run_call(connection, call, arguments, LOAD_TIMEOUT, show))
                self._lease = connection
        return connection

    def _seconds(self, timeout: float | None = None, profile: str | None = None) -> float:
        return self._pool.timeouts.seconds(timeout, profile)

    async def _run(
        self,
        verb: str,
        requests: list[dict[str, Any]],
        convert: Callable[[Any], T],
        /,
        **limits: Unpack[Limits],
    ) -> list[T]:
        check_limits(limits, verb)
        priority, request_id = limits.get("priority"), limits.get("request_id")
        retry = limits.get("retry")
        calls = calls_for(self.name, verb, len(requests), priority, request_id, retry)
        seconds = self._seconds(limits.get("timeout"), limits.get("timeout_profile"))
        use_tqdm = limits.get("use_tqdm", False)
        return await self._batch(
            calls, requests, lambda value, _: convert(value), seconds, use_tqdm
        )

    async def _batch(
        self,
        calls: list[Call],
        requests: list[dict[str, Any]],
        convert: Callable[[Any, int], T],
        timeout: float,
        use_tqdm: bool | Callable[..., Any] = False,  # noqa: FBT001, FBT002  # vLLM's parameter
    ) -> list[T]:
        connection = await self.connection()
        deadline = time.monotonic() + timeout
        batch = Batch(requests, convert, deadline)
        mailbox = LoopMailbox()
        try:
            with batch_bar(len(requests), use_tqdm) as advance:
                while not batch.done:
                    for index, args in batch.submits(time.monotonic()):
                        try:
                            left = deadline - time.monotonic()
                            batch.submitted(
                                index, connection.submit(calls[index], args, left, mailbox)
                            )
                        except VllmportError as exc:
                            batch.refused(index, exc, time.monotonic())
                    if batch.done:
                        break
                    event = await mailbox.get(batch.wait(time.monotonic()))
                    if event is not None:
                        advance(batch.take(event, time.monotonic()))
        finally:
            for call_id in batch.open_calls:
                connection.abandon(call_id)
        return batch.outcome()


class AsyncPool:
    """A pool, for coroutines: `async with AsyncPool() as pool`, or `await AsyncPool.connect()`.

    Arguments, methods and errors are those of `Pool`.
    """

    def __init__(self, config: Any = None, **overrides: Any) -> None:
        self._make: Callable[[], Pool] = lambda: Pool(config, **overrides)
        self._pool: Pool | None = None
        self._starting = asyncio.Lock()

    @classmethod
    async def connect(
        cls,
        endpoint: str | None = None,
        *,
        server_key: str | None = None,
        key: str | Path | None = None,
    ) -> Self:
        """Join a pool that runs already; see `Pool.connect`."""
        self = cls()
        self._make = lambda: Pool.connect(endpoint, server_key=server_key, key=key)
        return await self._opened()

    def __repr__(self) -> str:
        return f"<AsyncPool {self._pool.endpoint if self._pool else 'not started'}>"

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def endpoint(self) -> str:
        """Where others can connect to this pool.

        Raises:
            PoolClosed: It was not started: await it, or use `async with`.
        """
        return self._started().endpoint

    @property
    def timeouts(self) -> Timeouts:
        """What holds for calls that name no timeout."""
        return self._started().link.timeouts

    @overload
    def llm(self, model: Literal["echo"], **options: Any) -> AsyncLLM: ...

    @overload
    def llm(
        self,
        model: str | None = None,
        *,
        name: str | None = None,
        v1_multiprocessing: str = "auto",
        env: Mapping[str, str] | None = None,
        replicas: int = 1,
        loras: Mapping[str, str] | None = None,
        preset: str | None = None,
        wait: bool = True,
        **engine_args: "Unpack[EngineArgs]",
    ) -> AsyncLLM: ...

    def llm(
        self,
        model: str | None = None,
        *,
        name: str | None = None,
        v1_multiprocessing: str = "auto",
        env: Mapping[str, str] | None = None,
        replicas: int = 1,
        loras: Mapping[str, str] | None = None,
        preset: str | None = None,
        wait: bool = True,
        **engine_args: Any,
    ) -> AsyncLLM:
        """Make a handle of a model; await it to have it loaded. See `Pool.llm`."""
        if model is None and name is None:
            announce_demonstration()
        options = {
            "name": name,
            "v1_multiprocessing": v1_multiprocessing,
            "env": env,
            "replicas": replicas,
            "loras": loras,
            "preset": preset,
            "wait": wait,
        }
        return AsyncLLM(self, model, {**options, "engine_args": engine_args})

    async def unload(self, name: str, *, timeout: float = CONTROL_TIMEOUT) -> None:
        """Stop a model whoever holds a lease on it, and wait until it is gone."""
        await self.call("unload", {"name": name}, timeout=timeout)

    async def restart(self, name: str, *, timeout: float = RESTART_TIMEOUT) -> None:
        """Replace every worker of a model, one after the other; see `Pool.restart`."""
        await self.call("restart", {"name": name}, timeout=timeout)

    async def status(self) -> dict[str, Any]:
        """Return what runs: supervisor, spawner, models, workers, counters."""
        return dict(await self.call("status", {}))

    def events(self, *, last: int = 0) -> AsyncEventStream:
        """Watch what happens, with `async for`; see `Pool.events`.

        It watches from when it is awaited or entered, else from the first event waited for.
        """
        return AsyncEventStream(self.connection, last)

    async def call(
        self, verb: str, args: dict[str, Any], *, timeout: float = CONTROL_TIMEOUT
    ) -> Any:
        """Call a verb of the pool itself and return its plain result."""
        return await run_call(
            await self.connection(), call_for("", verb, None, None), args, timeout
        )

    async def connection(self) -> Connection:
        """Return a live connection."""
        link = self._started().link
        current = link.current()
        return current if current is not None else await asyncio.to_thread(link.connection)

    async def aclose(self) -> None:
        """End an owned pool, and wait until nothing of it is left; leave one that was joined."""
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close)

    async def _opened(self) -> Self:
        async with self._starting:
            if self._pool is None:
                self._pool = await asyncio.to_thread(self._make)
        return self

    def _started(self) -> Pool:
        if self._pool is None:
            raise PoolClosed("this AsyncPool was not started: await it, or use `async with`")
        return self._pool


async def run_call(
    connection: Connection,
    call: Call,
    args: dict[str, Any],
    timeout: float,
    on_item: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Make one call and wait for its end; cancel it if the task is cancelled.

    Raises:
        VllmportError: The call failed.
    """
    mailbox = LoopMailbox()
    call_id = connection.submit(call, args, timeout, mailbox)
    try:
        while True:
            match await mailbox.get():
                case Item(_, value):
                    on_item(value)
                    connection.credit(call_id, 1)
                case Done(_, value):
                    return value
                case Failed(_, error):
                    raise error
    except BaseException:
        connection.abandon(call_id)
        raise
