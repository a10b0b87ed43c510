"""A load takes as long as it gets on; one that stalls is ended, and its caller told why."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from typing import Any

import pytest

from processes import at_most
from vllmport.pool import Pool, StartupFailed

STALL = 2.0
LONG = 6.0


def patient(**policy: Any) -> Pool:
    return Pool(policy={"load_stall_timeout": STALL, **policy})


def test_a_load_that_sleeps_is_ended_after_the_stall_timeout() -> None:
    with patient() as pool:
        with at_most(STALL + 1), pytest.raises(StartupFailed) as caught:
            pool.llm("echo", load_delay=3600.0)
        assert "echo/0 stalled while loading" in caught.value.message
        assert "load_stall_timeout = 2" in caught.value.message
        assert caught.value.details["stage"] == "loading nothing to load, 1 of 1"
        assert caught.value.phase == "load"
        assert pool.llm("echo", name="well").generate("hi")[0].outputs[0].text == "hi"


def test_loads_that_get_on_outlive_the_stall_timeout() -> None:
    """One reports its stages, one computes."""
    slow = {
        "reports": {"load_delay": LONG, "load_stages": 30},
        "computes": {"load_spin": LONG},
    }
    with patient() as pool:
        begun = time.monotonic()
        models = [
            pool.llm("echo", name=name, wait=False, **options) for name, options in slow.items()
        ]
        for llm in models:
            assert llm.generate("hi")[0].outputs[0].text == "hi"
            assert time.monotonic() - begun > LONG
        workers = pool.status()["workers"]
        assert [worker["restarts"] for worker in workers] == [0, 0]


def test_a_load_may_have_a_limit_of_its_own_for_all_of_it() -> None:
    said = r"was not ready within 3 s; the limit is load_timeout"
    with patient(load_timeout=3.0) as pool, pytest.raises(StartupFailed, match=said):
        pool.llm("echo", load_spin=60.0)


BLOCKING = """
from vllmport.pool import Pool
with Pool() as pool:
    pool.llm("echo", load_delay=1.5, load_stages=3)
"""
COROUTINE = """
import asyncio
from vllmport.pool import AsyncPool
async def main():
    async with AsyncPool() as pool:
        await pool.llm("echo", load_delay=1.5, load_stages=3)
asyncio.run(main())
"""


@pytest.mark.parametrize("source", [BLOCKING, COROUTINE], ids=["blocking", "coroutine"])
def test_a_terminal_shows_how_far_a_load_has_come(source: str) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with subprocess.Popen([sys.executable, "-c", source], stderr=slave) as process:
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(master, 4096):
                said += chunk
    os.close(master)
    assert process.returncode == 0, said
    assert b"Loading echo" in said
    assert b"echo/0: loading nothing to load, 2 of 3" in said
