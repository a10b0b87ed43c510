"""Contenders that begin, lose their engine, come back and end: one process and all it started."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil
from bench.children import Child, engine_of, family
from bench.contender import Contender, Failed
from bench.peers.http_flight import HOST, free_port
from bench.server import server_command
from bench.workload import ENGINE_ARGS, ENGINE_ENV, ONE_PARAMS, ONE_PROMPT, ROOT

ENGINES: Final = ROOT / "bench" / "engines"
PATIENCE: Final = 180.0
SURVIVES: Final = 10.0
"""Seconds after which a process that should be gone counts as left for good."""
LOOK: Final = 0.005


class Life(ABC):
    """One contender from its start to its end."""

    def __init__(self) -> None:
        self._all: set[psutil.Process] = set()

    def begin(self) -> float:
        """Start it; return the seconds until it answered.

        Raises:
            Failed: It does not.
        """
        start = time.perf_counter()
        self._start()
        took = time.perf_counter() - start
        self._see()
        return took

    @abstractmethod
    def come_back(self) -> float:
        """Kill its engine's process; return the seconds until the next right answer.

        Raises:
            Failed: There is none.
        """

    def stop(self) -> float:
        """Do what its user would do to end it; return the seconds until nothing is left.

        Raises:
            Failed: Some of its processes are still there after a while.
        """
        return self._gone_after(self._ask_to_stop)

    def die(self) -> float:
        """Kill the process that its user started; return the seconds until nothing is left.

        Raises:
            Failed: Some of its processes are still there after a while.
        """
        return self._gone_after(self._kill)

    def clean_up(self) -> None:
        """End whatever is left."""
        self._end()
        for process in self._all:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    @abstractmethod
    def _pid(self) -> int: ...

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _ask_to_stop(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...

    def _gone_after(self, end: Callable[[], None]) -> float:
        self._see()
        start = time.perf_counter()
        end()
        while left := [process for process in self._all if _lives(process)]:
            if time.perf_counter() > start + SURVIVES:
                raise Failed(f"{len(left)} of {len(self._all)} are there {SURVIVES:.0f} s later")
            time.sleep(LOOK)
        return time.perf_counter() - start

    def _see(self) -> None:
        """Keep in mind what it has started by now."""
        for pid in family(self._pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._all.add(psutil.Process(pid))


class Own(Life):
    """One of the programs in `engines/`: a pool, or `vllm.LLM`.

    Args:
        name: Of the contender.
        command: The program and its arguments.
        folder: For its log.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        super().__init__()
        self._name = name
        self._command = [str(ENGINES / command[0]), *command[1:]]
        self._folder = folder
        self._contender: Contender | None = None

    def come_back(self) -> float:
        return float(self._up.do("kill", timeout=PATIENCE).value)

    def idle(self, seconds: float) -> dict[str, float]:
        """Return what a pool's supervisor uses while nothing happens: share of a core, MB."""
        found: dict[str, float] = self._up.do("idle", seconds).value
        return found

    @property
    def _up(self) -> Contender:
        assert self._contender is not None, "it was begun"
        return self._contender

    @property
    def _pid(self) -> int:
        return self._up.pid

    def _start(self) -> None:
        self._contender = Contender(self._name, self._command, self._folder)
        self._contender.do("first")

    def _ask_to_stop(self) -> None:
        self._up.leave()

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def _end(self) -> None:
        if self._contender is not None:
            self._contender.close()


class Looped(Life):
    """vLLM's server in a shell loop that starts it again.

    Args:
        folder: For its log.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._log = folder / "loop.log"
        self._port = free_port()
        self._answer = ""
        self._child: Child | None = None

    def come_back(self) -> float:
        victim = psutil.Process(engine_of(self._pid))
        start = time.perf_counter()
        victim.kill()
        while _lives(victim):
            time.sleep(LOOK)
        if self._first_answer() != self._answer:
            raise Failed("it answers otherwise than before")
        return time.perf_counter() - start

    @property
    def _shell(self) -> Child:
        assert self._child is not None, "it was begun"
        return self._child

    @property
    def _pid(self) -> int:
        return self._shell.pid

    def _start(self) -> None:
        serving = shlex.join([sys.executable, *server_command(self._port, ENGINE_ARGS)])
        loop = ["-c", f"while :; do {serving}; done"]
        self._child = Child(loop, self._log, ENGINE_ENV, "/bin/sh")
        self._answer = self._first_answer()

    def _ask_to_stop(self) -> None:
        self._signal_server(signal.SIGTERM)

    def _kill(self) -> None:
        self._signal_server(signal.SIGKILL)

    def _end(self) -> None:
        if self._child is not None:
            self._child.stop()

    def _signal_server(self, number: int) -> None:
        """Signal the server, after the loop that would start it again."""
        for server in psutil.Process(self._shell.pid).children():
            os.kill(self._shell.pid, signal.SIGKILL)
            server.send_signal(number)

    def _first_answer(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self._shell.check()
            answer = _ask(self._port)
            if answer is not None:
                return answer
            time.sleep(4 * LOOK)
        raise Failed(f"the server did not answer within {PATIENCE:.0f} s")


def _ask(port: int) -> str | None:
    """Return what a server answers; None if it does not, or with an error."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    body = json.dumps({"model": "tiny", "prompt": ONE_PROMPT, **ONE_PARAMS})
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return str(json.loads(text)["choices"][0]["text"]) if answer.status == 200 else None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
