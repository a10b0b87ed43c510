"""Starts that wait for room, with the GPUs read by a real child."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, identify
from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.config import tiny_model_path
from vllmport.pool.gpu import INTERVAL, LEISURE
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.admission import Decision, Grant, Refusal
from vllmport.pool.supervisor.descriptors import Descriptors
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.starts import Starts

VLLM = ModelSpec("m", tiny_model_path(), engine_args={"gpu_memory_utilization": 0.5})
BOTH = ModelSpec("m", tiny_model_path(), engine_args={"tensor_parallel_size": 2})


class Loop:
    """What the supervisor's loop does for its starts."""

    def __init__(self, *, gpus: bool, recycle_gpu_memory: int = 0) -> None:
        self.descriptors = Descriptors()
        self.decisions: list[Decision] = []
        self.starts = Starts(
            Policy(max_loads=2, recycle_gpu_memory=recycle_gpu_memory),
            EventLog(time.time),
            self.descriptors,
            lambda decision, _now: self.decisions.append(decision),
            environ={},
            gpus=gpus,
        )

    def ask(self, **specs: ModelSpec) -> None:
        for worker, spec in specs.items():
            self.starts.ask(worker, spec, time.monotonic())

    def turn(self, limit: float) -> None:
        self.descriptors.wait(min(self.starts.next_deadline(), limit) - time.monotonic())
        if self.starts.next_deadline() <= time.monotonic():
            self.starts.tick(time.monotonic())

    def decided(self, count: int = 1) -> list[Decision]:
        """Turn until so much is decided."""
        end = time.monotonic() + PATIENCE
        while len(self.decisions) < count:
            assert time.monotonic() < end, self.starts.describe()
            self.turn(end)
        decisions, self.decisions = self.decisions, []
        return decisions


@pytest.fixture
def loop(driver: pytest.MonkeyPatch) -> Iterator[Loop]:
    """On a machine with the two GPUs of the driver that stands in, 900 and 600 bytes free."""
    loop = Loop(gpus=True)
    yield loop
    loop.starts.close()


def test_without_gpus_starts_wait_for_their_turn_only() -> None:
    loop = Loop(gpus=False)
    echo = ModelSpec("e", "echo", engine="echo")
    loop.ask(a=echo, b=echo, c=echo)
    assert loop.decided(2) == [Grant("a"), Grant("b")]
    assert loop.starts.next_deadline() == float("inf")
    loop.starts.loaded("a", time.monotonic())
    assert loop.decided() == [Grant("c")]
    assert loop.starts.has_room(VLLM)
    loop.starts.close()


def test_a_start_waits_for_a_reading_and_is_given_its_device(loop: Loop) -> None:
    loop.ask(a=VLLM)
    assert loop.decisions == []
    assert loop.decided() == [Grant("a", (0,))]
    assert loop.starts.describe()["unreadable"] == ""


def test_nothing_reads_the_gpus_while_nobody_waits(loop: Loop) -> None:
    assert loop.starts._watch is not None
    assert (loop.starts._watch.pid, loop.starts.next_deadline()) == (0, float("inf"))
    loop.ask(a=VLLM)
    loop.turn(time.monotonic())
    (child,) = identify(loop.starts._watch.pid)
    loop.decided()
    end = time.monotonic() + PATIENCE
    while child.is_running() and time.monotonic() < end:
        loop.turn(time.monotonic() + 0.1)
    assert not child.is_running()
    assert loop.starts.next_deadline() == float("inf")


@pytest.fixture
def watching(driver: pytest.MonkeyPatch) -> Iterator[Loop]:
    """On the same machine, where workers that use too much are to be replaced."""
    loop = Loop(gpus=True, recycle_gpu_memory=1)
    yield loop
    loop.starts.close()


def test_memory_of_processes_is_summed_over_all_gpus(
    driver: pytest.MonkeyPatch, watching: Loop, tmp_path: Path
) -> None:
    (tmp_path / "user").write_text("77 150")
    driver.setenv("FAKE_NVML_USER", str(tmp_path / "user"))
    watching.ask(a=VLLM)
    watching.decided()
    assert watching.starts.gpu_memory([76, 77]) == 300
    assert watching.starts.gpu_memory([4242]) == 0


def test_gpus_are_read_at_leisure_where_memory_is_watched(watching: Loop) -> None:
    watching.ask(e=ModelSpec("e", "echo", engine="echo"))
    assert watching.decided() == [Grant("e")]
    reads_each(watching, LEISURE)
    watching.ask(a=VLLM)
    assert watching.decided() == [Grant("a", (0,))]
    reads_each(watching, LEISURE)
    watching.starts.gone("a", time.monotonic())
    reads_each(watching, INTERVAL)
    reads_each(watching, LEISURE)


def reads_each(loop: Loop, seconds: float) -> None:
    """Turn until there is a child of this pace."""
    watch = loop.starts._watch
    assert watch is not None
    end = time.monotonic() + PATIENCE
    while not watch.pid or identify(watch.pid)[0].cmdline()[-1:] != [str(seconds)]:
        assert time.monotonic() < end
        loop.turn(time.monotonic() + 0.02)


def test_what_was_used_before_the_driver_failed_does_not_count(watching: Loop) -> None:
    watching.ask(a=VLLM)
    watching.decided()
    assert watching.starts.gpu_memory([4242]) == 300
    watching.starts._admission.unread("it hangs", time.monotonic())
    assert watching.starts.gpu_memory([4242]) == 0


def test_what_can_never_be_is_refused(loop: Loop) -> None:
    loop.ask(a=ModelSpec("m", tiny_model_path(), engine_args={"tensor_parallel_size": 3}))
    (refusal,) = loop.decided()
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, InvalidRequest)


def test_a_driver_that_fails_holds_nobody_up(driver: pytest.MonkeyPatch, loop: Loop) -> None:
    driver.setenv("FAKE_NVML", "memory")
    loop.ask(a=VLLM)
    assert loop.decided() == [Grant("a")]
    assert "GPU is lost" in str(loop.starts.describe()["unreadable"])


def test_a_start_that_is_no_longer_wanted_is_taken_back(loop: Loop) -> None:
    loop.ask(a=VLLM)
    assert loop.starts.withdraw("a", time.monotonic())
    assert not loop.starts.withdraw("a", time.monotonic())


def test_a_worker_that_ends_gives_its_device_back(loop: Loop, tmp_path: Path) -> None:
    most = ModelSpec("m", str(tmp_path), engine_args={"gpu_memory_utilization": 0.9})
    loop.ask(a=most)
    assert loop.decided() == [Grant("a", (0,))]
    loop.starts.loaded("a", time.monotonic())
    assert loop.starts.has_room(VLLM), "on the other device"
    assert not loop.starts.has_room(BOTH)
    loop.starts.gone("a", time.monotonic())
    loop.ask(b=most)
    assert loop.decided() == [Grant("b", (0,))]
