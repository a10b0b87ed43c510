"""Who dies with whom, what is restarted, and that nothing is ever left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from processes import (
    PATIENCE,
    all_gone,
    at_most,
    echoed,
    endless,
    eventually,
    family,
    identify,
    is_running,
    read_line,
    script,
    serving,
    worker_of,
    worker_pid,
)
from vllmport.pool import (
    LLM,
    InvalidRequest,
    Pool,
    PoolClosed,
    PoolLost,
    StartupFailed,
    VllmportError,
    WorkerLost,
)

MAX_RESTARTS = 2
IMPATIENT = {"max_restarts": MAX_RESTARTS, "backoff_initial": 0.05, "backoff_max": 0.1}


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool for one test to harm."""
    with Pool(policy=IMPATIENT) as pool:
        yield pool


@pytest.fixture
def llm(pool: Pool) -> LLM:
    return pool.llm("echo", step_delay=0.005)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_worker(pool: Pool) -> None:
    """Kill the worker and wait until the supervisor has seen it: a call before that is lost."""
    restarts = worker_of(pool)["restarts"]
    kill(worker_pid(pool))
    eventually(lambda: worker_of(pool)["restarts"] > restarts)


def still_answers(llm: LLM) -> bool:
    return llm.generate("still here", timeout=PATIENCE)[0].outputs[0].text == "still here"


# Workers.


def test_worker_leads_its_own_session_and_process_group(pool: Pool, llm: LLM) -> None:
    pid = worker_pid(pool)
    assert os.getpgid(pid) == os.getsid(pid) == pid == worker_of(pool)["pgid"]


def test_killed_worker_fails_its_calls_at_once_and_is_replaced(pool: Pool, llm: LLM) -> None:
    stream = llm.stream("abc", endless())
    next(stream)
    kill(worker_pid(pool))
    with at_most(0.1), pytest.raises(WorkerLost) as caught:
        list(stream)
    assert caught.value.exit == "was killed by SIGKILL"
    assert caught.value.retryable
    assert caught.value.worker == "echo/0"
    assert still_answers(llm), "the call waits for the new worker"
    worker = worker_of(pool)
    assert (worker["restarts"], worker["last_exit"]) == (1, "was killed by SIGKILL")
    assert worker["state"] == "READY"


def test_worker_that_exits_under_a_call_is_lost_with_its_status(pool: Pool, llm: LLM) -> None:
    with pytest.raises(WorkerLost) as caught:
        llm.call("fault", {"kind": "exit", "status": 5})
    assert caught.value.exit == "exited with status 5"
    assert still_answers(llm)


@pytest.mark.parametrize("ways", [[], ["setsid"]], ids=["in the group", "in a session of its own"])
def test_what_a_worker_started_dies_with_it(pool: Pool, llm: LLM, ways: list[str]) -> None:
    (child,) = identify(llm.call("fault", {"kind": "child", "ways": ways})["pid"])
    kill_worker(pool)
    assert not is_running(child), "before the next worker starts"
    assert still_answers(llm)


def test_what_a_worker_started_dies_when_its_model_is_unloaded(pool: Pool, llm: LLM) -> None:
    (child,) = identify(llm.call("fault", {"kind": "child", "ways": ["setsid"]})["pid"])
    pool.unload("echo")
    assert not is_running(child)


def test_worker_that_reports_why_it_cannot_load_is_not_tried_again(pool: Pool) -> None:
    with pytest.raises(StartupFailed, match="no such thing") as caught:
        pool.llm("echo", name="broken", fail_load="no such thing")
    error = caught.value
    assert error.interpreter == sys.executable
    assert error.path == "echo"
    assert any("load failed: no such thing" in line for line in error.stderr)
    assert not error.retryable
    assert pool.status()["workers"] == [], "nobody wants it any more"


def test_worker_that_dies_while_loading_is_given_up_after_some_tries(pool: Pool) -> None:
    with pytest.raises(StartupFailed) as caught:
        pool.llm("echo", name="broken", exit_on_load=7)
    error = caught.value
    assert "exited with status 7" in str(error)
    assert "echo: told to die while loading" in error.stderr
    assert error.path == "echo"


