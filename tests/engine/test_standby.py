"""A standby makes the return of a killed engine quick."""

import os
import signal
import time

import pytest

from processes import eventually, identify, is_running, worker_pid
from vllmport.pool import Pool

GREEDY = {"temperature": 0, "max_tokens": 4}
FRANCE = "The capital of France is"
SOON = 5.0
"""Seconds from SIGKILL to the next right answer, promised for the engine off."""

BUSY = 5


@pytest.mark.timeout(300)
def test_a_killed_engine_comes_back_from_its_standby() -> None:
    with Pool(policy={"standby_delay": 0.1}) as pool, pool.events() as stream:
        llm = pool.llm("tiny", v1_multiprocessing="off")
        eventually(lambda: any(s["waiting"] for s in pool.status()["standbys"]), 60)
        (standby,) = pool.status()["standbys"]
        begun = time.monotonic()
        os.kill(worker_pid(pool), signal.SIGKILL)
        assert llm.generate(FRANCE, GREEDY, retry="resume")[0].outputs[0].text == " Paris."
        assert time.monotonic() - begun < SOON * BUSY
        assert worker_pid(pool) == standby["pid"], "the standby is the worker now"
        eventually(lambda: any(s["waiting"] for s in pool.status()["standbys"]), 60)
        (another,) = pool.status()["standbys"]
        (process,) = identify(another["pid"])
        pool.unload("tiny")
        eventually(lambda: not is_running(process))
        names: list[str] = []
        while not names or names[-1] != "standby.gone":
            event = stream.get(10)
            assert event is not None
            names.append(event["event"])
        told = [name for name in names if name.startswith("standby.")]
        assert told == ["standby.ready", "standby.adopted", "standby.ready", "standby.gone"]
