"""What a pool costs while it does nothing."""

import time

import psutil

from processes import SLACK, worker_of
from vllmport.pool import LLM, Pool

MB = 10**6


def rss(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / MB


def test_supervisor_and_spawner_are_small(shared_pool: Pool, echo: LLM) -> None:
    echo.generate(["warm up"] * 100)
    status = shared_pool.status()
    supervisor, spawner = rss(status["supervisor"]["pid"]), rss(status["spawner"]["pid"])
    assert supervisor < 40, f"{supervisor:.1f} MB"
    assert spawner < 25, f"{spawner:.1f} MB"


def test_idle_pool_uses_no_processor(shared_pool: Pool, echo: LLM) -> None:
    seconds = 3.0
    status = shared_pool.status()
    pids = [status["supervisor"]["pid"], status["spawner"]["pid"], worker_of(shared_pool)["pid"]]
    processes = [psutil.Process(pid) for pid in pids]

    def used() -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in processes]

    before = used()
    time.sleep(seconds)  # not a wait for anything: this is the idleness that is measured
    shares = [(after - start) / seconds for after, start in zip(used(), before, strict=True)]
    assert all(share < 0.01 * SLACK for share in shares), shares
