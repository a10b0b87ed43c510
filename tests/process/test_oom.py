"""A worker killed by the kernel for want of memory is told from one that somebody killed."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from processes import eventually, worker_of, worker_pid
from vllmport.pool import Pool, WorkerLost

LIMIT = 256 * 2**20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of its own, whose memory ends soon; made where this user may."""
    for root, limit in ((_own("memory"), "memory.limit_in_bytes"), (_own(""), "memory.max")):
        group = root / f"vllmport-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(LIMIT))
            yield group
        except OSError:
            continue
        else:
            return
        finally:
            eventually(partial(_is_empty, group))
            group.rmdir()
    pytest.skip("this user may make no control group with a limit of memory")


def _is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text().strip()


def _own(controller: str) -> Path:
    """Return the folder of this process's control group: of a controller, or the unified one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names == controller:
            return Path("/sys/fs/cgroup") / controller / path.strip("/")
    return Path("/nowhere")


def test_a_worker_without_memory_is_told_from_one_that_was_killed(small_group: Path) -> None:
    with Pool(policy={"backoff_initial": 0.05}) as pool, pool.llm("echo") as llm:
        (small_group / "cgroup.procs").write_text(str(worker_pid(pool)))
        with pytest.raises(WorkerLost) as caught:
            llm.call("fault", {"kind": "grow", "bytes": 2 * LIMIT})
        assert "out of memory" in caught.value.exit
        eventually(lambda: worker_of(pool)["state"] == "READY")
        os.kill(worker_pid(pool), 9)
        eventually(lambda: worker_of(pool)["restarts"] == 2)
        assert worker_of(pool)["last_exit"] == "was killed by SIGKILL"
