"""Workers that hang, are restarted or grow old are replaced, and callers hardly notice."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from processes import PATIENCE, at_most, endless, eventually, identify, is_running, worker_of
from vllmport.pool import (
    LLM,
    DeadlineExceeded,
    InvalidRequest,
    Pool,
    StartupFailed,
    Unavailable,
    WorkerLost,
)


@contextmanager
def echo_pool(**policy: Any) -> Iterator[tuple[Pool, LLM]]:
    with Pool(policy={"backoff_initial": 0.05, **policy}) as pool:
        yield pool, pool.llm("echo", step_delay=0.005)


def names(pool: Pool) -> list[str]:
    """Return the names of all events so far."""
    with pool.events(last=1000) as stream:
        found: list[str] = []
        while True:
            try:
                event = stream.get(0.3)
            except TimeoutError:
                return found
            assert event is not None
            found.append(event["event"])


# Hangs.


@pytest.mark.parametrize("seconds", [0.5])
def test_a_worker_that_hangs_under_a_call_is_replaced(seconds: float) -> None:
    with echo_pool(stall_timeout=seconds) as (pool, llm):
        with at_most(2 * seconds), pytest.raises(WorkerLost, match="hung: it holds 1 calls") as e:
            llm.call("fault", {"kind": "hang"}, timeout=PATIENCE)
        assert e.value.retryable
        assert llm.generate("still here")[0].outputs[0].text == "still here"
        assert "hung" in worker_of(pool)["last_exit"]
        assert "worker.hung" in names(pool)


def test_a_stopped_worker_under_a_stream_is_replaced() -> None:
    with echo_pool(stall_timeout=0.5) as (pool, llm):
        stream = llm.stream("abc", endless())
        next(stream)
        os.kill(worker_of(pool)["pid"], signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="hung"):
            list(stream)
        assert llm.generate("still here")[0].outputs[0].text == "still here"


def test_a_worker_that_computes_for_long_does_not_hang() -> None:
    with echo_pool(stall_timeout=0.5) as (pool, llm):
        llm.call("fault", {"kind": "spin", "seconds": 2.0}, timeout=PATIENCE)
        assert worker_of(pool)["restarts"] == 0


def test_calls_that_wait_for_an_engine_that_sleeps_are_no_hang_and_go_on_when_it_wakes() -> None:
    with echo_pool(stall_timeout=0.5) as (pool, llm):
        llm.sleep()
        stream = llm.stream("abc", {"max_tokens": 3})
        time.sleep(2.0)
        assert worker_of(pool)["restarts"] == 0
        assert llm.wake_up()
        assert "".join(delta.text for delta in stream) == "abc"


def test_a_worker_that_hangs_while_its_engine_sleeps_is_replaced() -> None:
    with echo_pool(stall_timeout=0.5) as (pool, llm):
        llm.sleep()
        stream = llm.stream("abc")
        os.kill(worker_of(pool)["pid"], signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="hung: its loop does not answer"):
            list(stream)
        assert llm.generate("awake")[0].outputs[0].text == "awake"


# Restart.


def test_restart_replaces_every_worker_while_calls_go_on() -> None:
    with Pool() as pool:
        llm = pool.llm("echo", replicas=2, step_delay=0.002)
        before = {worker["pid"] for worker in pool.status()["workers"]}
        done = threading.Event()
        answers: list[str] = []

        def ask() -> None:
            while not done.is_set():
                answers.append(llm.generate("hello", {"max_tokens": 5})[0].outputs[0].text)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            pool.restart("echo")
        finally:
            done.set()
            asking.join()
        eventually(lambda: len(pool.status()["workers"]) == 2)
        after = {worker["pid"] for worker in pool.status()["workers"]}
        assert not before & after
        assert set(answers) == {"hello"}


def test_a_stream_that_is_open_finishes_on_the_old_worker() -> None:
    with echo_pool() as (pool, llm):
        (old,) = identify(worker_of(pool)["pid"])
        stream = llm.stream("abc", endless(300))
        next(stream)
        pool.restart("echo")
        assert is_running(old)
        assert len("".join(delta.text for delta in stream)) == 299
        eventually(lambda: not is_running(old))


def test_a_restart_of_what_is_not_there_is_refused() -> None:
    with echo_pool() as (pool, _), pytest.raises(InvalidRequest, match="no model 'tiny'"):
        pool.restart("tiny")


def test_a_worker_that_was_given_up_is_started_anew_by_restart() -> None:
    with echo_pool(max_restarts=0) as (pool, llm):
        with pytest.raises(WorkerLost):
            llm.call("fault", {"kind": "exit"})
        eventually(lambda: worker_of(pool)["state"] == "FAILED")
        with pytest.raises(StartupFailed, match="vllmport restart"):
            llm.generate("anybody?")
        pool.restart("echo")
        assert llm.generate("still here")[0].outputs[0].text == "still here"


# Recycling.


@pytest.mark.parametrize(
    ("policy", "calls"), [({"recycle_calls": 20}, 40), ({"recycle_age": 0.5}, 0)], ids=str
)
def test_a_worker_is_replaced_when_it_is_due_and_no_call_fails(
    policy: dict[str, Any], calls: int
) -> None:
    with echo_pool(stall_timeout=1.0, **policy) as (pool, llm):
        pid = worker_of(pool)["pid"]
        for _ in range(calls):
            assert llm.generate("hello")[0].outputs[0].text == "hello"
        eventually(lambda: pid not in {worker["pid"] for worker in pool.status()["workers"]})
        assert llm.generate("hello")[0].outputs[0].text == "hello"
        assert pool.status()["counters"]["errors"] == {}


def test_a_worker_that_grows_is_replaced() -> None:
    with echo_pool(stall_timeout=1.0, recycle_rss=100 * 2**20) as (pool, llm):
        pid = worker_of(pool)["pid"]
        llm.call("fault", {"kind": "grow", "bytes": 200 * 2**20})
        eventually(lambda: pid not in {worker["pid"] for worker in pool.status()["workers"]})
        assert "worker.recycling" in names(pool)


# Failing fast.


def test_calls_fail_fast_while_workers_keep_dying() -> None:
    policy = {"backoff_initial": 5.0, "fail_fast_after": 2, "max_restarts": 10}
    with echo_pool(**policy) as (pool, llm):
        for _ in range(2):
            with pytest.raises(WorkerLost):
                llm.call("fault", {"kind": "exit"}, timeout=PATIENCE)
        eventually(lambda: worker_of(pool)["state"] == "BACKOFF")
        with at_most(0.2), pytest.raises(Unavailable) as caught:
            llm.generate("anybody?")
        assert caught.value.retryable
        assert 0 < caught.value.retry_after < 30
        assert "exited with status 9" in str(caught.value)
        pool.restart("echo")  # an operator need not wait for the pause to end
        assert llm.generate("still here")[0].outputs[0].text == "still here"


# Events.


def test_events_tell_the_life_of_a_worker() -> None:
    with echo_pool() as (pool, llm):
        with pytest.raises(WorkerLost):
            llm.call("fault", {"kind": "exit"})
        eventually(lambda: worker_of(pool)["state"] == "READY")
        seen = [name for name in names(pool) if name.startswith("worker.")]
        life = ["worker.spawned", "worker.registered", "worker.ready"]
        assert seen == [*life, "worker.exited", "worker.cleared", "worker.restarting", *life]


def test_a_watcher_gets_what_happens_from_then_on() -> None:
    with echo_pool() as (pool, _), pool.events() as stream:
        pool.llm("echo", name="another")
        first = stream.get(PATIENCE)
        assert first is not None
        assert (first["event"], first["worker"]) == ("worker.spawned", "another/0")
        last = first
        while last["event"] != "model.ready":
            last = stream.get(PATIENCE) or {}
        with pytest.raises(TimeoutError):
            stream.get(0.2)


def test_watching_ends_with_the_pool() -> None:
    with echo_pool() as (pool, _):
        stream = pool.events()
        pool.close()
        assert list(stream) == []


# Aborts.


def test_a_worker_that_does_not_let_go_of_a_call_is_replaced() -> None:
    """It computes, so it does not stall; but nobody can stop it."""
    with echo_pool(abort_grace=0.5, stall_timeout=60.0) as (pool, llm):
        with pytest.raises(DeadlineExceeded):
            llm.call("fault", {"kind": "spin", "seconds": 600}, timeout=0.3)
        with at_most(2):
            assert llm.generate("still here", timeout=PATIENCE)[0].outputs[0].text == "still here"
        assert "held a call 0.5 s after its abort" in worker_of(pool)["last_exit"]


def test_a_worker_that_lets_go_in_time_is_not_replaced() -> None:
    with echo_pool(abort_grace=0.5) as (pool, llm):
        with pytest.raises(DeadlineExceeded):
            llm.generate("abc", endless(), timeout=0.3)
        time.sleep(1.0)
        assert worker_of(pool)["restarts"] == 0


def test_status_counts_what_was_done() -> None:
    with echo_pool() as (pool, llm):
        llm.generate(["abc"] * 3, endless(10))
        assert len(list(llm.stream("abc", endless(7)))) == 7
        with pytest.raises(WorkerLost):
            llm.call("fault", {"kind": "exit"})
        assert llm.generate("abc", endless(5))
        counters = pool.status()["counters"]
        assert counters["tokens"] == 3 * 10 + 7 + 5
        assert (counters["calls"], counters["finished"], counters["started"]) == (6, 5, 6)
        assert counters["errors"] == {"worker_lost": 1}
        assert counters["restarts"] == 1
        assert counters["queue_seconds"] > 0


def test_the_callers_name_for_a_call_is_in_its_error_and_its_events() -> None:
    with echo_pool() as (_, llm):
        with pytest.raises(WorkerLost) as caught:
            llm.call("fault", {"kind": "exit"}, request_id="mine")
        assert caught.value.request_id == "mine"
        with pytest.raises(InvalidRequest) as refused:
            llm.generate("hello", {"max_tokens": 0}, request_id="mine too")
        assert refused.value.request_id == "mine too"
        with llm._pool.events(last=1000) as stream:
            while (event := stream.get(PATIENCE)) is not None and event["event"] != "call.lost":
                continue
        assert event is not None
        assert event["request_id"] == "mine"
