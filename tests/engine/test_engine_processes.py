"""The processes of an engine that are killed while it loads, spin, or are stopped at work."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from processes import at_most, eventually, worker_of
from vllmport.pool import DeadlineExceeded, Pool, WorkerLost

GREEDY = {"temperature": 0, "max_tokens": 4}
LONG = {"max_tokens": 8000, "ignore_eos": True}
FRANCE = "The capital of France is"
GRACE = 2.0
SPINNING = """
from pathlib import Path
from vllm.v1.sample.logits_processor import LogitsProcessor

FLAG = Path(__file__).with_name("spin")

class Spinning(LogitsProcessor):
    def __init__(self, *_): pass
    def is_argmax_invariant(self): return False
    def update_state(self, _): pass
    def apply(self, logits):
        while FLAG.exists(): pass
        return logits
"""
"""Computes as long as a file is there, in the middle of a step."""


def engine_core(pool: Pool) -> psutil.Process | None:
    """Return the process of the engine, once there is one."""
    pid = worker_of(pool)["pid"]
    if not pid:
        return None
    found = psutil.Process(pid).children(recursive=True)
    return next((process for process in found if "EngineCor" in process.name()), None)


@pytest.mark.timeout(500)
def test_an_engine_that_is_killed_or_spins_or_is_stopped_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "spinning.py").write_text(SPINNING)
    spin = tmp_path / "spin"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    policy = {"standby": False, "stall_timeout": 5.0, "abort_grace": GRACE}
    with Pool(policy=policy) as pool:
        llm = pool.llm(
            "tiny",
            v1_multiprocessing="on",
            wait=False,
            logits_processors=["spinning:Spinning"],
            env={"PYTHONPATH": path},
        )

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

        spin.touch()
        with at_most(1.0), pytest.raises(DeadlineExceeded):
            llm.generate(FRANCE, GREEDY, timeout=1.0)
        with at_most(GRACE):
            eventually(lambda: worker_of(pool)["restarts"] == 2)
        spin.unlink()
        answer = llm.generate(FRANCE, GREEDY, timeout=200)
        assert answer[0].outputs[0].text == " Paris."

        stream = llm.stream("1 2 3", LONG)
        next(stream)
        core = engine_core(pool)
        assert core is not None
        os.kill(core.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="hung: it holds 1 calls and made no step"):
            list(stream)
        eventually(lambda: not core.is_running())
