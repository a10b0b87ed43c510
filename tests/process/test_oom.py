"""A worker killed by the kernel for want of memory is told from one that somebody killed."""

import os
import signal
import sys

import pytest

from control_groups import control_group
from processes import PATIENCE, eventually, program, worker_of, worker_pid
from vllmport.pool import Pool, WorkerLost

LIMIT = 256 * 2**20
LIMITED = (("memory", "memory.limit_in_bytes", str(LIMIT)), ("", "memory.max", str(LIMIT)))


def test_a_worker_without_memory_is_told_from_one_that_was_killed() -> None:
    with (
        control_group(*LIMITED) as group,
        Pool(policy={"backoff_initial": 0.05}) as pool,
        pool.llm("echo") as llm,
    ):
        (group / "cgroup.procs").write_text(str(worker_pid(pool)))
        with pytest.raises(WorkerLost) as caught:
            llm.call("fault", {"kind": "grow", "bytes": 2 * LIMIT})
        assert "out of memory" in caught.value.exit
        eventually(lambda: worker_of(pool)["state"] == "READY")
        os.kill(worker_pid(pool), signal.SIGKILL)
        eventually(lambda: worker_of(pool)["restarts"] == 2)
        assert worker_of(pool)["last_exit"] == "was killed by SIGKILL"


def test_a_process_of_others_without_memory_is_no_reason() -> None:
    with (
        control_group(*LIMITED) as group,
        Pool(policy={"backoff_initial": 0.05}) as pool,
        pool.llm("echo"),
    ):
        grows = f"input(); bytearray(b'x') * {2 * LIMIT}"
        with program(sys.executable, "-c", grows) as process:
            (group / "cgroup.procs").write_text(str(process.pid))
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(PATIENCE) == -signal.SIGKILL
        with pool.llm("echo", name="other"):  # a worker is started, and killed by its pool
            pass
        os.kill(worker_pid(pool), signal.SIGKILL)
        eventually(lambda: worker_of(pool)["restarts"] == 1)
        assert worker_of(pool)["last_exit"] == "was killed by SIGKILL"
