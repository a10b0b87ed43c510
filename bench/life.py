"""How things begin, come back and end: cold start, SIGKILL, stop; and what waiting costs.

Beside the pool: `vllm.LLM` in a process, and vLLM's own server, which a shell loop starts again.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from bench.children import Child, family
from bench.contender import Contender, Failed
from bench.peers.http_flight import HOST, free_port
from bench.progress import say
from bench.results import Measure, Section
from bench.server import flags
from bench.turns import Turns
from bench.workload import ENGINE_ARGS, ENGINE_ENV, MODEL, ONE_PARAMS, ONE_PROMPT, ROOT

ENGINES: Final = ROOT / "bench" / "engines"
PATIENCE: Final = 180.0
SURVIVES: Final = 5.0
"""Seconds after which a process that should be gone counts as left for good."""
IDLE: Final = 3.0

HOW: Final = {
    "pool, off": "a pool of one's own; engine in the worker",
    "pool, on": "the same; engine in a process of its own",
    "pool, off, standby": "with a process at hand that has imported vLLM",
    "pool, on, standby": "the same",
    "LLM, off": "vllm.LLM in a process of its own",
    "LLM, on": "the same; engine in a process of its own",
    "server": "vLLM's OpenAI server, in a shell loop that starts it again",
}
IMPORTS: Final = {
    "Python alone": "pass",
    "vllmport.pool": "from vllmport.pool import LLM, Pool, SamplingParams",
    "vllm": "from vllm import LLM, SamplingParams",
}
MORTAL: Final = {
    "pool, off": ("off", "no"),
    "pool, on": ("on", "no"),
    "pool, off, standby": ("off", "standby"),
    "pool, on, standby": ("on", "standby"),
}


class LifeBench:
    """The contenders of this section, started anew for each measurement.

    Args:
        folder: For logs.
        turns: Gives turns.
        only: Contenders to take; all if empty.
    """

    def __init__(self, folder: Path, turns: Turns, only: list[str]) -> None:
        self._folder = folder
        self._turns = turns
        self._names = [name for name in HOW if not only or name in only]
        self.section = Section("life", {name: HOW[name] for name in self._names})

    def run(self, rounds: int) -> Section:
        """Measure everything so many times."""
        for _ in range(rounds):
            self._imports()
            for name in self._names:
                if "standby" not in name:
                    self._from_start_to_end(name)
            for name in self._names:
                if name in MORTAL:
                    self._kill_in_pool(name)
            if "server" in self._names:
                self._try(self._restart, "server", self._kill_in_server)
        return self.section

    # Measures.

    @property
    def _restart(self) -> Measure:
        what = "SIGKILL of the engine to the next right answer"
        return self.section.measure("restart", what, "s", less_is_better=True)

    def _imports(self) -> None:
        measure = self.section.measure("import", "start and import", "s", less_is_better=True)
        for name, code in IMPORTS.items():
            command = [sys.executable, "-c", code]
            start = time.perf_counter()
            done = subprocess.run(command, check=False, capture_output=True)
            took = time.perf_counter() - start
            if done.returncode:
                measure.fail(name, done.stderr.decode(errors="replace"))
            else:
                measure.add(name, took)
        say("imports: done")

    def _from_start_to_end(self, name: str) -> None:
        """Measure a cold start; then an orderly end, and once more the end by SIGKILL."""
        cold = self.section.measure(
            "cold", "start of the process to the first answer", "s", less_is_better=True
        )
        for key, what, end in (
            ("stop", "asked to stop, until all of its processes are gone", self._stop),
            ("killed", "its first process killed, until all others are gone", self._kill),
        ):
            measure = self.section.measure(key, what, "s", less_is_better=True)
            if name in measure.failed:
                continue
            life = Life(name, self._folder)
            try:
                cold.add(name, life.begin())
                self._try(measure, name, partial(end, life))
            except (Failed, OSError, RuntimeError) as exc:
                cold.fail(name, str(exc))
                say(f"{name} does not start: {exc}")
                return
            finally:
                life.clean_up()
        say(f"{name}: begun and ended")

    def _stop(self, life: "Life") -> float:
        return life.gone_after(life.ask_to_stop)

    def _kill(self, life: "Life") -> float:
        return life.gone_after(lambda: os.kill(life.pid, signal.SIGKILL))

    def _kill_in_pool(self, name: str) -> None:
        command = [str(ENGINES / "mortal.py"), *MORTAL[name]]
        try:
            with Contender(name, command, self._folder) as mortal:
                self._try(self._restart, name, lambda: mortal.do("kill", timeout=PATIENCE).value)
                if name == "pool, off":
                    idle = mortal.do("idle", IDLE).value
                    for key, unit in (("cpu", "share of a core"), ("rss", "MB")):
                        what = f"supervisor at rest: {unit}"
                        measure = self.section.measure(
                            f"idle_{key}", what, unit, less_is_better=True
                        )
                        measure.add(name, idle[key])
        except Failed as exc:
            self._restart.fail(name, str(exc))
        say(f"{name}: killed, and back")

    def _kill_in_server(self) -> float:
        port = free_port()
        serving = " ".join(f"'{part}'" for part in [sys.executable, *server_command(port)])
        loop = Child(
            ["-c", f"while :; do {serving}; done"], self._folder / "loop.log", ENGINE_ENV, "/bin/sh"
        )
        with loop:
            expected = first_answer(port, loop)
            victim = engine_of(loop.pid)
            start = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            while psutil.pid_exists(victim) and _lives(victim):
                time.sleep(0.005)
            if first_answer(port, loop) != expected:
                raise Failed("it answers otherwise than before")
            took = time.perf_counter() - start
        say("server: killed, and back")
        return took

    def _try(self, measure: Measure, name: str, work: Callable[[], float]) -> None:
        if name in measure.failed:
            return
        try:
            measure.add(name, work())
        except (Failed, OSError, RuntimeError) as exc:
            measure.fail(name, str(exc))
            say(f"{name}: {exc}")


class Life:
    """One contender from its start to its end.

    Args:
        name: Of the contender.
        folder: For its log.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._contender: Contender | None = None
        self._server: Child | None = None
        self._all: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        """The first process of it."""
        found = self._server or self._contender
        assert found is not None, "it was begun"
        return found.pid

    def begin(self) -> float:
        """Start it; return the seconds until it answered."""
        start = time.perf_counter()
        if self._name == "server":
            port = free_port()
            log = self._folder / "server.log"
            self._server = Child(server_command(port), log, ENGINE_ENV)
            first_answer(port, self._server)
        else:
            kind, mode = self._name.split(", ")
            script = "pooled.py" if kind == "pool" else "in_process.py"
            command = [str(ENGINES / script), mode, "generate"]
            self._contender = Contender(self._name, command, self._folder)
            self._contender.do("first")
        took = time.perf_counter() - start
        self._all = [psutil.Process(pid) for pid in family(self.pid)]
        return took

    def ask_to_stop(self) -> None:
        """Do what its user would do to end it."""
        if self._contender is not None:
            self._contender.leave()
        else:
            os.kill(self.pid, signal.SIGTERM)

    def gone_after(self, end: Callable[[], None]) -> float:
        """Return the seconds until all of its processes are gone.

        Raises:
            Failed: Some are still there after a while.
        """
        start = time.perf_counter()
        end()
        patience = time.perf_counter() + SURVIVES
        while left := [process for process in self._all if _lives(process.pid)]:
            if time.perf_counter() > patience:
                raise Failed(f"{len(left)} of {len(self._all)} are there {SURVIVES:.0f} s later")
            time.sleep(0.005)
        return time.perf_counter() - start

    def clean_up(self) -> None:
        """End whatever is left."""
        if self._contender is not None:
            self._contender.close()
        if self._server is not None:
            self._server.stop()
        for process in self._all:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def server_command(port: int) -> list[str]:
    """Return the arguments for Python that start vLLM's server."""
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, *flags(ENGINE_ARGS)]
    command += ["--served-model-name", "tiny", "--host", HOST, "--port", str(port)]
    return [*command, "--disable-uvicorn-access-log"]


def first_answer(port: int, child: Child) -> str:
    """Ask a server until it answers.

    Raises:
        Failed: It does not.
    """
    body = json.dumps({"model": "tiny", "prompt": ONE_PROMPT, **ONE_PARAMS})
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        child.check()
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200:
                return str(json.loads(text)["choices"][0]["text"])
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    raise Failed(f"the server did not answer within {PATIENCE:.0f} s")


def engine_of(pid: int) -> int:
    """Return the engine process below another.

    Raises:
        Failed: There is none.
    """
    for found in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("EngineCore" in part for part in psutil.Process(found).cmdline()):
                return found
    raise Failed("there is no engine process")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def run(folder: Path, turns: Turns, rounds: int, only: list[str]) -> Section:
    """Run this section."""
    return LifeBench(folder, turns, only).run(rounds)
