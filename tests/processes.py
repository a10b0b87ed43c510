"""Helpers for tests with real processes: who is there, wait for a condition, run a program.

Waiting is always for a condition with a deadline. Times that the project promises are multiplied
by SLACK: the machine that runs the tests may be busy.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from vllmport.bridge.errors import ConnectFailed
from vllmport.pool import Pool
from vllmport.pool.guard import GUARD
from vllmport.pool.processes import WORKER_TAG

T = TypeVar("T")

SLACK = 5
"""A busy machine may take this many times as long as promised."""

PATIENCE = 20.0
"""Seconds after which something that must come is not coming any more."""

RUN = "VLLMPORT_TEST_RUN"
"""Environment variable that marks everything this test run starts."""

RUN_ID = secrets.token_hex(8)

STANDING = f"{RUN_ID}-standing"
"""The mark instead of that id for what several modules share: none of them has left it."""


def eventually(condition: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Return the condition's value once it is true; fail if that takes too long."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {condition}"
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer than what is promised, with slack."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds * SLACK, f"took {took:.2f} s, promised are {seconds:g} s"


# Who is there.


def started_here(run: str = RUN_ID) -> dict[str, str]:
    """Return the living processes of a run, and this process's zombies: identity → command."""
    found = {}
    mark = f"{RUN}={run}".encode()
    for folder in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if command and _has_mark(folder, command, mark):
                found[_identity(folder)] = " ".join(command)
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            found[_identity(Path(f"/proc/{ended.si_pid}"))] = "a zombie of this process"
    return found


def _identity(folder: Path) -> str:
    """Return pid and start time (field 22 of proc_pid_stat(5)): the number alone may be reused."""
    return f"{folder.name}@{(folder / 'stat').read_text().rpartition(')')[2].split()[19]}"


def _parent(folder: Path) -> int:
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def _environ(folder: Path) -> list[bytes]:
    return (folder / "environ").read_bytes().split(b"\0")


def _has_mark(folder: Path, command: list[str], mark: bytes) -> bool:
    if tuple(command) == GUARD:  # its environment is empty: look for whom it works
        for whom in (os.getsid(int(folder.name)), _parent(folder)):
            with contextlib.suppress(OSError):
                return mark in _environ(Path(f"/proc/{whom}"))
        return False
    variables = _environ(folder)
    if mark not in variables:
        return False
    tagged = any(variable.startswith(_TAG) for variable in variables)
    return tagged or any(part.startswith("vllmport.") for part in command)


_TAG = f"{WORKER_TAG}=".encode()


def entries(folder: Path) -> set[str]:
    """Return what is in a folder; what is inside a run's own folder goes with that."""
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def leaving_nothing(runtime_dir: Path, run: str = RUN_ID) -> Iterator[None]:
    """Fail if a process or a file of a run is there after the block that was not before."""
    processes, files = started_here(run), entries(runtime_dir)
    yield

    def left() -> dict[str, str]:
        return {key: text for key, text in started_here(run).items() if key not in processes}

    with contextlib.suppress(AssertionError):
        eventually(lambda: not left() and entries(runtime_dir) <= files, 10)
    remaining = left()
    for key in remaining:  # the next test has a clean start
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(key.partition("@")[0]), signal.SIGKILL)
    new_files = entries(runtime_dir) - files
    assert not remaining, f"left running: {remaining}"
    assert not new_files, f"left behind: {sorted(new_files)}"


def identify(*pids: int) -> list[psutil.Process]:
    """Note processes by pid and create time, to ask later whether they are gone."""
    return [psutil.Process(pid) for pid in pids]


def all_gone(processes: list[psutil.Process]) -> bool:
    """Tell whether none of them runs any more; a zombie does not run."""
    return not any(is_running(process) for process in processes)


def is_running(process: psutil.Process) -> bool:
    """Tell whether a process still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def family(pool: Pool) -> list[psutil.Process]:
    """Return supervisor, spawner and all that runs below them, the guards included."""
    supervisor = psutil.Process(pool.status()["supervisor"]["pid"])
    return [supervisor, *supervisor.children(recursive=True)]


SHARED_MEMORY = Path("/dev/shm")


def shared_memory_of(processes: list[psutil.Process], mark: str) -> set[str]:
    """Return the names of what they have mapped, and of what carries the mark."""
    mapped = {
        region.path.removeprefix("/dev/shm/")
        for process in processes
        for region in process.memory_maps()
        if region.path.startswith("/dev/shm/")
    }
    return {name for name in entries(SHARED_MEMORY) if name in mapped or mark in name}


@contextlib.contextmanager
def full_disk(fd: int) -> Iterator[None]:
    """Let there be no room for what is written to this descriptor."""
    kept, full = os.dup(fd), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, fd, inheritable=False)
    try:
        yield
    finally:
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
        os.close(full)


# What a pool says.


def worker_of(pool: Pool, index: int = 0) -> dict[str, Any]:
    """Return what `status` says of one worker."""
    return dict(pool.status()["workers"][index])


def worker_pid(pool: Pool, index: int = 0) -> int:
    """Return the process of one worker."""
    return int(worker_of(pool, index)["pid"])


def unfinished(pool: Pool) -> int:
    """Return how many requests the engines themselves still hold."""
    return sum(worker["unfinished"] for worker in pool.status()["workers"])


def echoed(prompt: str, tokens: int) -> str:
    """Return what the echo engine answers with `ignore_eos`."""
    return (prompt * (tokens // len(prompt) + 1))[:tokens]


def endless(tokens: int = 1_000_000) -> dict[str, Any]:
    """Return sampling parameters of a call that takes as long as it is let."""
    return {"max_tokens": tokens, "ignore_eos": True}


# Programs.


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a program that belongs to this run."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **(extra or {})}


@contextlib.contextmanager
def program(
    *command: str, env: Mapping[str, str] | None = None, stderr: IO[str] | int = subprocess.PIPE
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program with pipes; it is ended if it still runs at the end."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment(env),
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()


def script(source: str, *args: str) -> contextlib.AbstractContextManager["subprocess.Popen[str]"]:
    """Run a Python script, as `python -c` does."""
    return program(sys.executable, "-c", source, *args)


def read_line(process: "subprocess.Popen[str]") -> str:
    """Return the next line a program prints; fail with its stderr if it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(f"ended with {process.wait(PATIENCE)}: {process.stderr.read()}")
    return line.rstrip("\n")


def vllmport(
    *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vllmport.pool.cli", *args],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
        env=environment(env),
    )


@contextlib.contextmanager
def serving(endpoint: str, *args: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `vllmport serve` as a service and wait until it answers."""
    command = (sys.executable, "-m", "vllmport.pool.cli", "serve", "--endpoint", endpoint, *args)
    with program(*command) as process:
        eventually(lambda: process.poll() is not None or _answers(endpoint))
        assert process.poll() is None, process.communicate()
        yield process


def _answers(endpoint: str) -> bool:
    try:
        with Pool.connect(endpoint):
            return True
    except ConnectFailed:
        return False
