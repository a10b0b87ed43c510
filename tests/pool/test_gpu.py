"""Reading the GPUs: with a library that stands in for NVIDIA's, and with all that can go wrong."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import all_gone, at_most, eventually, identify
from vllmport.pool import gpu
from vllmport.pool.gpu import (
    INTERVAL,
    LEISURE,
    PATIENCE,
    GpuUnreadable,
    GpuWatch,
    has_gpus,
    read_gpus,
)
from vllmport.pool.supervisor.devices import DeviceReading

FIRST = DeviceReading(0, "GPU-one", 900, 0, ())
SECOND = DeviceReading(1, "GPU-two", 900, 300, (4242,), {4242: 300})


@pytest.fixture
def watch() -> Iterator[GpuWatch]:
    watch = GpuWatch()
    yield watch
    watch.close()


def script(source: str) -> tuple[str, ...]:
    """A child of our own making."""
    return (sys.executable, "-c", source)


def next_reading(watch: GpuWatch, every: float = INTERVAL) -> list[DeviceReading]:
    """Do what the supervisor does until a reading has come."""

    def look() -> list[DeviceReading] | None:
        watch.keep(time.monotonic(), wanted=True, every=every)
        watch.check(time.monotonic())
        ready, _, _ = select.select([watch], [], [], 0.1)
        return watch.receive(time.monotonic()) if ready else None

    return eventually(look) or []


# The child.


def test_the_library_tells_of_every_device(driver: pytest.MonkeyPatch) -> None:
    assert read_gpus() == [FIRST, SECOND]


def test_memory_that_the_driver_does_not_tell_is_zero(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("FAKE_NVML", "old")
    assert [(reading.total, reading.used) for reading in read_gpus()] == [(0, 0), (0, 0)]


def test_processes_that_the_driver_does_not_name_are_unknown(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("FAKE_NVML", "mute")
    assert [(reading.pids, reading.memory) for reading in read_gpus()] == [(None, {})] * 2


def test_of_a_process_whose_memory_the_driver_does_not_tell_nothing_is_known_but_its_pid(
    driver: pytest.MonkeyPatch,
) -> None:
    driver.setenv("FAKE_NVML", "shy")
    assert [(reading.pids, reading.memory) for reading in read_gpus()] == [((), {}), ((4242,), {})]


@pytest.mark.parametrize(
    ("mood", "text"),
    [
        ("init", "the NVIDIA driver does not answer"),
        ("count", "cannot read the GPUs: GPU is lost"),
        ("memory", "cannot read the GPUs: GPU is lost"),
    ],
)
def test_a_driver_that_fails_is_an_error_with_its_words(
    driver: pytest.MonkeyPatch, mood: str, text: str
) -> None:
    driver.setenv("FAKE_NVML", mood)
    with pytest.raises(GpuUnreadable, match=text):
        read_gpus()


def test_a_machine_without_the_driver_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(GpuUnreadable, match=r"does not answer.*NVIDIA_DRIVER_CAPABILITIES"):
        read_gpus()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(GpuUnreadable, match="pip install nvidia-ml-py"):
        read_gpus()


def test_a_driver_that_hangs_is_given_up(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("FAKE_NVML", "hang")
    with at_most(2.0), pytest.raises(GpuUnreadable, match="did not answer within 1 s"):
        read_gpus(patience=1.0)


def test_a_child_that_ends_without_a_word_is_an_error() -> None:
    with pytest.raises(GpuUnreadable, match="ended without a word"):
        read_gpus(script("pass"))


# The watch.


def test_a_watch_reads_again_and_again_while_it_is_wanted(
    driver: pytest.MonkeyPatch, watch: GpuWatch
) -> None:
    assert next_reading(watch) == [FIRST, SECOND]
    (child,) = identify(watch.pid)
    with at_most(1.0):
        assert next_reading(watch) == [FIRST, SECOND]
    assert watch.pid == child.pid
    watch.keep(time.monotonic(), wanted=False)
    assert watch.pid == 0
    eventually(lambda: all_gone([child]))
    select.select([watch], [], [], 5)
    assert watch.receive(time.monotonic()) is None
    assert not child.is_running(), "collected, so not even a zombie"
    assert watch.next_deadline() == float("inf")
    assert next_reading(watch) == [FIRST, SECOND]


def test_a_watch_of_another_pace_reads_at_once_and_then_at_that_pace(
    driver: pytest.MonkeyPatch, watch: GpuWatch
) -> None:
    assert next_reading(watch) == [FIRST, SECOND]
    (hasty,) = identify(watch.pid)
    watch.keep(time.monotonic(), wanted=True, every=LEISURE)
    eventually(lambda: all_gone([hasty]))
    assert next_reading(watch, every=LEISURE) == [FIRST, SECOND]
    (slow,) = identify(watch.pid)
    assert slow.cmdline()[-2:] == ["--every", str(LEISURE)]
    assert watch.next_deadline() > time.monotonic() + PATIENCE, "it may take its time"
    ready, _, _ = select.select([watch], [], [], 4 * INTERVAL)
    assert not ready


def test_a_watch_that_nobody_wants_starts_nothing(watch: GpuWatch) -> None:
    watch.keep(time.monotonic(), wanted=False)
    assert (watch.pid, watch.next_deadline()) == (0, float("inf"))
    assert watch.receive(time.monotonic()) is None


def test_after_a_failure_the_next_child_comes_after_a_pause() -> None:
    watch = GpuWatch(script('print(\'{"error": "broken"}\')'), retry=0.2)
    try:
        for _ in range(3):
            with pytest.raises(GpuUnreadable, match="broken"):
                next_reading(watch)
            assert watch.pid == 0
            assert watch.next_deadline() > time.monotonic()
            watch.keep(time.monotonic(), wanted=True)
            assert watch.pid == 0
    finally:
        watch.close()


def test_while_a_child_cannot_be_killed_there_is_no_other(tmp_path: Path) -> None:
    """What counts is the end of its pipe: here a grandchild of the first child keeps that open."""
    holder = (
        f"import pathlib, subprocess, sys; once = pathlib.Path({str(tmp_path / 'once')!r}); "
        "once.exists() or subprocess.Popen(['sleep', '60']); once.touch(); sys.stdin.read()"
    )
    watch = GpuWatch(script(holder), patience=0.5, retry=0.0)
    try:
        watch.keep(time.monotonic(), wanted=True)
        (child,) = identify(watch.pid)
        (sleeper,) = eventually(child.children)
        eventually((tmp_path / "once").exists)
        with pytest.raises(GpuUnreadable, match="did not answer"):
            watch.check(time.monotonic() + 0.5)
        assert revived(watch) == 0
        assert watch.next_deadline() == float("inf")
        sleeper.kill()
        assert eventually(lambda: revived(watch)) != child.pid
    finally:
        watch.close()


def revived(watch: GpuWatch) -> int:
    """Do what the supervisor does, and return the child that there is then."""
    watch.receive(time.monotonic())
    watch.keep(time.monotonic(), wanted=True)
    return watch.pid


def test_the_child_ends_with_its_owner(driver: pytest.MonkeyPatch) -> None:
    source = (
        "import time; from vllmport.pool.gpu import GpuWatch; watch = GpuWatch(); "
        "watch.keep(time.monotonic(), wanted=True); print(watch.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(script(source), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        eventually(lambda: "vllmport.pool.gpu" in child.cmdline())
        owner.send_signal(signal.SIGKILL)
        with at_most(1.0):
            eventually(lambda: all_gone([child]))


def test_only_the_child_loads_the_library() -> None:
    code = "import sys; import vllmport.pool.gpu; print('pynvml' in sys.modules)"
    done = subprocess.run(script(code), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_machine_has_gpus_where_its_driver_has_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DRIVER_FILES", (str(tmp_path / "nvidiactl"),))
    assert not has_gpus()
    (tmp_path / "nvidiactl").touch()
    assert has_gpus()
