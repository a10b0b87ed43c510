"""What vLLM loads in each of its processes: armed in ours, inert in everybody else's."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vllmport.pool.processes import WORKER_TAG as TAG_OF_THE_POOL
from vllmport.pool.supervisor.spawning import worker_environment
from vllmport.worker.plugin import WORKER_TAG

MARK = "6233044503167832065"

PROGRAM = """
import ctypes, multiprocessing, os, signal, sys
from multiprocessing import shared_memory
from vllmport.worker.plugin import activate

def child():
    activate()
    signum = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signum), 0, 0, 0)  # PR_GET_PDEATHSIG
    segment = shared_memory.SharedMemory(create=True, size=16)
    print(signum.value, segment.name, multiprocessing.Lock()._semlock.name, sep="\\n", flush=True)
    segment.close()
    segment.unlink()

if __name__ == "__main__":
    activate()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=child)
    process.start()
    process.join()
"""


def in_a_child(folder: Path, extra: Mapping[str, str]) -> list[str]:
    """Load the plugin in a process and a child of it; return what the child says of itself."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    env = {**os.environ, **extra}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=env, timeout=60, check=True
    )
    return done.stdout.split()


def test_child_of_a_worker_dies_with_it_and_marks_its_shared_memory(tmp_path: Path) -> None:
    signum, segment, semaphore = in_a_child(tmp_path, {WORKER_TAG: MARK})
    assert signum == "9"
    assert segment.startswith(f"psm_{MARK}_")
    assert semaphore.startswith(f"/mp-{MARK}-")


def test_child_of_anybody_else_is_as_it_always_was(tmp_path: Path) -> None:
    signum, segment, semaphore = in_a_child(tmp_path, {})
    assert signum == "0"
    assert segment.startswith("psm_")
    assert semaphore.startswith("/mp-")
    assert MARK not in segment + semaphore


def test_child_whose_parent_went_first_ends_at_once() -> None:
    code = (
        "import multiprocessing as mp, os\n"
        "from vllmport.worker import plugin\n"
        "class Gone:\n"
        "    def is_alive(self): return False\n"
        "plugin.multiprocessing.parent_process = Gone\n"
        "plugin.activate()\n"
    )
    env = {**os.environ, WORKER_TAG: MARK}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False)
    assert done.returncode == -9


def test_worker_itself_keeps_the_parent_it_was_born_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is loaded in it as well; this very process is as good as one."""
    from vllmport.worker.plugin import activate

    monkeypatch.setenv(WORKER_TAG, MARK)
    activate()
    signum = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signum), 0, 0, 0)
    assert signum.value == 0


def test_plugin_and_pool_mean_the_same_variable() -> None:
    assert WORKER_TAG == TAG_OF_THE_POOL


def test_list_of_allowed_plugins_allows_ours() -> None:
    env = worker_environment({"VLLM_PLUGINS": "a,b"}, {})
    assert env["VLLM_PLUGINS"] == "a,b,vllmport"
    assert "VLLM_PLUGINS" not in worker_environment({}, {})
