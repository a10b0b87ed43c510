"""The spawner by itself: whom a signal reaches, and what it says of what it cannot kill."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import PATIENCE, all_gone, eventually, full_disk, identify
from vllmport.pool.ledger import Ledger
from vllmport.pool.marks import mark_in, new_run
from vllmport.pool.processes import WORKER_TAG, kill_group
from vllmport.pool.spawner import __main__ as spawner_main
from vllmport.pool.spawner import protocol
from vllmport.pool.supervisor.spawning import SpawnerLink
from vllmport.pool.supervisor.stderr import WorkerStderr

SAYS_ITS_ROLE = """
import os, signal, sys, time
role = "leader"
if os.fork() == 0:
    role = "member"
elif os.fork() == 0:
    os.setsid()
    role = "away"
signal.signal(signal.SIGTERM, lambda *_: open(f"{sys.argv[1]}/got-{role}-{time.time_ns()}", "w"))
open(f"{sys.argv[1]}/is-{role}-{os.getpid()}", "w")
while True:
    time.sleep(1)
"""


class Link:
    """The supervisor's end of a spawner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = new_run(os.getpid())
        self.ledger = folder / "run.ledger"
        self.ledger.touch()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE)
        command = ("-m", "vllmport.pool.spawner", theirs.fileno(), self.run, self.ledger)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], pass_fds=[theirs.fileno()]
            )

    def spawn(self, *argv: str) -> None:
        mark = mark_in(self.run, 1)
        env = {**os.environ, WORKER_TAG: str(mark)}
        request = protocol.SpawnRequest("w", mark, str(self.folder / "scratch"), [*argv], env)
        protocol.send(self.control, request, (2,))

    def kill(self, signum: int, scope: protocol.Scope) -> None:
        protocol.send(self.control, protocol.KillRequest("w", signum, scope))

    def event(self) -> protocol.Packet | None:
        return protocol.receive(self.control)[0]


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path)
    yield link
    link.control.close()
    assert link.process.wait(PATIENCE) == 0
    assert not link.ledger.exists()
    assert not (tmp_path / "scratch").exists()


def roles(folder: Path, prefix: str) -> list[str]:
    return sorted(path.name.split("-")[1] for path in folder.glob(f"{prefix}-*"))


@pytest.mark.parametrize(
    ("scope", "reached"),
    [
        ("leader", ["leader"]),
        ("group", ["leader", "member"]),
        ("all", ["away", "leader", "member"]),
    ],
)
def test_signal_reaches_whom_it_is_for_and_once(
    link: Link, tmp_path: Path, scope: protocol.Scope, reached: list[str]
) -> None:
    link.spawn(sys.executable, "-c", SAYS_ITS_ROLE, str(tmp_path))
    assert isinstance(link.event(), protocol.Spawned)
    eventually(lambda: len(roles(tmp_path, "is")) == 3)
    everybody = identify(*(int(p.name.split("-")[2]) for p in tmp_path.glob("is-*")))
    link.kill(signal.SIGTERM, scope)
    eventually(lambda: roles(tmp_path, "got") == reached)
    link.kill(signal.SIGKILL, scope)
    assert isinstance(link.event(), protocol.Exited)
    cleared = link.event()
    assert isinstance(cleared, protocol.Cleared)
    assert cleared.unkillable == []
    assert all_gone(everybody)
    assert roles(tmp_path, "got") == reached, "nobody had it twice"


def test_worker_that_cannot_be_executed_is_cleared_at_once(link: Link, tmp_path: Path) -> None:
    link.spawn("/nowhere")
    exited, cleared = link.event(), link.event()
    assert isinstance(exited, protocol.Exited)
    assert "could not be started" in exited.cause
    assert isinstance(cleared, protocol.Cleared)
    assert not (tmp_path / "scratch").exists()


