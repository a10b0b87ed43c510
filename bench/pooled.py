"""vllmport's own pool, through its public client: the contender that this project is about."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from bench.measure import rate, timed_calls
from bench.workload import (
    BATCH_PARAMS,
    BATCH_PROMPTS,
    ECHO_VALUE,
    ENGINE_ARGS,
    ENGINE_ENV,
    IN_FLIGHT,
    IN_FLIGHT_CALLS,
    ONE_PARAMS,
    ONE_PROMPT,
)

from vllmport.pool import AsyncLLM, AsyncPool, Pool, SamplingParams

ONE = SamplingParams(**ONE_PARAMS)
MANY = SamplingParams(**BATCH_PARAMS)


class Pooled:
    """One pool with the tiny model and the echo engine, a sync and an async client of it.

    Args:
        pool: Started and owned by the caller.
        runner: Runs the async client.
    """

    def __init__(self, pool: Pool, runner: asyncio.Runner) -> None:
        self._pool = pool
        self._runner = runner
        self._options: dict[str, Any] = {
            "v1_multiprocessing": "off",
            "env": ENGINE_ENV,
            **ENGINE_ARGS,
        }
        self._echo = pool.llm("echo")
        self._llm = pool.llm("tiny", **self._options)
        self._async_pool: AsyncPool = runner.run(_connect(pool.endpoint))
        self._async_llm: AsyncLLM = runner.run(
            _opened(self._async_pool.llm("tiny", **self._options))
        )
        self._async_echo: AsyncLLM = runner.run(_opened(self._async_pool.llm("echo")))
        status = pool.status()
        self.supervisor = int(status["supervisor"]["pid"])
        self.workers = {worker["model"]: int(worker["pid"]) for worker in status["workers"]}

    def close(self) -> None:
        """Leave with the async client; the pool is the caller's."""
        self._runner.run(self._async_pool.aclose())

    def first_token(self) -> str:
        """Return the first token."""
        return self._llm.generate(ONE_PROMPT, ONE)[0].outputs[0].text

    def one_token(self, count: int) -> list[float]:
        """Return how long each of `count` one-token calls took, in ms."""
        return timed_calls(lambda: self._llm.generate(ONE_PROMPT, ONE), count)

    def final(self, passes: int) -> list[float]:
        """Return the tokens a second of each batch."""
        return [rate(self._batch) for _ in range(passes)]

    def streamed(self, passes: int) -> list[float]:
        """Return the tokens a second of all streams together, one task for each."""
        return [rate(lambda: self._runner.run(self._all_streams())) for _ in range(passes)]

    def streamed_by_threads(self, passes: int) -> list[float]:
        """Do the same with one thread for each stream."""
        return [rate(lambda: self._by_threads(self._stream, BATCH_PROMPTS)) for _ in range(passes)]

    def echo(self, count: int) -> list[float]:
        """Return how long each of `count` echo calls took, in ms."""
        return timed_calls(lambda: self._echo.call("echo", ECHO_VALUE), count)

    def echo_in_flight(self) -> float:
        """Return the calls a second of `IN_FLIGHT` tasks."""
        return rate(lambda: self._runner.run(self._all_echoes()))

    def echo_in_flight_by_threads(self) -> float:
        """Do the same with threads."""
        return rate(lambda: self._by_threads(self._echoes, [""] * IN_FLIGHT))

    def _batch(self) -> int:
        outputs = self._llm.generate(BATCH_PROMPTS, MANY)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def _stream(self, prompt: str) -> int:
        return sum(len(delta.token_ids) for delta in self._llm.stream(prompt, MANY))

    def _echoes(self, _: str) -> int:
        for _number in range(IN_FLIGHT_CALLS):
            self._echo.call("echo", ECHO_VALUE)
        return IN_FLIGHT_CALLS

    def _by_threads(self, work: Callable[[str], int], items: list[str]) -> int:
        counts: list[int] = []
        threads = [threading.Thread(target=lambda i=item: counts.append(work(i))) for item in items]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    async def _all_streams(self) -> int:
        return sum(await asyncio.gather(*map(self._async_stream, BATCH_PROMPTS)))

    async def _async_stream(self, prompt: str) -> int:
        tokens = 0
        async for delta in self._async_llm.stream(prompt, MANY):
            tokens += len(delta.token_ids)
        return tokens

    async def _all_echoes(self) -> int:
        return sum(await asyncio.gather(*(self._async_echoes() for _ in range(IN_FLIGHT))))

    async def _async_echoes(self) -> int:
        for _ in range(IN_FLIGHT_CALLS):
            await self._async_echo.call("echo", ECHO_VALUE)
        return IN_FLIGHT_CALLS


async def _connect(endpoint: str) -> AsyncPool:
    return await AsyncPool.connect(endpoint)


async def _opened(llm: AsyncLLM) -> AsyncLLM:
    return await llm
