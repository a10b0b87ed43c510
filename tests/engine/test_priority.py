"""An engine that computes on all processors leaves those who wait for it their turn."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import eventually
from vllmport.pool import AsyncLLM, AsyncPool, DeadlineExceeded, Pool

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(200)]

ENDLESS = {"max_tokens": 7000, "ignore_eos": True}
AT_ONCE = 32


@pytest.fixture(scope="module")
def alone() -> Iterator[Pool]:
    """An engine in processes of its own, which vLLM binds to processors as it does by itself."""
    with Pool(policy={"standby_delay": 0.1}) as pool:
        pool.llm("tiny", v1_multiprocessing="on")
        yield pool


def share(pid: int) -> str:
    """The nice value of the session of a process."""
    return Path(f"/proc/{pid}/autogroup").read_text().split()[-1]


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this kernel does not divide by sessions"
)
def test_a_worker_asks_for_less_than_its_supervisor_and_a_standby_for_less(alone: Pool) -> None:
    status = alone.status()
    standby = eventually(lambda: next((s["pid"] for s in alone.status()["standbys"]), 0), 60)
    assert share(status["supervisor"]["pid"]) == "0"
    assert share(status["workers"][0]["pid"]) == "5"
    eventually(lambda: share(standby) == "10")


def test_callers_hear_of_expiry_though_the_engine_takes_all_processors(alone: Pool) -> None:
    eventually(lambda: any(s["waiting"] for s in alone.status()["standbys"]), 60)
    late: list[float] = []

    async def call(llm: AsyncLLM, number: int) -> None:
        budget = 0.1 + 0.03 * (number % 10)
        end = time.monotonic() + budget
        with pytest.raises(DeadlineExceeded):
            async for _ in llm.stream(f"{number} 1 2", ENDLESS, timeout=budget):
                pass
        late.append(time.monotonic() - end)

    async def wave() -> None:
        async with await AsyncPool.connect(alone.endpoint) as here:
            llm = await here.llm(name="tiny")
            for first in range(0, 10 * AT_ONCE, AT_ONCE):
                await asyncio.gather(*(call(llm, first + n) for n in range(AT_ONCE)))

    asyncio.run(wave())
    late.sort()
    assert late[len(late) * 9 // 10] < 0.2, "a quarter of a second with an equal share"
