"""Memory of a real GPU: read, held by a worker's grandchild, back after SIGKILL, waited for.

What holds memory is Python with torch; `VLLMPORT_GPU_PYTHON` names one, if this one has no torch.
"""

import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from processes import all_gone, at_most, eventually, identify, worker_of, worker_pid
from vllmport.pool import Pool, SamplingParams
from vllmport.pool.gpu import GpuWatch, read_gpus
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor.admission import Admission, Decision, Grant, Needs
from vllmport.pool.supervisor.devices import GIB, TOLERANCE, DeviceReading
from vllmport.pool.supervisor.events import EventLog

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PYTHON = os.environ.get("VLLMPORT_GPU_PYTHON", sys.executable)

PATIENCE = 120.0
"""Seconds: torch comes from a cold disk, and a sleeping GPU wakes up."""

SHARE = 2 * TOLERANCE
"""Of the device's memory, what a program holds here: more than two readings may differ by."""

# Takes so many bytes of the first device, says so, and keeps them.
HOLD = """
import sys, time, torch
block = torch.ones(int(sys.argv[1]), dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
print("holds", flush=True)
time.sleep(3600)
"""

# Every Python below the worker runs this first. The worker itself starts, once, what holds memory.
SITE = """
import os, subprocess, sys
once, python, code, size = {0!r}, {1!r}, {2!r}, {3!r}
if "vllmport.worker" in sys.orig_argv and not os.path.exists(once):
    open(once, "w").close()
    {4}
"""

CHILD = "subprocess.Popen([python, '-c', code, size])"

# In a session of its own, and its parent is gone.
GRANDCHILD = (
    """subprocess.run(["/bin/sh", "-c", 'setsid "$0" -c "$1" "$2" &', python, code, size])"""
)


def device() -> DeviceReading:
    """Read the first device."""
    return read_gpus()[0]


def when(condition: Callable[[DeviceReading], bool]) -> None:
    """Wait until the first device is as wanted."""
    eventually(lambda: condition(device()), PATIENCE)


