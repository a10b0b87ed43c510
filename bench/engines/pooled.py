"""A pool of this project with one worker; its blocking client, and its asyncio client for streams.

Usage: pooled.py off|on generate|embed
"""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.children import cpu_seconds, resident_mb
from bench.engines.work import BACKGROUND, EMBED_ARGS, TEXTS, fresh_prompts, prompts, timed
from bench.measure import timed_calls
from bench.peers.harness import serve
from bench.workload import BATCH_PARAMS, ENGINE_ARGS, ENGINE_ENV, ONE_PARAMS, ONE_PROMPT

from vllmport.pool import AsyncLLM, AsyncPool, Pool, SamplingParams

ONE = SamplingParams(**ONE_PARAMS)
MANY = SamplingParams(**BATCH_PARAMS)
LONG = SamplingParams(temperature=0.0, max_tokens=2048, ignore_eos=True)


class Generator:
    """A model that generates."""

    def __init__(self, pool: Pool, options: dict[str, Any]) -> None:
        self._llm = pool.llm("tiny", **options)
        self._runner = asyncio.Runner()
        self._later: AsyncLLM = self._runner.run(self._connect(pool.endpoint, options))
        self._supervisor = int(pool.status()["supervisor"]["pid"])

    async def _connect(self, endpoint: str, options: dict[str, Any]) -> AsyncLLM:
        pool = await AsyncPool.connect(endpoint)
        return await pool.llm("tiny", **options)

    def first(self) -> str:
        """Return the first token."""
        return self._llm.generate(ONE_PROMPT, ONE)[0].outputs[0].text

    def final(self, count: int) -> float:
        """Return the tokens a second of a batch."""
        took, found = timed(lambda: self._llm.generate(prompts(count), MANY))
        return sum(len(output.outputs[0].token_ids) for output in found) / float(took)

    def streamed(self, count: int) -> float:
        """Return the tokens a second of all streams together."""
        took, tokens = timed(lambda: self._runner.run(self._all(count)))
        return float(tokens / took)

    def watched(self, count: int) -> dict[str, float]:
        """Stream, and return what the supervisor used meanwhile: share of a core, MB."""
        before = cpu_seconds([self._supervisor])
        took, tokens = timed(lambda: self._runner.run(self._all(count)))
        used = (cpu_seconds([self._supervisor]) - before) / took
        return {"rate": tokens / took, "cpu": used, "rss": resident_mb(self._supervisor)}

    def ttft(self, count: int) -> list[float]:
        """Return the ms to the first token of `count` streams, one after the other, under load."""
        return self._runner.run(self._under_load(count))

    async def _all(self, count: int) -> int:
        return sum(await asyncio.gather(*(self._read(prompt) for prompt in prompts(count))))

    async def _read(self, prompt: str) -> int:
        tokens = 0
        async for delta in self._later.stream(prompt, MANY):
            tokens += len(delta.token_ids)
        return tokens

    async def _under_load(self, count: int) -> list[float]:
        async def load(prompt: str) -> None:
            while True:
                async for _ in self._later.stream(prompt, LONG):
                    pass

        loads = [asyncio.create_task(load(prompt)) for prompt in prompts(BACKGROUND)]
        await asyncio.sleep(0.3)
        took = []
        for prompt in fresh_prompts(count):
            start = time.perf_counter()
            async for _ in self._later.stream(prompt, ONE):
                break
            took.append((time.perf_counter() - start) * 1e3)
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        return took


def make(mode: str, task: str) -> dict[str, Callable[..., Any]]:
    """Start the pool; return what it can do."""
    pool = Pool()
    options: dict[str, Any] = {"v1_multiprocessing": mode, "env": ENGINE_ENV}
    if task == "embed":
        embedder = pool.llm("tiny", **options, **EMBED_ARGS)
        embedder.embed(TEXTS[:8])

        def embed() -> float:
            took, found = timed(lambda: embedder.embed(TEXTS))
            return len(found) / float(took)

        return {"embed": embed}
    generator = Generator(pool, {**options, **ENGINE_ARGS})
    return {
        "close": pool.close,
        "first": generator.first,
        "one_token": lambda count: timed_calls(generator.first, count),
        "final": generator.final,
        "streamed": generator.streamed,
        "watched": generator.watched,
        "ttft": generator.ttft,
    }


if __name__ == "__main__":
    serve(lambda: make(*sys.argv[1:]))
