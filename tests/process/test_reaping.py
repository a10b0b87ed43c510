"""Children that hide themselves, and ends at which nobody is left to clean up."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import (
    PATIENCE,
    all_gone,
    at_most,
    entries,
    eventually,
    family,
    identify,
    is_running,
    serving,
    vllmport,
    worker_of,
    worker_pid,
)
from vllmport.pool import Pool
from vllmport.pool.guard import guards_last
from vllmport.pool.marks import mark_in, mark_of, new_run

HIDE = """
import ctypes, os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
if "again" not in sys.argv:  # the environment that the kernel shows is that of the last exec
    os.execve(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1], "", "again"], {})
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, signal.SIG_IGN)
ctypes.CDLL(None).prctl(15, b"systemd")
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.closerange(0, 256)
time.sleep(3600)
"""
"""Forks twice, leaves the session, clears its environment, is deaf, renamed, and holds no file."""


class Hidden:
    """An interpreter for workers that each start a child which hides itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[psutil.Process] = []
        script = folder / "hide.py"
        script.write_text(HIDE)
        python = folder / "python"
        python.write_text(
            "#!/bin/sh\n"
            f'{sys.executable} -c "$(cat {script})" {folder}/$$.pid "$(cat {script})"\n'
            f'exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        self.python = str(python)

    def child(self) -> psutil.Process:
        """Wait for the next one, and return it."""
        file = eventually(lambda: next(iter(self._folder.glob("*.pid")), None))
        assert file is not None
        self._children += identify(int(file.read_text()))
        file.unlink()
        return self._children[-1]

    def left(self) -> list[psutil.Process]:
        """Kill those that still run, and return them."""
        left = [child for child in self._children if is_running(child)]
        for child in left:
            child.kill()
        return left


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Hidden]:
    hidden = Hidden(tmp_path)
    yield hidden
    assert hidden.left() == []


@pytest.fixture
def pool(hidden: Hidden) -> Iterator[Pool]:
    with Pool(python=hidden.python) as pool:
        yield pool


def pids(pool: Pool) -> list[int]:
    """Return supervisor, spawner and worker."""
    status = pool.status()
    return [status["supervisor"]["pid"], status["spawner"]["pid"], status["workers"][0]["pid"]]


def kill_together(*pids: int) -> None:
    """Kill processes so that none of them sees another die."""
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)


def guards(pool: Pool) -> list[int]:
    """Return the shells that guard the groups of the workers."""
    return [process.pid for process in family(pool) if process.name() == "sh"]


def ledgers(runtime_dir: Path) -> set[str]:
    return {name for name in entries(runtime_dir) if name.endswith(".ledger")}


# Hidden children.


def test_child_that_hides_is_nothing_its_worker_could_be_known_by(
    pool: Pool, hidden: Hidden
) -> None:
    pool.llm("echo")
    child = hidden.child()
    worker = worker_pid(pool)
    assert os.getsid(child.pid) != os.getsid(worker)
    assert child.ppid() != worker
    assert child.environ() == {}
    assert child.name() == "systemd"


