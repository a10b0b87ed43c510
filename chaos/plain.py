"""vLLM without vllmport, killed: what everybody has today, and the proof that the oracle sees."""

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from socket import socket
from typing import Any, Final

from chaos.oracle import Oracle, Process
from chaos.strike import PATIENCE, eventually

START: Final = 300.0
"""Seconds a program may take until it serves."""

IN_PROCESS: Final = """
import sys
from vllm import LLM
if __name__ == "__main__":
    llm = LLM(sys.argv[1], enforce_eager=True, max_model_len=512)
    llm.generate("1 2 3", use_tqdm=False)
    open(sys.argv[2], "w").close()
    sys.stdin.read()
"""

ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def kill_plain_vllm(oracle: Oracle, folder: Path) -> Iterator[dict[str, Any]]:
    """Kill the program that holds vLLM, in the two usual shapes; say what is left of each.

    Raises:
        RuntimeError: It did not start.
    """
    model = str(files("vllmport.pool") / "models" / "tiny")
    script, ready = folder / "in_process.py", folder / "ready"
    script.write_text(IN_PROCESS)
    yield _kill(oracle, "a program with `vllm.LLM`", [str(script), model, str(ready)], ready.exists)
    port = _free_port()
    server = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    server += ["--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "512"]
    yield _kill(oracle, "`vllm serve`", server, lambda: _answers(port))


def _kill(oracle: Oracle, name: str, command: list[str], is_up: Any) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    ) as process:
        oracle.adopt(process.pid)
        up = eventually(lambda: process.poll() is not None or is_up(), START)
        oracle.note_segments()
        doomed = oracle.living()
        process.kill()
    left: set[Process] = oracle.wait_gone(doomed, PATIENCE)
    survivors = [survivor.to_json() for survivor in oracle.describe(left)]
    oracle.kill(left | oracle.living())
    leftovers = oracle.files_left()
    oracle.remove_files()
    if not up or len(doomed) < 2:
        raise RuntimeError(f"{name} did not start")
    return {
        "program": name,
        "signal": "KILL",
        "survivors": survivors,
        "files": leftovers,
    }


def _answers(port: int) -> bool:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
    ):
        return True
    return False


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