def test_declared_model_that_cannot_load_stays_to_be_seen() -> None:
    models = {
        "says why": {"model": "echo", "fail_load": "no such thing"},
        "just dies": {"model": "echo", "exit_on_load": 7},
    }
    with Pool(models=models, policy=IMPATIENT) as pool:
        eventually(lambda: all(w["state"] == "FAILED" for w in pool.status()["workers"]))
        workers = {worker["model"]: worker for worker in pool.status()["workers"]}
        assert workers["says why"]["restarts"] == 0
        assert workers["says why"]["error"] == "no such thing"
        assert workers["just dies"]["restarts"] == MAX_RESTARTS
        assert workers["just dies"]["last_exit"] == "exited with status 7"
        with pytest.raises(StartupFailed, match="no such thing"):
            pool.llm(name="says why")


def test_start_up_failure_names_the_interpreter_also_if_the_worker_said_nothing(pool: Pool) -> None:
    with pytest.raises(StartupFailed) as caught:
        pool.llm("echo", name="broken", exit_on_load=7)
    assert caught.value.interpreter == sys.executable


def test_interpreter_that_is_not_there_is_a_failed_start() -> None:
    text = r"could not be started.*/nowhere/python"
    with (
        Pool(python="/nowhere/python", policy=IMPATIENT) as pool,
        pytest.raises(StartupFailed, match=text),
    ):
        pool.llm("echo")


def test_worker_that_keeps_dying_is_given_up_and_calls_then_say_so(pool: Pool, llm: LLM) -> None:
    for _ in range(MAX_RESTARTS + 1):
        with pytest.raises(WorkerLost):
            llm.call("fault", {"kind": "exit", "status": 5}, timeout=PATIENCE)
    eventually(lambda: worker_of(pool)["state"] == "FAILED")
    with pytest.raises(StartupFailed, match="exited with status 5"):
        llm.generate("anybody?")
    with pool.llm("echo", step_delay=0.005) as again:  # loading it again is a new beginning
        assert still_answers(again)


def test_call_that_waits_for_a_restart_fails_when_the_worker_is_given_up(pool: Pool) -> None:
    llm = pool.llm("echo", name="doomed", load_delay=0.5, exit_on_load=7, wait=False)
    with pytest.raises(StartupFailed):
        llm.generate("hello")


# The supervisor and the spawner.


def test_killed_supervisor_is_a_lost_pool_and_takes_everything_along(pool: Pool, llm: LLM) -> None:
    everybody = family(pool)
    stream = llm.stream("abc", endless())
    next(stream)
    kill(pool.status()["supervisor"]["pid"])
    with at_most(0.1), pytest.raises(PoolLost) as caught:
        list(stream)
    assert caught.value.retryable
    eventually(lambda: all_gone(everybody))
    socket = Path(pool.endpoint.removeprefix("ipc://"))
    eventually(lambda: not socket.exists())
    with pytest.raises(VllmportError):
        llm.generate("anybody?")


def test_killed_spawner_is_replaced_with_all_its_workers(pool: Pool, llm: LLM) -> None:
    spawner = pool.status()["spawner"]["pid"]
    (child,) = identify(llm.call("fault", {"kind": "child", "ways": ["setsid"]})["pid"])
    old = identify(spawner, worker_pid(pool))
    stream = llm.stream("abc", endless())
    next(stream)
    kill(spawner)
    with at_most(0.5), pytest.raises(WorkerLost) as caught:
        list(stream)
    assert caught.value.retryable
    assert still_answers(llm)
    assert all_gone([*old, child])
    assert pool.status()["spawner"]["pid"] != spawner
    kill_worker(pool)  # the new spawner reports deaths as well
    assert still_answers(llm)


NO_SPAWNER = """
import os
if os.path.exists({flag!r}) and "vllmport.pool.spawner" in open("/proc/self/cmdline").read():
    os._exit(9)
"""


