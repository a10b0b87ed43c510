"""vllmport's own pool with one echo worker: the blocking client for one call, asyncio for many."""

import asyncio
import time
from typing import Any

from bench.peers.harness import SMALL, echo_verbs, serve

from vllmport.bridge.codec import Array
from vllmport.pool import AsyncLLM, AsyncPool, Pool, SamplingParams

ENDLESS = SamplingParams(max_tokens=60_000, ignore_eos=True)


class Pooled:
    """The client."""

    def __init__(self) -> None:
        self._pool = Pool()
        self._echo = self._pool.llm("echo")
        self._runner = asyncio.Runner()
        self._later: AsyncLLM = self._runner.run(self._connect())

    async def _connect(self) -> AsyncLLM:
        pool = await AsyncPool.connect(self._pool.endpoint)
        return await pool.llm("echo")

    def call(self, value: Any) -> Any:
        if not isinstance(value, bytes):
            return self._echo.call("echo", value)
        sent = {"data": Array("uint8", (len(value),), value)}  # large data travel as arrays
        return self._echo.call("echo", sent)["data"].data

    def flight(self, width: int, seconds: float) -> int:
        return self._runner.run(self._flight(width, seconds))

    def stream(self, batch: int, seconds: float) -> int:
        """Read `batch` streams at once: each message then has an item of each."""
        return self._runner.run(self._streams(batch, seconds))

    async def _flight(self, width: int, seconds: float) -> int:
        end = time.perf_counter() + seconds

        async def caller() -> int:
            done = 0
            while time.perf_counter() < end:
                await self._later.call("echo", SMALL)
                done += 1
            return done

        return sum(await asyncio.gather(*(caller() for _ in range(width))))

    async def _streams(self, width: int, seconds: float) -> int:
        end = time.perf_counter() + seconds

        async def reader() -> int:
            tokens = 0
            while time.perf_counter() < end:
                async for delta in self._later.stream("x", ENDLESS):
                    tokens += len(delta.token_ids)
                    if time.perf_counter() > end:
                        break
            return tokens

        return sum(await asyncio.gather(*(reader() for _ in range(width))))


if __name__ == "__main__":
    serve(lambda: echo_verbs(Pooled()))