@contextmanager
def holding(size: int) -> Iterator["subprocess.Popen[str]"]:
    """Run a program that holds memory of the first device."""
    command = [PYTHON, "-c", HOLD, str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "holds\n"
            yield program
        finally:
            program.kill()


def worker_that_starts(what: str, size: int, folder: Path) -> dict[str, str]:
    """Return the environment of a worker that starts CHILD or GRANDCHILD."""
    site = SITE.format(str(folder / "once"), PYTHON, HOLD, str(size), what)
    (folder / "sitecustomize.py").write_text(site)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_the_driver_says_what_torch_says() -> None:
    code = "import torch; print(*torch.cuda.mem_get_info(0), torch.cuda.device_count())"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    _, total, count = map(int, done.stdout.split())
    readings = read_gpus()
    assert len(readings) >= count
    assert len({reading.uuid for reading in readings}) == len(readings)
    assert readings[0].total == pytest.approx(total, rel=TOLERANCE)


def test_what_a_program_holds_is_seen_and_is_back_after_its_end() -> None:
    before = device()
    size = int(SHARE * before.total)
    with holding(size):
        assert device().used >= before.used + size
    when(lambda now: now.used < before.used + size // 2)


def test_a_killed_worker_leaves_no_grandchild_on_the_gpu(tmp_path: Path) -> None:
    before = device()
    size = int(SHARE * before.total)
    env = worker_that_starts(GRANDCHILD, size, tmp_path)
    with Pool() as pool, pool.llm("echo", env=env) as llm:
        when(lambda now: now.used >= before.used + size)
        victim = worker_pid(pool)
        grandchild = identify(*_running(HOLD))
        assert len(grandchild) == 1
        os.kill(victim, signal.SIGKILL)
        with at_most(2.0):
            eventually(lambda: all_gone(grandchild))
        when(lambda now: now.used < before.used + size // 2)
        assert llm.generate(["again"])[0].outputs[0].text


def test_a_worker_whose_child_takes_too_much_of_the_gpu_is_replaced(tmp_path: Path) -> None:
    size = int(SHARE * device().total)
    with holding(size) as program:
        used = device().memory.get(program.pid)
    if used is None:
        pytest.skip("the driver names processes by other pids here: in a container, for one")
    assert used >= size
    env = worker_that_starts(CHILD, size, tmp_path)
    with Pool(policy={"recycle_gpu_memory": size}) as pool, pool.llm("echo", env=env) as llm:
        old = identify(worker_pid(pool), *eventually(lambda: _running(HOLD)))
        assert len(old) == 2
        eventually(lambda: all_gone(old), PATIENCE)
        with pool.events(last=100) as events:
            seen = iter(lambda: events.get(PATIENCE) or {}, {})
            reason = next(event["reason"] for event in seen if event["event"] == "worker.recycling")
        assert "of GPU memory" in reason
        assert llm.generate(["again"])[0].outputs[0].text
        assert pool.status()["counters"]["errors"] == {}


def _running(code: str) -> list[int]:
    found = psutil.process_iter(["cmdline"])
    return [process.pid for process in found if code in (process.info["cmdline"] or ())]


class Supervision:
    """An admission that gets its readings from a watch, as in the supervisor."""

    def __init__(self, memory_timeout: float) -> None:
        self.events = EventLog(time.time)
        policy = Policy(memory_timeout=memory_timeout)
        self.admission = Admission(policy, self.events, has_gpus=True)
        self.watch = GpuWatch()

    def decided(self, seconds: float = PATIENCE) -> list[Decision]:
        """Return the next decisions, or nothing once the time is up."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self.watch.keep(now, wanted=self.admission.wants_readings)
            self.watch.check(now)
            ready, _, _ = select.select([self.watch], [], [], 0.1)
            found = self.watch.receive(time.monotonic()) if ready else None
            if found is not None:
                self.admission.readings(found, time.monotonic())
            decisions = self.admission.take_decisions(time.monotonic(), 2**50)
            if decisions:
                return decisions
        return []

    def happened(self) -> list[str]:
        return [event["event"] for event in self.events.take_new()]


@pytest.fixture
def supervision() -> Iterator[Supervision]:
    supervision = Supervision(memory_timeout=5.0)
    yield supervision
    supervision.watch.close()


def _first(fraction: float) -> Needs:
    return Needs(devices=1, fraction=fraction, visible=("0",))


def test_the_next_start_waits_until_the_memory_is_back(supervision: Supervision) -> None:
    before = device()
    size = int(SHARE * before.total)
    supervision.admission.request("a", _first(SHARE), time.monotonic())
    assert supervision.decided() == [Grant("a", (0,))]
    with holding(size) as program:
        supervision.admission.ready("a", time.monotonic())
        program.kill()
        program.wait()
        supervision.admission.released("a", time.monotonic())
        supervision.admission.request("b", _first(SHARE), time.monotonic())
        assert supervision.decided() == [Grant("b", (0,))]
    assert device().used < before.used + size // 2


def test_memory_that_does_not_come_back_keeps_the_device_until_it_does(
    supervision: Supervision,
) -> None:
    before = device()
    size = int(SHARE * before.total)
    nearly_all = (before.total - before.used - size // 2) / before.total
    supervision.admission.request("a", _first(nearly_all), time.monotonic())
    assert supervision.decided() == [Grant("a", (0,))]
    supervision.admission.ready("a", time.monotonic())
    with holding(size):  # what "a" started and nobody could end
        supervision.admission.released("a", time.monotonic())
        supervision.admission.request("b", _first(nearly_all), time.monotonic())
        assert supervision.decided(10.0) == []
        assert supervision.happened() == ["device.waiting", "device.quarantined"]
    assert supervision.decided() == [Grant("b", (0,))]
    assert supervision.happened() == ["device.free"]


def _has_vllm() -> bool:
    """Tell whether vLLM can be imported here with a torch that sees the GPU."""
    if importlib.util.find_spec("vllm") is None:
        return False
    code = "import sys, torch, vllm._C; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vllm_answers_again_on_the_same_device_after_sigkill() -> None:
    if not _has_vllm():
        pytest.skip("no vLLM here that fits the torch of this machine")
    before = device()
    greedy = SamplingParams(temperature=0, max_tokens=8)
    with Pool() as pool:
        llm = pool.llm("tiny", v1_multiprocessing="on", gpu_memory_utilization=0.3)
        assert llm.generate("The capital of France is", greedy)[0].outputs[0].text == " Paris."
        assert device().used > before.used + GIB
        os.kill(worker_pid(pool), signal.SIGKILL)
        eventually(lambda: worker_of(pool)["restarts"] == 1, PATIENCE)
        assert llm.generate("The capital of France is", greedy)[0].outputs[0].text == " Paris."
    when(lambda now: now.used < before.used + GIB)
