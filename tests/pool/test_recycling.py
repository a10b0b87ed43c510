"""A whole pool with the driver that stands in: who uses too much of a GPU's memory is replaced."""

import os
from pathlib import Path

import pytest

from processes import PATIENCE, eventually, worker_pid
from vllmport.pool import Pool

MIB = 2**20

# Every Python below this one runs it first: the machine need not have the driver's file.
SITE = """
import sys
if "vllmport.pool.supervisor" in sys.orig_argv:
    from vllmport.pool import gpu
    gpu.DRIVER_FILES = ("/dev/null",)
"""


@pytest.fixture
def user(driver: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that says who uses how much on each of the two devices."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    driver.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    driver.setenv("FAKE_NVML_USER", str(tmp_path / "user"))
    return tmp_path / "user"


def test_a_worker_whose_child_uses_too_much_gpu_memory_is_replaced(user: Path) -> None:
    policy = {"recycle_gpu_memory": 2 * MIB, "stall_timeout": 1.0}
    with Pool(policy=policy) as pool, pool.llm("echo") as llm:
        old = worker_pid(pool)
        child = llm.call("fault", {"kind": "child"})["pid"]
        with pool.events() as events:
            user.with_suffix(".new").write_text(f"{child} {MIB}")
            user.with_suffix(".new").rename(user)
            event = events.get(PATIENCE)
        assert event is not None
        assert (event["event"], event["pid"]) == ("worker.recycling", old)
        assert event["reason"] == "it uses 2 MiB of GPU memory, the limit is 2"
        eventually(lambda: [w["pid"] for w in pool.status()["workers"] if w["pid"] == old] == [])
        assert llm.generate("still here")[0].outputs[0].text == "still here"
        assert pool.status()["counters"]["errors"] == {}