def test_hidden_child_dies_with_its_worker(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    child = hidden.child()
    with at_most(1):
        os.kill(worker_pid(pool), signal.SIGKILL)
        eventually(lambda: all_gone([child]))
    eventually(lambda: worker_of(pool)["state"] == "READY")
    assert is_running(hidden.child()), "of the next worker"


def test_hidden_child_of_another_worker_lives_on(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo", name="first")
    first = hidden.child()
    pool.llm("echo", name="second")
    second = hidden.child()
    pool.unload("first")
    assert not is_running(first)
    assert is_running(second)


def test_hidden_child_dies_with_supervisor_spawner_and_worker_together(
    pool: Pool, hidden: Hidden
) -> None:
    """Nobody of ours is left but the guard."""
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    with at_most(2):
        kill_together(*pids(pool))
        eventually(lambda: all_gone(everybody))


def test_hidden_child_dies_when_only_supervisor_and_spawner_are_killed(
    pool: Pool, hidden: Hidden
) -> None:
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    with at_most(2):
        kill_together(*pids(pool)[:2])
        eventually(lambda: all_gone(everybody))


def test_hidden_child_dies_with_the_supervisor(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    with at_most(2):
        os.kill(pids(pool)[0], signal.SIGKILL)
        eventually(lambda: all_gone(everybody))


def test_hidden_child_dies_when_its_group_was_killed_before_supervisor_and_spawner(
    pool: Pool, hidden: Hidden
) -> None:
    """As when the spawner is killed between the first and the last it kills for a worker."""
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    supervisor, spawner, worker = pids(pool)
    for pid in (supervisor, spawner):
        os.kill(pid, signal.SIGSTOP)
    with at_most(2):
        os.killpg(worker, signal.SIGKILL)
        for pid in (supervisor, spawner):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: all_gone(everybody))


def test_guard_is_killed_last(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    (guard,) = identify(*guards(pool))
    child = hidden.child()
    assert guards_last([guard, child]) == [child]
    assert guards_last([guard]) == [guard]


# When the guards were killed as well.


def orphan(pool: Pool, hidden: Hidden) -> psutil.Process:
    """Kill everything of a pool but a hidden child, which nothing is left to see."""
    llm = pool.llm("echo")
    child = hidden.child()
    everybody = family(pool)
    kill_together(*guards(pool), *pids(pool))
    eventually(lambda: all_gone([p for p in everybody if p != child]))
    assert is_running(child)
    del llm
    return child


def test_what_nobody_was_left_to_kill_ends_at_the_next_start(
    pool: Pool, hidden: Hidden, runtime_dir: Path
) -> None:
    child = orphan(pool, hidden)
    run_dir = Path(pool.endpoint.removeprefix("ipc://")).parent
    assert len(ledgers(runtime_dir)) == 1
    with Pool() as other:
        assert not is_running(child), "before the new pool serves"
        assert not run_dir.exists()
        assert len(ledgers(runtime_dir)) == 1, "its own"
        assert other.llm("echo").generate("hello")[0].outputs[0].text == "hello"


def test_what_nobody_was_left_to_kill_ends_when_its_owner_closes_the_pool(
    pool: Pool, hidden: Hidden, runtime_dir: Path
) -> None:
    child = orphan(pool, hidden)
    with subprocess.Popen(["/bin/true"]) as own:  # of the program; it must stay for it to collect
        eventually(lambda: psutil.Process(own.pid).status() == psutil.STATUS_ZOMBIE)
        pool.close()
        assert not is_running(child)
        assert ledgers(runtime_dir) == set()
        assert own.wait() == 0


def test_pool_that_lives_is_not_touched_by_one_that_starts_and_sweeps(
    pool: Pool, hidden: Hidden, runtime_dir: Path, tmp_path: Path
) -> None:
    with Pool() as living:
        llm = living.llm("echo", step_delay=0.005)
        everybody = family(living)
        stream = llm.stream("abc", {"max_tokens": 200, "ignore_eos": True})
        next(stream)
        child = orphan(pool, hidden)
        for _ in range(2):
            with Pool() as other:
                other.llm("echo")
        assert not is_running(child)
        assert len(list(stream)) == 199
        assert all(map(is_running, everybody))
        assert worker_of(living)["restarts"] == 0


def test_killed_service_leaves_no_socket_and_no_lock(endpoint: str, runtime_dir: Path) -> None:
    with serving(endpoint, "--model", "echo") as server, Pool.connect(endpoint) as pool:
        everybody = family(pool)
        server.kill()
        eventually(lambda: all_gone(everybody))
    name = endpoint.rpartition("/")[2]
    eventually(lambda: not {n for n in entries(runtime_dir) if n.startswith(name)})


# By hand.


def reaped(of: str, *args: str) -> list[dict[str, str]]:
    """Return what `vllmport reap` found of this pool or this process; others may be there too."""
    done = vllmport("reap", "--json", *args)
    assert done.returncode == 0, done.stderr
    return [f for f in json.loads(done.stdout) if of in (f["whose"], f["what"].split(" (")[0])]


def pool_at(pool: Pool) -> str:
    return f"the pool at {pool.endpoint}"


def test_reap_says_what_it_would_do_and_then_does_it(
    pool: Pool, hidden: Hidden, runtime_dir: Path
) -> None:
    child = orphan(pool, hidden)
    found = reaped(pool_at(pool), "--dry-run")
    (process,) = (f for f in found if f["outcome"] == "would be killed")
    assert process["what"].startswith(f"pid {child.pid} systemd")
    assert is_running(child)
    done = vllmport("reap")
    assert f"killed: pid {child.pid} systemd" in done.stdout
    assert not is_running(child)
    assert ledgers(runtime_dir) == set()
    assert reaped(pool_at(pool)) == []


def test_reap_leaves_a_pool_alone_that_lives(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    assert reaped(pool_at(pool)) == []
    assert all(map(is_running, everybody))


def test_reap_finds_an_orphan_that_no_ledger_knows(
    pool: Pool, hidden: Hidden, runtime_dir: Path
) -> None:
    child = orphan(pool, hidden)
    for name in ledgers(runtime_dir):
        (runtime_dir / name).unlink()
    (found,) = reaped(f"pid {child.pid} systemd")
    assert found["outcome"] == "killed"
    assert not is_running(child)


def test_reap_leaves_a_pool_alone_whose_ledger_is_elsewhere(
    pool: Pool, hidden: Hidden, runtime_dir: Path
) -> None:
    pool.llm("echo")
    everybody = [*family(pool), hidden.child()]
    (name,) = ledgers(runtime_dir)
    (runtime_dir / name).rename(runtime_dir / "elsewhere")
    try:
        assert reaped(f"the supervisor with pid {pids(pool)[0]}") == []
    finally:
        (runtime_dir / "elsewhere").rename(runtime_dir / name)
    assert all(map(is_running, everybody))


def test_reap_only_reports_what_may_have_a_living_owner() -> None:
    mark = mark_in(new_run(os.getpid()), 1)
    limit = f"resource.setrlimit(resource.RLIMIT_RTTIME, ({mark}, -1))"
    code = f"import resource, time; {limit}; time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", code]) as orphan:
        try:
            eventually(lambda: mark_of(orphan.pid) == mark)
            (found,) = reaped(f"the supervisor with pid {os.getpid()}")
            assert found["outcome"] == "kept, a process with that pid lives"
            assert orphan.poll() is None
        finally:
            orphan.kill()


# Files.


def test_worker_has_a_temporary_folder_that_goes_with_it(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    environ = psutil.Process(worker_pid(pool)).environ()
    folder = Path(environ["TMPDIR"])
    assert folder.stat().st_mode & 0o777 == 0o700
    shared = [Path(f"/dev/shm/psm_{environ['VLLMPORT_WORKER_TAG']}_1234"), folder / "socket"]
    other = Path("/dev/shm/psm_5555555555555555555_1")
    for path in (*shared, other):
        path.touch()
    try:
        os.kill(worker_pid(pool), signal.SIGKILL)
        eventually(lambda: not folder.exists())
        assert not any(path.exists() for path in shared)
        assert other.exists(), "nobody's that we know"
    finally:
        other.unlink()


def test_guard_removes_the_files_of_its_worker(pool: Pool, hidden: Hidden) -> None:
    pool.llm("echo")
    environ = psutil.Process(worker_pid(pool)).environ()
    folder = Path(environ["TMPDIR"])
    mark = environ["VLLMPORT_WORKER_TAG"]
    shared = [Path(f"/dev/shm/{name}") for name in (f"psm_{mark}_1234", f"vllm_dist_{mark}_5f-tp")]
    for path in shared:
        path.touch()
    kill_together(*pids(pool))
    with at_most(2):
        eventually(lambda: not any(path.exists() for path in (folder, *shared)))


# Where the limit cannot carry a mark.


def test_without_the_limit_a_child_is_known_by_its_environment(runtime_dir: Path) -> None:
    source = """
import os, resource, signal
import psutil
resource.setrlimit(resource.RLIMIT_RTTIME, (10**9, 10**9))
from vllmport.pool import Pool
from vllmport.pool.marks import can_mark
assert not can_mark()
with Pool() as pool:
    llm = pool.llm("echo")
    child = psutil.Process(llm.call("fault", {"kind": "child", "setsid": True})["pid"])
    os.kill(pool.status()["workers"][0]["pid"], signal.SIGKILL)
    while pool.status()["workers"][0]["restarts"] == 0:
        pass
    print(llm.generate("hello", timeout=20)[0].outputs[0].text, child.is_running())
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hello", "False"]
