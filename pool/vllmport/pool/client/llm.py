"""A model handle: what one calls to generate, chat, stream, tokenize. The thread-based client."""

import contextlib
import math
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from vllmport.bridge.errors import InvalidRequest, PoolClosed, VllmportError
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.bridge.messages import Call
from vllmport.pool.client.adapters import Adapters
from vllmport.pool.client.batch import Batch
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.drop_in import VllmMethods
from vllmport.pool.client.link import Link
from vllmport.pool.client.mailbox import Done, Failed, Item, ThreadMailbox
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
from vllmport.pool.client.stream import Stream
from vllmport.pool.client.telling import tell
from vllmport.pool.client.universal import Session
from vllmport.pool.client.verbs import EngineVerbs

if TYPE_CHECKING:
    from vllmport.pool.client.pool import Pool

T = TypeVar("T")

UseTqdm = bool | Callable[..., Any]

LOAD_TIMEOUT = math.inf
"""Seconds a caller waits for a model to load: the supervisor ends loads that stall."""


class LLM(EngineVerbs, VllmMethods):
    """A model of a pool; same methods and result shapes as `vllm.LLM`.

    `pool.llm(…)` returns one. Made directly, it starts a pool of its own, which ends with it: the
    drop-in for `vllm.LLM`.

    Args:
        model: A folder, a hub name, an alias of the pool; the bundled model if None.
        **options: As for `Pool.llm`.

    Raises:
        StartupFailed: The engine did not come up.
        InvalidRequest: An argument can never work.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        from vllmport.pool.client.pool import Pool

        pool = Pool()
        try:
            self._attach(pool, model, options)
        except BaseException:
            pool.close()
            raise
        self._owned: Pool | None = pool

    @classmethod
    def of(cls, pool: "Pool", model: str | None, options: dict[str, Any]) -> Self:
        """Make a handle of a model in an existing pool; `Pool.llm` calls this."""
        self = cls.__new__(cls)
        self._owned = None
        self._attach(pool, model, options)
        return self

    def _attach(self, pool: "Pool", model: str | None, options: dict[str, Any]) -> None:
        self.closed = False
        self._pool = pool
        self._link: Link = pool.link
        name = options.pop("name", None)
        wait = options.pop("wait", True)
        self._chat_template = _template_text(options.pop("chat_template", None))
        own = {key: options.pop(key, default) for key, default in _OWN_OPTIONS.items()}
        own["env"] = dict(own["env"] or {})
        self._load_arguments = load_arguments(model, name, **own, engine_args=options)
        self.name = str(name or model or "tiny")
        self._adapters = Adapters()
        self._lease: Connection | None = None
        self._load(wait=wait)

    def __repr__(self) -> str:
        return f"<LLM {self.name!r} at {self._link.endpoint}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Generation.

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params | Sequence[Params] = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: Priority = None,
        request_id: str | None = None,
        retry: Retry = None,
        use_tqdm: UseTqdm = False,
        **extras: Unpack[Extras],
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
            prompts: One prompt or a list: text, token ids, or maps as vLLM takes them.
            sampling_params: For all, or a list with one for each prompt.
            timeout: Seconds for the whole call, queue included; `math.inf` for no limit.
            timeout_profile: "default", "streaming", "ml_inference" (if nothing is given) or
                "batch_job".
            priority: Lower runs first; a list has one for each prompt.
            request_id: Your name for the call, in results, logs and errors.
            retry: "resume" to have a prompt that was started run again, within the same time, if
                its worker is lost; what a stream has brought by then is checked token by token and
                not repeated. With a temperature above 0 that needs a `seed`.
            use_tqdm: Show a progress bar; a tqdm class of your own is taken as well.
            **extras: See `Extras`.

        Returns:
            One result for each prompt, in their order.

        Raises:
            DeadlineExceeded: Time was up; `tokens` and `partial` say how far one prompt came.
            InvalidRequest: A prompt or parameter can never work.
            WorkerLost: The worker died under it; make the call again. With `retry="resume"`: it was
                run again and came out different.
            PoisonRequest: With `retry="resume"`: a second worker died under it.
            Overloaded: The queue is full; `retry_after` says when to come back.

        For a list of prompts the error's `details["results"]` has what was finished.
        """
        extras["lora_request"] = self._adapters.resolve(extras.get("lora_request"))
        requests = generate_requests(prompts, sampling_params, extras)
        seconds = self._seconds(timeout, timeout_profile)
        calls = calls_for(self.name, "generate", len(requests), priority, request_id, retry)
        return self._batch(calls, requests, result_from, seconds, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | Sequence[Params] = None,
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: Priority = None,
        request_id: str | None = None,
        retry: Retry = None,
        use_tqdm: UseTqdm = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answer conversations; `template` takes vLLM's chat_template, tools and the like.

        Args and errors are those of `generate`; `messages` is one conversation or a list of them.
        """
        template.setdefault("chat_template", self._chat_template)
        template["lora_request"] = self._adapters.resolve(template.get("lora_request"))
        requests = chat_requests(messages, sampling_params, template)
        seconds = self._seconds(timeout, timeout_profile)
        calls = calls_for(self.name, "chat", len(requests), priority, request_id, retry)
        return self._batch(calls, requests, result_from, seconds, use_tqdm)

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
    ) -> Stream:
        """Complete one prompt and yield what is new as it comes.

        Args are those of `generate`, and besides:
            first_token_timeout: Seconds to the first tokens, the queue included.
            token_timeout: Seconds between tokens, while you wait for them.

        Raises:
            DeadlineExceeded: Time was up; `details["limit"]` says if it was one of these two.
        """
        extras["lora_request"] = self._adapters.resolve(extras.get("lora_request"))
        (args,) = generate_requests([prompt], sampling_params, extras)
        call = call_for(self.name, "generate", priority, request_id, DEFAULT_WINDOW, retry)
        pauses = self._link.timeouts.pauses(first_token_timeout, token_timeout)
        seconds = self._seconds(timeout, timeout_profile)
        return Stream(self._connection(), call, args, seconds, pauses)

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
    ) -> Stream:
        """Answer one conversation and yield what is new as it comes. Args are those of `chat`."""
        template.setdefault("chat_template", self._chat_template)
        template["lora_request"] = self._adapters.resolve(template.get("lora_request"))
        (args,) = chat_requests(messages, sampling_params, template)
        call = call_for(self.name, "chat", priority, request_id, DEFAULT_WINDOW, retry)
        pauses = self._link.timeouts.pauses(first_token_timeout, token_timeout)
        seconds = self._seconds(timeout, timeout_profile)
        return Stream(self._connection(), call, args, seconds, pauses)

    # Tokens and facts.

    def tokenize(
        self, prompt: str, *, add_special_tokens: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Return the token ids of a text."""
        args = {"prompt": prompt, "add_special_tokens": add_special_tokens}
        return list(self.call("tokenize", args, timeout=timeout)["token_ids"])

    def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        """Return the text of token ids."""
        return str(self.call("detokenize", {"token_ids": list(token_ids)}, timeout=timeout)["text"])

    def call(
        self,
        verb: str,
        args: dict[str, Any],
        *,
        timeout: float | None = None,
        timeout_profile: str | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        retry: Retry = None,
    ) -> Any:
        """Call a verb of the engine by its name and return its plain result."""
        seconds = self._seconds(timeout, timeout_profile)
        call = call_for(self.name, verb, priority, request_id, retry=retry)
        return run_call(self._connection(), call, args, seconds)

    def engine_config(self) -> dict[str, Any]:
        """Return what the engine resolved its arguments to."""
        return dict(self._pool.call("engine_config", {"name": self.name}))

    def session(
        self,
        name: str | None = None,
        *,
        affinity: str = "hint",
        ttl: float | None = None,
        timeout: float | None = None,
        timeout_profile: str | None = None,
    ) -> Session:
        """Begin a session of universal calls: any documented object of the library, by name.

        Args:
            name: None for a session of this connection alone; else other clients of the same user
                may use it as well, and it lives on for `ttl` seconds after its last call.
            affinity: What becomes of a call whose session's worker has no room: "hint" (it goes to
                another if nothing is held), "strict_queue" (it waits), "strict_fail_fast".
            ttl: Only with a name; an hour if None.
            timeout: Seconds for each call.
            timeout_profile: As for `generate`.

        Raises:
            InvalidRequest: An argument cannot be meant.
        """
        terms = Terms.of(self.name, name, affinity, ttl)
        seconds = self._seconds(timeout, timeout_profile)
        return Session(terms, self._connection, seconds)

    # Life.

    def close(self) -> None:
        """Give up this handle's lease; the engine stops with the last one, unless declared."""
        if self.closed:
            return
        self.closed = True
        if self._owned is not None:
            self._owned.close()
            return
        lease = self._lease
        if lease is not None and lease.alive:
            with contextlib.suppress(VllmportError):  # a pool that is gone holds no lease
                run_call(lease, call_for("", "release", None, None), {"name": self.name}, 10.0)

    def _seconds(self, timeout: float | None = None, profile: str | None = None) -> float:
        return self._link.timeouts.seconds(timeout, profile)

    def _load(self, *, wait: bool) -> None:
        connection = self._link.connection()
        call = call_for("", "load", None, None, DEFAULT_WINDOW)
        arguments = {**self._load_arguments, "wait": wait}
        with load_line(self.name, wanted=True) as show:
            warn_of(run_call(connection, call, arguments, LOAD_TIMEOUT, show))
        self._lease = connection

    def _connection(self) -> Connection:
        """Return a live connection on which this handle has its lease."""
        if self.closed:
            raise PoolClosed(f"this handle of model {self.name!r} was closed")
        connection = self._link.connection()
        if connection is not self._lease:  # after a loss, or in a forked child
            self._load(wait=True)
        return connection

    def _run(
        self,
        verb: str,
        requests: list[dict[str, Any]],
        convert: Callable[[Any], T],
        /,
        **limits: Unpack[Limits],
    ) -> list[T]:
        check_limits(limits, verb)
        seconds = self._seconds(limits.get("timeout"), limits.get("timeout_profile"))
        priority, request_id = limits.get("priority"), limits.get("request_id")
        retry = limits.get("retry")
        calls = calls_for(self.name, verb, len(requests), priority, request_id, retry)
        use_tqdm = limits.get("use_tqdm", False)
        return self._batch(calls, requests, lambda value, _: convert(value), seconds, use_tqdm)

    def _batch(
        self,
        calls: list[Call],
        requests: list[dict[str, Any]],
        convert: Callable[[Any, int], T],
        timeout: float,
        use_tqdm: UseTqdm = False,  # noqa: FBT002  # vLLM's parameter
    ) -> list[T]:
        connection = self._connection()
        deadline = time.monotonic() + timeout
        batch = Batch(requests, convert, deadline)
        mailbox = ThreadMailbox()
        try:
            with batch_bar(len(requests), use_tqdm) as advance:
                while not batch.done:
                    for index, args in batch.submits(time.monotonic()):
                        try:
                            left = deadline - time.monotonic()
                            call_id = connection.submit(
                                calls[index], args, left, mailbox, more=True
                            )
                            batch.submitted(index, call_id)
                        except VllmportError as exc:
                            batch.refused(index, exc, time.monotonic())
                    if batch.done:
                        break
                    with contextlib.suppress(queue.Empty):
                        event = connection.wait(mailbox, batch.wait(time.monotonic()))
                        advance(batch.take(event, time.monotonic()))
        finally:  # an error, Ctrl-C: what still runs must not go on unseen
            for call_id in batch.open_calls:
                connection.abandon(call_id)
        return batch.outcome()


def warn_of(model: Mapping[str, Any]) -> None:
    """Pass on what the pool changed in the arguments of a model, as Python's own warnings."""
    for note in model.get("notes", ()):
        tell(f"model {model['name']!r}: {note}")


def _template_text(template: Any) -> str | None:
    """Read a chat template, which may be the path of a file."""
    if template is None or "{" in str(template):
        return None if template is None else str(template)
    try:
        return Path(template).read_text()
    except OSError as exc:
        text = f"cannot read the chat template {str(template)!r}: {exc.strerror}"
        raise InvalidRequest.of("chat_template", str(template), text) from exc


_OWN_OPTIONS: dict[str, Any] = {
    "v1_multiprocessing": "auto",
    "env": None,
    "replicas": 1,
    "loras": None,
    "preset": None,
}


def run_call(
    connection: Connection,
    call: Call,
    args: dict[str, Any],
    timeout: float,
    on_item: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Make one call and wait for its end; cancel it if the wait is interrupted.

    Raises:
        VllmportError: The call failed.
    """
    mailbox = ThreadMailbox()
    call_id = connection.submit(call, args, timeout, mailbox)
    try:
        while True:
            match connection.wait(mailbox):
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
