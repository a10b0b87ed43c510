"""The number that all that comes from a worker carries."""

import os
import resource
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import SLACK, eventually
from vllmport.pool.marks import (
    bearers,
    can_mark,
    is_mark,
    mark_in,
    mark_of,
    new_run,
    run_of,
    supervisor_of,
)
from vllmport.pool.processes import WORKER_TAG

PIDS = st.integers(1, 2**22 - 1)


@given(PIDS, st.integers(1, 2**20))
def test_mark_tells_its_supervisor_and_its_run(supervisor: int, incarnation: int) -> None:
    run = new_run(supervisor)
    mark = mark_in(run, incarnation)
    assert is_mark(mark)
    assert run_of(mark) == run_of(run) == run
    assert supervisor_of(mark) == supervisor
    assert mark != run


@given(PIDS)
def test_mark_is_a_limit_that_limits_nothing(supervisor: int) -> None:
    century = 100 * 365 * 86400 * 10**6
    assert century < mark_in(new_run(supervisor), 1) < 2**63
    assert len(str(mark_in(new_run(supervisor), 1))) == 19


@given(st.integers(-1, 2**62))
def test_limits_that_others_set_are_no_marks(limit: int) -> None:
    assert not is_mark(limit)


def test_incarnations_have_marks_of_their_own() -> None:
    run = new_run(os.getpid())
    assert len({mark_in(run, number) for number in range(1, 4096)}) == 4095


def test_two_runs_of_one_supervisor_differ() -> None:
    assert len({new_run(1) for _ in range(10)}) > 1


def sleeper(mark: int, *, limit: bool, tag: bool) -> "subprocess.Popen[bytes]":
    code = (
        "import resource, sys, time\n"
        f"if {limit}: resource.setrlimit(resource.RLIMIT_RTTIME, ({mark}, -1))\n"
        "print(flush=True); time.sleep(3600)"
    )
    env = {WORKER_TAG: str(mark)} if tag else {}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    assert child.stdout is not None
    child.stdout.readline()
    return child


@pytest.mark.parametrize(("limit", "tag"), [(True, False), (False, True), (True, True)])
def test_process_is_found_by_limit_or_environment(limit: bool, tag: bool) -> None:  # noqa: FBT001
    assert can_mark()
    mark = mark_in(new_run(os.getpid()), 7)
    with sleeper(mark, limit=limit, tag=tag) as child:
        assert mark_of(child.pid) == mark
        assert list(bearers(lambda found: found == mark)) == [psutil.Process(child.pid)]
        assert list(bearers(lambda found: found == mark + 1)) == []
        child.kill()
        eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert list(bearers(lambda found: found == mark)) == [], "a zombie cannot be killed"


def test_process_without_a_mark_has_none() -> None:
    with sleeper(0, limit=False, tag=False) as child:
        assert mark_of(child.pid) is None
        child.kill()
    assert mark_of(child.pid) is None, "gone"


def test_looking_at_all_processes_is_cheap() -> None:
    count = len(psutil.pids())
    start = time.process_time()
    for _ in range(10):
        assert list(bearers(lambda _: False)) == []
    took = (time.process_time() - start) / 10
    assert took < SLACK * 50e-6 * count, f"{took * 1e3:.1f} ms for {count} processes"


def test_a_finite_limit_leaves_only_the_environment() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_RTTIME, (5, 5));"
        "from vllmport.pool.marks import *; put_mark(mark_in(new_run(1), 1));"
        "print(can_mark(), resource.getrlimit(resource.RLIMIT_RTTIME))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False (5, 5)\n"
    assert resource.getrlimit(resource.RLIMIT_RTTIME)[1] == resource.RLIM_INFINITY