def test_pool_whose_spawner_cannot_run_any_more_is_a_lost_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(NO_SPAWNER.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with ExitStack() as stack, Pool() as pool:
        llm = pool.llm("echo")
        everybody = family(pool)
        folder = Path(pool.status()["supervisor"]["log_dir"])
        log = stack.enter_context((folder / "supervisor.log").open())  # outlives its name
        flag.touch()
        stream = llm.stream("abc", endless())
        next(stream)
        kill(pool.status()["spawner"]["pid"])
        with pytest.raises((PoolLost, WorkerLost)):
            list(stream)
        eventually(lambda: all_gone(everybody))
        with pytest.raises(VllmportError):
            llm.generate("anybody?")
        told = log.read()
    assert told.count("the spawner died") == 4, "one that was of use, and three that were not"
    assert told.count("spawners in a row ended at once") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_nothing_is_left_when_all_who_could_clean_up_die_together(
    pool: Pool, llm: LLM, order: tuple[int, ...]
) -> None:
    everybody = family(pool)
    everybody += identify(llm.call("fault", {"kind": "child"})["pid"])
    status = pool.status()
    pids = [status["supervisor"]["pid"], status["spawner"]["pid"], worker_pid(pool)]
    for pid in pids[:2]:
        os.kill(pid, signal.SIGSTOP)  # neither sees the other die
    kill(*(pids[index] for index in order))
    eventually(lambda: all_gone(everybody))


@contextmanager
def slow_service(endpoint: str) -> Iterator[tuple["subprocess.Popen[str]", Pool, LLM]]:
    """A service, a client of it, and a model that takes its time."""
    with (
        serving(endpoint, "--model", "echo") as server,
        Pool.connect(endpoint) as pool,
        pool.llm("echo", name="slow", step_delay=0.01) as llm,
    ):
        yield server, pool, llm


def refuses(llm: LLM) -> bool:
    """Tell whether the pool takes no new calls any more."""
    try:
        llm.tokenize("anybody?")
    except PoolClosed:
        return True
    return False


def test_sigterm_lets_open_calls_finish_and_takes_no_new_ones(endpoint: str) -> None:
    with slow_service(endpoint) as (server, pool, llm):
        everybody = family(pool)
        stream = llm.stream("abc", endless(60))
        first = next(stream).text
        server.terminate()
        eventually(lambda: refuses(llm))
        assert first + "".join(delta.text for delta in stream) == echoed("abc", 60)
        assert server.wait(PATIENCE) == 0
        eventually(lambda: all_gone(everybody))


def test_pool_that_drains_still_tells_its_status(endpoint: str) -> None:
    with slow_service(endpoint) as (server, pool, llm):
        stream = llm.stream("abc", endless(100))
        next(stream)
        server.terminate()
        eventually(lambda: pool.status()["supervisor"]["stopping"])
        assert len(list(stream)) == 99


def test_second_sigterm_stops_at_once(endpoint: str) -> None:
    with slow_service(endpoint) as (server, _, llm):
        stream = llm.stream("abc", endless())
        next(stream)
        server.terminate()
        eventually(lambda: refuses(llm))
        server.terminate()
        with at_most(1):
            with pytest.raises((WorkerLost, PoolLost, PoolClosed)):
                list(stream)
            assert server.wait(PATIENCE) == 0


def test_killed_service_can_be_started_again_at_once(endpoint: str) -> None:
    with serving(endpoint, "--model", "echo") as server, Pool.connect(endpoint) as pool:
        everybody = family(pool)
        server.kill()
        eventually(lambda: all_gone(everybody))
    with (
        serving(endpoint, "--model", "echo"),
        Pool.connect(endpoint) as pool,
        pool.llm(name="echo") as llm,
    ):
        assert still_answers(llm)


def test_a_client_waits_for_a_service_that_comes_back(endpoint: str) -> None:
    with serving(endpoint, "--model", "echo") as server:
        pool = Pool.connect(endpoint)
        llm = pool.llm(name="echo")
        everybody = family(pool)
        server.kill()
        eventually(lambda: all_gone(everybody))
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(still_answers, llm)
        time.sleep(0.5)
        assert not answer.done(), "nobody is there to ask"
        with serving(endpoint, "--model", "echo"):
            assert answer.result(PATIENCE)
            pool.close()


# Owners.

OWNER = """
import os, subprocess, sys, time
from vllmport.pool import Pool
pool = Pool()
llm = pool.llm("echo")
status = pool.status()
print(status["supervisor"]["pid"], status["spawner"]["pid"], status["workers"][0]["pid"])
"""

FORKS = """
child = os.fork()
if child == 0:
    time.sleep(3600)
print(child)
"""

LEAKS_DESCRIPTORS = """
for fd in range(3, 256):
    try:
        os.set_inheritable(fd, True)
    except OSError:
        pass
sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
print(subprocess.Popen(sleeper, close_fds=False).pid)
"""


def test_pool_ends_with_the_program_that_started_it() -> None:
    with script(OWNER + "time.sleep(3600)") as owner:
        everybody = identify(*map(int, read_line(owner).split()))
        owner.kill()
        eventually(lambda: all_gone(everybody))


def test_pool_ends_when_its_program_ends_without_closing_it() -> None:
    with script(OWNER + "os._exit(0)") as owner:
        pids = read_line(owner).split()
        assert owner.wait(PATIENCE) == 0
        eventually(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids))


