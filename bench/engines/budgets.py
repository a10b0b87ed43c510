"""Calls whose time runs out: how late the caller knows, and what the engine does after it.

Usage: budgets.py echo|off|on
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.engines.work import fresh_prompts
from bench.peers.harness import serve
from bench.workload import ENGINE_ARGS, ENGINE_ENV

from vllmport.pool import LLM, AsyncLLM, AsyncPool, DeadlineExceeded, Pool, SamplingParams

ENDLESS = SamplingParams(temperature=0.0, max_tokens=7000, ignore_eos=True)
STEP = 0.002
"""Seconds that a step of the echo engine takes here: it would be done before its time is over."""
AT_ONCE = 32


class Budgets:
    """One pool with one model."""

    def __init__(self, mode: str) -> None:
        self._pool = Pool()
        if mode == "echo":
            self._llm: LLM = self._pool.llm("echo", name="m", step_delay=STEP)
        else:
            args: dict[str, Any] = {**ENGINE_ARGS, "env": ENGINE_ENV}
            self._llm = self._pool.llm("tiny", name="m", v1_multiprocessing=mode, **args)
        self._runner = asyncio.Runner()
        self._later: AsyncLLM = self._runner.run(self._connect())
        self._llm.generate("1 2 3", SamplingParams(temperature=0.0, max_tokens=8))

    async def _connect(self) -> AsyncLLM:
        pool = await AsyncPool.connect(self._pool.endpoint)
        return await pool.llm(name="m")

    def alone(self, count: int) -> dict[str, list[float]]:
        """Let calls expire one after the other: ms too late, steps that the engine made after."""
        late, steps = [], []
        for prompt in fresh_prompts(count):
            budget = random.uniform(0.05, 0.25)  # noqa: S311  # no secret
            before, start = self._steps(), time.perf_counter()
            try:
                self._llm.generate(prompt, ENDLESS, timeout=budget)
            except DeadlineExceeded as exc:
                late.append((time.perf_counter() - start - budget) * 1e3)
                steps.append(float(self._steps() - before - exc.tokens))
        return {"late": late, "steps": steps}

    def many(self, count: int) -> dict[str, Any]:
        """Let `count` calls expire, many at a time; see what was generated, and what for."""
        before = self._tokens()
        late, reported, in_time = self._runner.run(self._many(count))
        generated = self._tokens() - before
        return {"late": late, "generated": generated, "reported": reported, "in_time": in_time}

    async def _many(self, count: int) -> tuple[list[float], int, int]:
        room = asyncio.Semaphore(AT_ONCE)
        late: list[float] = []
        reported = in_time = 0

        async def one(prompt: str) -> None:
            nonlocal reported, in_time
            budget = random.uniform(0.02, 0.4)  # noqa: S311  # no secret
            async with room:
                end = time.perf_counter() + budget
                try:
                    async for delta in self._later.stream(prompt, ENDLESS, timeout=budget):
                        in_time += len(delta.token_ids) * (time.perf_counter() <= end)
                except DeadlineExceeded as exc:
                    late.append((time.perf_counter() - end) * 1e3)
                    reported += exc.tokens

        await asyncio.gather(*(one(prompt) for prompt in fresh_prompts(count)))
        return late, reported, in_time

    def _idle(self) -> dict[str, Any]:
        """Wait until the engine holds nothing; return what `status` says of the worker."""
        while True:
            status = self._pool.status()
            worker: dict[str, Any] = status["workers"][0]
            if not worker["in_flight"] and not worker["unfinished"]:
                return {**worker, "tokens": status["counters"]["tokens"]}

    def _steps(self) -> int:
        return int(self._idle()["steps"])

    def _tokens(self) -> int:
        return int(self._idle()["tokens"])


def make(mode: str) -> dict[str, Callable[..., Any]]:
    """Return what can be asked."""
    budgets = Budgets(mode)
    return {"alone": budgets.alone, "many": budgets.many}


if __name__ == "__main__":
    serve(lambda: make(sys.argv[1]))
