"""v1_multiprocessing on: vLLM's engine in a process of its own, served by an asyncio loop here.

The engine is built in the main thread and its loop runs there too: its process is tied to the
thread that started it. Imports vLLM: only for workers that run it.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from vllmport.bridge.errors import EngineDead
from vllmport.worker.engine import Port
from vllmport.worker.engines.vllm_arguments import USAGE
from vllmport.worker.engines.vllm_call import Call
from vllmport.worker.engines.vllm_driver import VllmDriver, warm_up_request

BEAT = 0.5
"""Seconds between two looks at whether an idle engine lives and the port is still open."""


class AsyncVllm(VllmDriver):
    """Drives an `AsyncLLM`: one task for each request, and one turn of sending for all of them."""

    mode = "on"

    def __init__(self, config: Any, engine_args: Any, port: Port, loras: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        engine, tasks = self._loop.run_until_complete(_build(config, engine_args))
        super().__init__(engine, port, tasks, loras)
        self._over: asyncio.Future[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._turn_is_due = False
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

    def close(self) -> None:
        """Abort what is open, and end the engine's processes; takes up to five seconds."""
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

    def _die(self) -> None:
        """Fail what is open and leave the loop: an engine that died does not come back."""
        death = EngineDead("the engine process died")
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
