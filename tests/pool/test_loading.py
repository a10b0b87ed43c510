"""Who loads for long, and who will not come up any more."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import eventually
from vllmport.pool.supervisor.loading import BUSY, MOVING, Effort, Loading
from vllmport.pool.supervisor.vitals import effort

STALL = 40.0


class Bench:
    """One process that loads; each look is an interval later."""

    def __init__(self, stall_timeout: float = STALL) -> None:
        self.it = Loading(stall_timeout)
        self.now = 100.0
        self.effort = Effort(0.0, 0)
        self.it.watch("w", "m", self.now)

    def look(self, *, cpu: float = 0.0, moved: float = 0) -> str | None:
        """Look again; `cpu` and `moved` are what was done in each second since."""
        self.now += self.it.interval
        before, seconds = self.effort, self.it.interval
        self.effort = Effort(before.cpu + cpu * seconds, before.moved + int(moved * seconds))
        return self.it.look("w", self.effort, self.now)

    def verdict_after(self, seconds: float, *, cpu: float = 0.0, moved: float = 0) -> str | None:
        for _ in range(round(seconds / self.it.interval)):
            verdict = self.look(cpu=cpu, moved=moved)
            if verdict is not None:
                return verdict
        return None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_load_that_shows_nothing_stalls_after_the_stall_timeout(bench: Bench) -> None:
    assert bench.verdict_after(STALL - bench.it.interval) is None
    verdict = bench.look()
    assert verdict is not None
    assert "for 40.0 s it reported nothing, did not compute and moved no data" in verdict
    assert "load_stall_timeout = 40" in verdict


@pytest.mark.parametrize(
    "doing", [{"cpu": 2 * BUSY}, {"moved": 2 * MOVING}], ids=["computes", "moves data"]
)
def test_a_load_that_gets_on_may_take_for_ever(bench: Bench, doing: dict[str, float]) -> None:
    assert bench.verdict_after(100 * STALL, **doing) is None
    assert bench.verdict_after(STALL) is not None, "until it gets on no more"


def test_a_load_that_reports_may_take_for_ever(bench: Bench) -> None:
    for _ in range(100):
        assert bench.verdict_after(0.75 * STALL) is None
        bench.it.reported("w")


def test_threads_that_only_wait_and_a_line_of_a_log_are_no_progress(bench: Bench) -> None:
    assert bench.verdict_after(STALL, cpu=BUSY / 2, moved=MOVING / 4) is not None


def test_a_child_that_is_gone_with_its_time_is_no_progress(bench: Bench) -> None:
    assert bench.look(cpu=1.0) is None
    assert bench.verdict_after(STALL, cpu=-0.01) is not None


def test_workers_of_one_model_get_on_together(bench: Bench) -> None:
    """One downloads; the others wait for the lock of that, and show nothing."""
    bench.it.watch("waits", "m", bench.now)
    bench.it.watch("other", "another model", bench.now)
    verdicts: dict[str, list[str | None]] = {"waits": [], "other": []}
    for _ in range(40):
        assert bench.look(moved=10 * MOVING) is None
        for worker, said in verdicts.items():
            said.append(bench.it.look(worker, Effort(1.0, 100), bench.now))
    assert not any(verdicts["waits"])
    assert any(verdicts["other"])
    bench.it.reported("waits")
    assert bench.verdict_after(STALL - bench.it.interval) is None


def test_a_machine_that_stood_still_does_not_count(bench: Bench) -> None:
    bench.now += 100 * STALL
    assert bench.look() is None


def test_what_stands_or_has_ended_is_looked_at_no_more(bench: Bench) -> None:
    assert bench.it.next_deadline() == bench.now + bench.it.interval
    assert bench.it.take_due(bench.now) == ["w"]
    bench.it.forget("w")
    bench.it.reported("w")  # its last word, read late
    assert bench.it.take_due(bench.now) == []
    assert bench.it.next_deadline() == math.inf


def test_zero_is_no_limit() -> None:
    bench = Bench(0.0)
    assert bench.verdict_after(1e5) is None


# What a process has done.


def test_the_effort_of_a_process_has_its_bytes_and_the_time_of_children_that_ended(
    tmp_path: Path,
) -> None:
    source = (
        "import os, pathlib, subprocess, sys\n"
        "pathlib.Path(sys.argv[1]).write_bytes(b'.' * 300_000)\n"
        "spin = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', spin])\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"done\n"
        found = effort([process.pid])
        process.stdin.close()
    assert found.cpu > 0.4, "counted in ticks"
    assert found.moved >= 300_000


def test_the_effort_of_what_is_gone_is_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert eventually(lambda: effort([pid]) == Effort(0.0, 0), 1)