def test_folder_that_was_there_before_is_left_alone(link: Link, tmp_path: Path) -> None:
    theirs = tmp_path / "scratch" / "file"
    theirs.parent.mkdir()
    theirs.touch()
    memory = Path("/dev/shm") / f"psm_{mark_in(link.run, 1)}"
    memory.touch()
    link.spawn(sys.executable, "-c", "")
    exited, cleared = link.event(), link.event()
    assert isinstance(exited, protocol.Exited)
    assert "File exists" in exited.cause
    assert isinstance(cleared, protocol.Cleared)
    assert theirs.exists()
    assert memory.exists()
    theirs.unlink()
    theirs.parent.rmdir()


def test_worker_that_cannot_be_executed_leaves_no_guard(link: Link) -> None:
    link.spawn("/nowhere")
    assert isinstance(link.event(), protocol.Exited)
    eventually(lambda: psutil.Process(link.process.pid).children() == [])


def test_group_of_others_counts_as_gone() -> None:
    if os.getuid():
        pytest.skip("only root can become somebody else")
    group = os.getpgid(0)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.setuid(65534)
            os._exit(kill_group(group, 0))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def spawner_link(tmp_path: Path) -> Iterator[tuple[SpawnerLink, Ledger]]:
    """The link that the supervisor uses, with a ledger of its own."""
    (tmp_path / "run-a").mkdir()
    ledger = Ledger(str(tmp_path / "run-a"), f"ipc://{tmp_path}/pool.sock", 0)
    link = SpawnerLink([str(tmp_path / "run-a")], [], ledger)
    yield link, ledger
    link.stop()
    os.close(ledger.fileno())
    assert not ledger.path.exists()


SLEEPS = [sys.executable, "-c", "import time; time.sleep(3600)"]


def test_worker_that_cannot_be_written_down_is_not_started(
    spawner_link: tuple[SpawnerLink, Ledger], tmp_path: Path
) -> None:
    link, ledger = spawner_link
    stderr = WorkerStderr(str(tmp_path), "m/0")
    with full_disk(ledger.fileno()), pytest.raises(OSError, match="No space left"):
        link.spawn("nonce", SLEEPS, os.environ, stderr)
    assert not stderr.read(), "nobody holds the other end"
    stderr.close()


def test_disk_that_is_full_once_the_worker_runs_does_no_harm(
    spawner_link: tuple[SpawnerLink, Ledger], tmp_path: Path
) -> None:
    link, ledger = spawner_link
    stderr = WorkerStderr(str(tmp_path), "m/0")
    link.spawn("nonce", SLEEPS, os.environ, stderr)
    with full_disk(ledger.fileno()):
        assert isinstance(link.receive(), protocol.Spawned)
    stderr.close()


def test_what_cannot_be_killed_is_named_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing here can sleep in the kernel on request: so the signal is kept from it instead."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mark = mark_in(new_run(os.getpid()), 1)
    stubborn = [
        *(sys.executable, "-c"),
        f"import resource, time; resource.setrlimit(resource.RLIMIT_RTTIME, ({mark}, -1));"
        "print(flush=True); time.sleep(3600)",
    ]
    with (
        ours,
        theirs,
        subprocess.Popen(stubborn, stdout=subprocess.PIPE, start_new_session=True) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        spawner = spawner_main.Spawner(theirs)
        child = spawner_main._Child("w", mark, tmp_path / "scratch", time.monotonic())
        spawner._dying[process.pid] = child
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "kill", lambda _: None)
            spawner._confirm()
            assert received(ours) is None, "it may still go"
            child.died, child.next_look = -math.inf, 0.0
            spawner._confirm()
            cleared = received(ours)
            assert isinstance(cleared, protocol.Cleared)
            (text,) = cleared.unkillable
            assert text.startswith(f"pid {process.pid} python")
            assert text.endswith(("(sleeping)", "(running)"))
        child.next_look = 0.0
        spawner._confirm()
        process.wait(PATIENCE)
        child.next_look = 0.0
        spawner._confirm()
        assert spawner._dying == {}, "it went on trying"
        assert received(ours) is None, "and says nothing twice"


def received(control: socket.socket) -> protocol.Packet | None:
    control.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        return protocol.receive(control)[0]
    return None
