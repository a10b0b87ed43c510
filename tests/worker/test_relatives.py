"""The death of a process that the engine needs is seen at once."""

import queue
import subprocess
import sys

from processes import SLACK
from vllmport.worker.relatives import Watch, engine_processes


def sleeper(*names: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *names])


def test_the_first_to_end_is_told() -> None:
    told: queue.Queue[int] = queue.Queue()
    with sleeper() as one, sleeper() as other:
        try:
            assert {one.pid, other.pid} <= set(engine_processes())
            Watch([one.pid, other.pid], told.put)
            other.kill()
            assert told.get(timeout=0.2 * SLACK) == other.pid
        finally:
            one.kill()
            other.kill()


def test_what_multiprocessing_can_do_without_is_not_watched() -> None:
    with sleeper("resource_tracker") as helper:
        try:
            assert helper.pid not in engine_processes()
        finally:
            helper.kill()


def test_who_closes_the_watch_may_let_them_end() -> None:
    told: queue.Queue[int] = queue.Queue()
    with sleeper() as one:
        watch = Watch([one.pid], told.put)
        watch.close()
        one.kill()
        one.wait()
    assert told.empty()
