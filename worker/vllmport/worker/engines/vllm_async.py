"""v1_multiprocessing on: vLLM's engine in a process of its own, served by an asyncio loop here.

The engine is built in the main thread and its loop runs there too: its process is tied to the
thread that started it. Imports vLLM: only for workers that run it.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from vllmport.bridge.errors import EngineDead
from vllmport.worker.engine import Key, Partial, Port
from vllmport.worker.engines.vllm_arguments import USAGE
from vllmport.worker.engines.vllm_call import Call
from vllmport.worker.engines.vllm_driver import VllmDriver, warm_up_request

BEAT = 0.5
"""Seconds between two looks at whether an idle engine lives and the port is still open."""


class AsyncVllm(VllmDriver):
    """Drives an `AsyncLLM`: one task for each request, and one turn of sending for all of them.

    Args:
        config: vLLM's configuration.
        engine_args: What it was made of.
        port: Where outputs go.
        loras: The folders of adapters by name.
        abort_grace: Seconds in which the engine's process must answer after an abort.
    """

    mode = "on"

    def __init__(
        self,
        config: Any,
        engine_args: Any,
        port: Port,
        loras: Mapping[str, str],
        *,
        abort_grace: float,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        engine, tasks = self._loop.run_until_complete(_build(config, engine_args))
        super().__init__(engine, port, tasks, loras)
        self._over: asyncio.Future[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._turn_is_due = False
        self._abort_grace = abort_grace
        self._aborted = False  # since the engine's process was asked last
        self._probe: asyncio.Task[None] | None = None
        self._count_steps()

    def run(self, port: Port) -> None:
        """Serve until the port is closed.

        Raises:
            EngineDead: The engine's process died; all open calls have failed with it.
        """
        self._over = self._loop.create_future()
        self._loop.add_reader(port.fileno(), self._turn)
        self._beat()
        try:
            self._loop.run_until_complete(self._over)
        finally:
            self._loop.remove_reader(port.fileno())
            for name in list(self._timers):
                self._timers.pop(name).cancel()

    def warm_up(self) -> None:
        """Run one tiny request, so that the first caller does not wait for lazy preparations."""
        self._loop.run_until_complete(self._warm_up())

    def abort(self, key: Key) -> Partial:
        """Take a request out, and see that the engine's process lets go of it as well.

        An abort does not wait for that process, which may be busy with this very request forever.
        """
        partial = super().abort(key)
        self._aborted = True
        if self._probe is None or self._probe.done():
            self._probe = self._loop.create_task(self._ask_for_life())
        return partial

    def close(self) -> None:
        """Abort what is open, and end the engine's processes; takes up to five seconds."""
        if self._probe is not None:
            self._probe.cancel()
        for call in self._calls.values():
            self._drop_all(call)
        self._engine.shutdown()
        self._loop.run_until_complete(asyncio.sleep(0))  # it closes its sockets by call_soon
        self._loop.close()

    def _start(self, call: Call, prompt: Any, params: Any, lora: Any) -> None:
        call.task = self._loop.create_task(self._consume(call, prompt, params, lora))

    def _drop(self, call: Call) -> None:
        call.task.cancel()  # the engine's generator answers this by aborting the request

    def _ask(self, call: Call, action: Callable[[Any], Any], done: Callable[[Any], Any]) -> None:
        call.task = self._loop.create_task(self._answer(call, action, done))

    async def _answer(
        self, call: Call, action: Callable[[Any], Any], done: Callable[[Any], Any]
    ) -> None:
        try:
            found = action(self._engine)
            answer = done(await found if inspect.isawaitable(found) else found)
        except Exception as exc:  # noqa: BLE001  # what goes wrong in a task belongs to its call
            self._fail(call, exc)
        else:
            del self._calls[call.key]
            self._port.finish(call.key, answer)
        self._turn_soon()

    async def _consume(self, call: Call, prompt: Any, params: Any, lora: Any) -> None:
        run = self._engine.encode if isinstance(params, PoolingParams) else self._engine.generate
        try:
            if lora is not None and self.adapters.is_new(lora):
                # A bad one found inside a step would end the engine.
                await self._engine.add_lora(lora)
                self.adapters.was_loaded(lora)
            async for output in run(
                prompt, params, call.name, lora_request=lora, priority=call.priority
            ):
                self._deliver(call, output)
                self._turn_soon()
        except EngineDeadError:
            self._die()
        except Exception as exc:  # noqa: BLE001  # what goes wrong in a task belongs to its call
            self._fail(call, exc)
            self._turn_soon()

    async def _ask_for_life(self) -> None:
        """Ask the engine's process something after an abort; it answers between two steps."""
        try:
            while self._aborted:
                self._aborted = False
                if not await self._answers():
                    self._die(f"did not answer within {self._abort_grace:g} s of an abort")
                    return
        except EngineDeadError:
            self._die()

    async def _answers(self) -> bool:
        for _ in range(2):  # with half the time each: it may be this loop that was late
            with suppress(TimeoutError):
                async with asyncio.timeout(self._abort_grace / 2):
                    await self._engine.is_paused()
                    return True
        return False

    async def _warm_up(self) -> None:
        prompt, params = warm_up_request(self._engine, self.info)
        run = self._engine.encode if isinstance(params, PoolingParams) else self._engine.generate
        async for _ in run(prompt, params, "warm-up"):
            pass

    # The loop.

    def _turn_soon(self) -> None:
        """Send once, after all tasks that this step of the engine woke have put their outputs."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take what came in, and send what is ready."""
        self._turn_is_due = False
        for _ in range(2):  # sending may swallow the edge of the port's descriptor: look again
            self._port.receive(0)
            self._port.flush()
        left = self._port.next_deadline() - time.monotonic()
        if left < BEAT:  # the beat comes first otherwise
            self._after("deadline", max(left, 0.0), self._turn)
        if self._port.closed:
            self._leave(None)

    def _beat(self) -> None:
        """Look after what makes no event: an engine that died idle, a port closed by a signal."""
        if self._engine.errored:
            self._die()
            return
        self._after("beat", BEAT, self._beat)
        self._turn()

    def _after(self, name: str, seconds: float, callback: Callable[[], None]) -> None:
        """Set the timer of this name anew."""
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(seconds, callback)

    def _leave(self, error: EngineDead | None) -> None:
        """End `run`, which raises `error` if there is one."""
        if self._over is None or self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    def _die(self, how: str = "died") -> None:
        """Fail what is open and leave the loop: an engine that died does not come back."""
        death = EngineDead(f"the engine process {how}")
        for call in list(self._calls.values()):
            self._fail(call, death)
        self._port.flush()
        self._leave(death)

    def _count_steps(self) -> None:
        """Count the engine's steps where their outputs come in; AsyncLLM itself tells nobody."""
        processor = self._engine.output_processor
        process_outputs = processor.process_outputs

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            return process_outputs(*args, **kwargs)

        processor.process_outputs = counted


async def _build(config: Any, engine_args: Any) -> tuple[AsyncLLM, tuple[Any, ...]]:
    """Build the engine inside the running loop, where its output handler can start at once."""
    engine = AsyncLLM.from_vllm_config(
        config,
        usage_context=USAGE,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return engine, await engine.get_supported_tasks()
