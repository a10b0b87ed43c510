"""The death of a process that the engine needs is seen at once; others may come and go."""

import multiprocessing
import queue
import subprocess
import sys
import time

import pytest

from processes import SLACK, eventually
from vllmport.worker import relatives
from vllmport.worker.relatives import Watch, engine_processes

WORKER = "VLLM::Worker_TP0"
SLEEP = "import time; time.sleep(60)"
NEST = f"""
import subprocess, sys
child = subprocess.Popen(["VLLM::Worker_TP1", "-c", {SLEEP!r}], executable={sys.executable!r})
try:
    sys.stdin.read()
finally:
    child.kill()
"""


def sleeper(title: str) -> "subprocess.Popen[bytes]":
    """Start a process with a title, as vLLM gives one to each of its own."""
    return subprocess.Popen([title, "-c", SLEEP], executable=sys.executable)


def test_the_first_to_end_is_told() -> None:
    told: queue.Queue[int] = queue.Queue()
    with sleeper(WORKER) as one, sleeper("VLLM::EngineCore") as other:
        try:
            assert set(engine_processes()) == {one.pid, other.pid}
            Watch(told.put).loaded()
            other.kill()
            assert told.get(timeout=0.2 * SLACK) == other.pid
        finally:
            one.kill()
            other.kill()


def test_the_processes_of_an_engine_core_are_watched_as_well() -> None:
    arguments = ["VLLM::EngineCore", "-c", NEST]
    with subprocess.Popen(arguments, executable=sys.executable, stdin=subprocess.PIPE) as core:
        eventually(lambda: len(engine_processes()) == 2)
        assert core.pid in engine_processes()


def test_the_title_is_the_one_that_vllm_was_told_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PROCESS_NAME_PREFIX", "MINE")
    with sleeper(WORKER) as other, sleeper("MINE::Worker_TP0") as mine:
        try:
            assert engine_processes() == [mine.pid]
        finally:
            other.kill()
            mine.kill()


# Another test of the same process may have ended the tracker that multiprocessing had started.
@pytest.mark.filterwarnings("ignore:resource_tracker. process died unexpectedly")
def test_a_helper_that_ends_is_nobodys_death() -> None:
    told: queue.Queue[int] = queue.Queue()
    context = multiprocessing.get_context("spawn")
    started = context.Process(target=time.sleep, args=(60,))  # with a resource tracker
    started.start()
    with sleeper(WORKER) as worker, sleeper("sleep 60") as helper:
        try:
            assert engine_processes() == [worker.pid]
            Watch(told.put).loaded()
            helper.kill()
            started.kill()
            helper.wait()
            started.join()
            worker.kill()
            assert told.get(timeout=0.2 * SLACK) == worker.pid
        finally:
            for process in (helper, started, worker):
                process.kill()


def test_one_that_is_gone_before_it_is_watched_is_told_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: queue.Queue[int] = queue.Queue()
    with sleeper(WORKER) as one:
        one.kill()
    monkeypatch.setattr(relatives, "engine_processes", lambda: [one.pid])
    Watch(told.put).loaded()
    assert told.get(timeout=0.2 * SLACK) == one.pid


def test_who_closes_the_watch_may_let_them_end() -> None:
    told: queue.Queue[int] = queue.Queue()
    with sleeper(WORKER) as one:
        watch = Watch(told.put)
        watch.loaded()
        watch.close()
        one.kill()
        one.wait()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.2)


def test_one_that_ends_while_the_engine_loads_is_told_after_a_while() -> None:
    told: queue.Queue[int] = queue.Queue()
    watch = Watch(told.put, grace=1.0)
    with sleeper(WORKER) as one:
        time.sleep(1.0)
        one.kill()
        one.wait()
        with pytest.raises(queue.Empty):
            told.get(timeout=0.5)
        assert told.get(timeout=1.5 * SLACK) == one.pid
    watch.close()


def test_whoever_says_it_better_closes_the_watch_of_a_load() -> None:
    told: queue.Queue[int] = queue.Queue()
    watch = Watch(told.put, grace=1.0)
    with sleeper(WORKER) as one:
        time.sleep(1.0)
        one.kill()
        one.wait()
    watch.close()
    with pytest.raises(queue.Empty):
        told.get(timeout=2.5)
