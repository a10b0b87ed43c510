"""What vLLM's own processes leave when they are killed: no process, no shared memory, no socket."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from checkpoints import UNBOUND
from processes import (
    SHARED_MEMORY,
    all_gone,
    at_most,
    entries,
    eventually,
    family,
    identify,
    program,
    read_line,
    shared_memory_of,
    worker_pid,
)
from vllmport.pool import Pool
from vllmport.pool.config import tiny_model_path
from vllmport.pool.processes import WORKER_TAG

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

GREEDY = {"temperature": 0, "max_tokens": 4}

FRONT = """
import asyncio, psutil, sys, time
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def main():
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=sys.argv[1], enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=2**26
        )
    )
    below = psutil.Process().children(recursive=True)
    print("engine:", *(p.pid for p in below if p.name().startswith("VLLM::")), flush=True)
    time.sleep(3600)

asyncio.run(main())
"""
"""vLLM as anybody would run it: in a process of ours by its environment, with no group kill."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(policy={"standby": False}) as pool:
        yield pool


def test_engine_processes_die_with_the_process_that_started_them() -> None:
    """Left alone they live for good; the plugin that vLLM loads in each of them arms the kernel."""
    env = {**UNBOUND, WORKER_TAG: "0", "SPT_NOENV": "1"}
    with program(sys.executable, "-c", FRONT, str(tiny_model_path()), env=env) as front:
        line = read_line(front)
        while not line.startswith("engine:"):
            line = read_line(front)
        engine = identify(*map(int, line.split()[1:]))
        assert {p.name() for p in engine} >= {"VLLM::EngineCore", "VLLM::Worker"}
        front.kill()
        with at_most(0.4):
            eventually(lambda: all_gone(engine))


def test_tensor_parallelism_makes_two_workers_and_leaves_no_shared_memory(pool: Pool) -> None:
    """Not all of it is removed by vLLM, and what it is named after is gone by then."""
    llm = pool.llm("tiny", v1_multiprocessing="on", tensor_parallel_size=2, env=UNBOUND)
    assert llm.generate("The capital of France is", GREEDY)[0].outputs[0].text == " Paris."
    assert llm.get_world_size() == 2
    worker = psutil.Process(worker_pid(pool))
    everybody = [worker, *worker.children(recursive=True)]
    assert sum("VLLM::Worker" in process.name() for process in everybody) == 2
    segments = shared_memory_of(everybody, worker.environ()[WORKER_TAG])
    assert "vllm" in {name[:4] for name in segments}
    pool.unload("tiny")
    assert not entries(SHARED_MEMORY) & segments
    eventually(lambda: all_gone(everybody))


def test_guard_cleans_up_after_an_engine_on_two_devices(pool: Pool) -> None:
    pool.llm("tiny", v1_multiprocessing="off", tensor_parallel_size=2, env=UNBOUND)
    status = pool.status()
    worker = psutil.Process(worker_pid(pool))
    environ = worker.environ()
    folder = Path(environ["TMPDIR"])
    everybody = family(pool)
    segments = shared_memory_of(everybody, environ[WORKER_TAG])
    assert {name[:4] for name in segments} == {"psm_", "sem.", "vllm"}
    pids = [status["supervisor"]["pid"], status["spawner"]["pid"], worker.pid]
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)
    with at_most(2):
        eventually(lambda: all_gone(everybody))
        eventually(lambda: not entries(SHARED_MEMORY) & segments and not folder.exists())
