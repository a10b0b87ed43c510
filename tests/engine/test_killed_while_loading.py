"""An engine whose process is killed while it loads is tried again: it was not its own fault."""

import os
import signal
import threading

import psutil
import pytest

from processes import eventually, worker_of
from vllmport.pool import Pool

GREEDY = {"temperature": 0, "max_tokens": 4}


def engine_core(pool: Pool) -> psutil.Process | None:
    """Return the process of the engine, once there is one."""
    pid = worker_of(pool)["pid"]
    if not pid:
        return None
    found = psutil.Process(pid).children(recursive=True)
    return next((process for process in found if "EngineCor" in process.name()), None)


@pytest.mark.timeout(400)
def test_an_engine_killed_while_it_loads_is_tried_again() -> None:
    with Pool(policy={"standby": False}) as pool:
        llm = pool.llm("tiny", v1_multiprocessing="on", wait=False)

        def kill_once() -> None:
            core = eventually(lambda: engine_core(pool), 200)
            assert core is not None
            os.kill(core.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_once)
        killer.start()
        answer = llm.generate("The capital of France is", GREEDY, timeout=350)
        killer.join()
        assert answer[0].outputs[0].text == " Paris."
        assert worker_of(pool)["restarts"] == 1
