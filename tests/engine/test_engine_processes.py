"""The processes of an engine that are killed while it loads, or stopped while it works."""

import os
import signal
import threading

import psutil
import pytest

from processes import eventually, worker_of
from vllmport.pool import Pool, WorkerLost

GREEDY = {"temperature": 0, "max_tokens": 4}
LONG = {"max_tokens": 8000, "ignore_eos": True}
FRANCE = "The capital of France is"


def engine_core(pool: Pool) -> psutil.Process | None:
    """Return the process of the engine, once there is one."""
    pid = worker_of(pool)["pid"]
    if not pid:
        return None
    found = psutil.Process(pid).children(recursive=True)
    return next((process for process in found if "EngineCor" in process.name()), None)


@pytest.mark.timeout(500)
def test_an_engine_that_is_killed_or_stopped_is_replaced() -> None:
    with Pool(policy={"standby": False, "stall_timeout": 5.0}) as pool:
        llm = pool.llm("tiny", v1_multiprocessing="on", wait=False)

        def kill_once() -> None:
            core = eventually(lambda: engine_core(pool), 200)
            assert core is not None
            os.kill(core.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_once)
        killer.start()
        answer = llm.generate(FRANCE, GREEDY, timeout=350)  # its load is simply tried again
        killer.join()
        assert answer[0].outputs[0].text == " Paris."
        assert worker_of(pool)["restarts"] == 1

        stream = llm.stream("1 2 3", LONG)
        next(stream)
        core = engine_core(pool)
        assert core is not None
        os.kill(core.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="hung: it holds 1 calls and made no step"):
            list(stream)
        eventually(lambda: not core.is_running())