@pytest.mark.parametrize("how", [FORKS, LEAKS_DESCRIPTORS], ids=["fork", "inherited descriptors"])
def test_pool_ends_with_its_owner_though_a_child_of_it_goes_on(how: str) -> None:
    """The child may hold the lifeline open; the supervisor watches the owner's pidfd as well."""
    with script(OWNER + how + "time.sleep(3600)") as owner:
        everybody = identify(*map(int, read_line(owner).split()))
        (child,) = identify(int(read_line(owner)))
        owner.kill()
        try:
            eventually(lambda: all_gone(everybody))
            assert is_running(child)
        finally:
            child.kill()


def test_pool_that_is_forgotten_in_a_script_ends_with_it() -> None:
    with script(OWNER) as owner:
        pids = [int(pid) for pid in read_line(owner).split()]
        assert owner.wait(PATIENCE) == 0
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
        assert owner.stderr is not None
        assert owner.stderr.read() == ""


def test_close_returns_when_nothing_is_left(runtime_dir: Path) -> None:
    before = set(runtime_dir.iterdir())
    with Pool() as pool:
        pool.llm("echo")
        everybody = family(pool)
        assert len(everybody) == 4, "supervisor, spawner, worker, guard"
    assert all_gone(everybody)
    assert set(runtime_dir.iterdir()) == before
    with pytest.raises(PoolClosed):
        pool.status()
    pool.close()


def test_close_does_not_wait_for_open_calls(pool: Pool, llm: LLM) -> None:
    stream = llm.stream("abc", endless())
    next(stream)
    with at_most(1):
        pool.close()
    with pytest.raises(PoolClosed):
        list(stream)


def test_llm_of_its_own_takes_its_pool_along() -> None:
    llm = LLM("echo")
    (supervisor,) = identify(llm._pool.status()["supervisor"]["pid"])
    assert still_answers(llm)
    llm.close()
    assert not is_running(supervisor)
    with pytest.raises(PoolClosed):
        llm.generate("anybody?")


def test_failed_start_of_a_pool_leaves_nothing() -> None:
    with pytest.raises(InvalidRequest):
        Pool(endpoint="tcp://127.0.0.1:5555")
    with pytest.raises(StartupFailed):
        LLM("echo", fail_load="no such thing")


def test_two_pools_do_not_touch_each_other(pool: Pool, llm: LLM) -> None:
    with Pool() as other:
        other_llm = other.llm("echo", step_delay=0.005)
        everybody = family(other)
        stream = other_llm.stream("abc", endless(100))
        next(stream)
        kill_worker(pool)
        assert still_answers(llm)
        pool.close()
        assert len(list(stream)) == 99
        assert all(is_running(process) for process in everybody)
        assert worker_of(other)["restarts"] == 0
