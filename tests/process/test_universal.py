"""Universal calls through a pool: sessions, refs and streams, from the client to the worker."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import ffi_samples
from processes import eventually, worker_of
from vllmport.pool import (
    LLM,
    AsyncPool,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    NotAllowed,
    Overloaded,
    Pool,
    QuotaExceeded,
    Ref,
    Session,
    SessionLost,
)

SAMPLES = "ffi_samples"
POLICY = {"abort_grace": 1.0, "stall_timeout": 1.0}
CONFIG = {"universal": {"modules": [SAMPLES], "max_refs": 50_000}, "policy": POLICY}


@pytest.fixture(scope="module")
def pool(_module_leaves_nothing: None) -> Iterator[Pool]:
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(ffi_samples.__file__).parent)
        patch.setenv("PYTHONPATH", f"{here}:{os.environ.get('PYTHONPATH', '')}")
        with Pool(CONFIG) as pool:
            yield pool


@pytest.fixture(scope="module")
def echo(pool: Pool) -> Iterator[LLM]:
    with pool.llm("echo", max_num_seqs=4) as llm:
        yield llm


@pytest.fixture
def session(echo: LLM) -> Iterator[Session]:
    with echo.session() as session:
        yield session


def alive(session: Session) -> int:
    """Return how many samples live in the worker."""
    return int(session.call(SAMPLES, "alive"))


def test_objects_live_in_the_worker_and_values_travel(session: Session) -> None:
    thing = session.call(SAMPLES, "Thing", [1, "a"])
    assert isinstance(thing, Ref)
    assert thing.attr("value") == [1, "a"]
    assert thing.method("double") == [1, "a", 1, "a"]
    thing.set_attr("value", {"b": (2, None)})
    assert thing.attr("value") == {"b": (2, None)}
    other = session.call(SAMPLES, "Thing.twice", value=thing)
    assert [item.method("same_as", thing) for item in other.attr("value")] == [True, True]
    assert session.get(SAMPLES, "Thing.kind") == "thing"
    assert session.call(SAMPLES, "fetch", 5) == 5
    assert thing.method("later", 0.01) == {"b": (2, None)}
    assert session.call(SAMPLES, "Engine")["a"] == 1
    assert session.get("engine", "info")["model"] == "echo"


def test_generators_are_streamed_and_may_be_left(session: Session) -> None:
    assert list(session.stream(SAMPLES, "numbers", 1000)) == list(range(1000))
    with session.stream(SAMPLES, "endless") as numbers:
        assert [next(numbers) for _ in range(700)] == list(range(700))
    things = list(session.stream(SAMPLES, "slowly", 3, 0.001))
    assert [thing.attr("value") for thing in things] == [0, 1, 2]
    held = session.call(SAMPLES, "numbers", 3)
    assert isinstance(held, Ref)
    assert list(held) == [0, 1, 2]
    plain = session.stream(SAMPLES, "fetch", "no iterator")
    assert list(plain) == []
    assert plain.result == "no iterator"


def test_what_is_not_on_the_list_is_refused(session: Session) -> None:
    thing = session.call(SAMPLES, "Thing")
    with pytest.raises(NotAllowed) as caught:
        session.call("os", "system", "true")
    assert caught.value.name == "os"
    with pytest.raises(NotAllowed):
        thing.attr("__class__")
    with pytest.raises(NotAllowed):
        thing.method("system")
    with pytest.raises(NotAllowed):
        session.get(SAMPLES, "os")


def test_errors_of_the_library_come_with_their_class(session: Session) -> None:
    with pytest.raises(EngineError, match="on purpose") as caught:
        session.call(SAMPLES, "fail", "on purpose")
    assert caught.value.details["class"] == "builtins.RuntimeError"


def test_the_end_of_a_session_frees_its_objects(echo: LLM, session: Session) -> None:
    before = alive(session)
    with echo.session() as other:
        kept = other.call(SAMPLES, "things", 7)
        assert alive(session) == before + 7
    eventually(lambda: alive(session) == before)
    with pytest.raises(SessionLost):
        kept[0].attr("value")


def test_the_end_of_a_connection_frees_the_objects_of_its_sessions(
    pool: Pool, session: Session
) -> None:
    before = alive(session)
    with Pool.connect(pool.endpoint) as other:
        llm = other.llm(name="echo")
        kept = llm.session().call(SAMPLES, "things", 7)
        shared = llm.session("lives on", ttl=1.5).call(SAMPLES, "Thing", 5)
        assert alive(session) == before + 8
    del kept
    eventually(lambda: alive(session) == before + 1)
    with Pool.connect(pool.endpoint) as again:
        named = again.llm(name="echo").session("lives on", ttl=1.5)
        assert named.attr(shared, "value") == 5
    eventually(lambda: alive(session) == before)


def test_handles_that_are_gone_free_their_objects_with_the_next_call(session: Session) -> None:
    before = alive(session)
    tree = session.call(SAMPLES, "tree")
    thing = tree["thing"]
    assert alive(session) == before + 1
    del tree
    gc.collect()
    assert thing.attr("value") == 1, "another handle of the same object is still there"
    del thing
    gc.collect()
    session.get(SAMPLES, "Thing.kind")
    assert alive(session) == before
    again = session.call(SAMPLES, "Thing")
    again.release()
    again.release()
    assert alive(session) == before


@pytest.mark.parametrize("how", ["call", "stream"])
def test_a_call_that_was_never_made_leaves_gone_handles_to_the_next(
    session: Session, how: str
) -> None:
    before = alive(session)
    thing = session.call(SAMPLES, "Thing")
    del thing
    gc.collect()
    with pytest.raises(InvalidRequest):
        getattr(session, how)(SAMPLES, "fetch", object())
    assert alive(session) == before


def test_ten_thousand_refs_made_and_dropped_leave_memory_flat(pool: Pool, session: Session) -> None:
    worker = psutil.Process(worker_of(pool)["pid"])

    def churn(rounds: int) -> None:
        for _ in range(rounds):
            session.call(SAMPLES, "things", 500)

    churn(10)
    before = worker.memory_info().rss
    churn(20)
    session.release()
    assert alive(session) < 10
    assert worker.memory_info().rss < before + 4 * 2**20


def test_a_result_of_many_objects_evicts_nothing(session: Session) -> None:
    first = session.call(SAMPLES, "Thing", "first")
    many = session.call(SAMPLES, "things", 10_050)
    assert first.attr("value") == "first"
    assert many[0].attr("value") == 0
    assert many[-1].attr("value") == 10_049


def test_a_quota_bounds_a_session(session: Session) -> None:
    first = session.call(SAMPLES, "Thing", "first")
    with pytest.raises(QuotaExceeded):
        session.call(SAMPLES, "things", 50_000)
    assert first.attr("value") == "first"


def test_terms_that_cannot_be_meant_are_refused(echo: LLM) -> None:
    with pytest.raises(InvalidRequest, match="affinity is one of"):
        echo.session(affinity="sticky")
    with pytest.raises(InvalidRequest, match="only a session with a name"):
        echo.session(ttl=5.0)
    with pytest.raises(InvalidRequest, match="ttl is seconds"):
        echo.session("a", ttl=0)


def test_what_awaits_is_stopped_at_its_deadline(session: Session) -> None:
    thing = session.call(SAMPLES, "Thing", 1)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        session.within(0.2).method(thing, "later", 60.0)
    assert time.monotonic() - start < 5
    assert thing.method("later", 0.0) == 1


def test_a_call_that_waits_for_long_is_no_hang(session: Session) -> None:
    thing = session.call(SAMPLES, "Thing", 1)
    assert thing.method("later", 4.0) == 1
    assert session.call(SAMPLES, "compute", 4.0) == 4.0


def test_coroutines_have_the_same_client(pool: Pool) -> None:
    async def main() -> None:
        async with await AsyncPool.connect(pool.endpoint) as other:
            llm = await other.llm(name="echo")
            async with llm.session() as session:
                thing = await session.call(SAMPLES, "Thing", 4)
                assert await thing.method("double") == 8
                await thing.set_attr("value", 5)
                assert await thing.attr("value") == 5
                found = [item async for item in session.stream(SAMPLES, "numbers", 600)]
                assert found == list(range(600))
                held = await session.call(SAMPLES, "numbers", 2)
                assert [item async for item in held] == [0, 1]
                assert await (await session.call(SAMPLES, "Engine")).item("a") == 1
                slow = [thing.method("later", 0.3) for _ in range(5)]
                start = time.monotonic()
                assert await asyncio.gather(*slow) == [5] * 5
                assert time.monotonic() - start < 1.4, "they wait side by side"
                await thing.release()
                with pytest.raises(SessionLost):
                    await thing.attr("value")

    asyncio.run(main())


# Several workers.


def test_two_clients_with_refs_on_different_workers_never_cross(pool: Pool) -> None:
    with pool.llm("echo", name="two", replicas=2, max_num_seqs=1) as llm:
        one, other = llm.session(), llm.session()
        mine = one.call(SAMPLES, "Thing", "mine")
        theirs = other.call(SAMPLES, "Thing", "theirs")
        assert mine.worker != theirs.worker
        for _ in range(100):
            assert mine.attr("value") == "mine"
            assert theirs.attr("value") == "theirs"
        assert one.call(SAMPLES, "worker") != other.call(SAMPLES, "worker")
        with pytest.raises(SessionLost):
            one.attr(theirs, "value")
        with pytest.raises(SessionLost):
            other.call(SAMPLES, "fetch", [mine])


def test_a_lost_worker_is_a_lost_session_until_it_is_ended(pool: Pool) -> None:
    with pool.llm("echo", name="mortal") as llm:
        session = llm.session()
        thing = session.call(SAMPLES, "Thing", 1)
        pid = session.call(SAMPLES, "worker")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SessionLost, match="gone with their worker") as caught:
            session.within(30).method(thing, "later", 20.0)
        assert "SIGKILL" in caught.value.exit
        with pytest.raises(SessionLost):
            session.call(SAMPLES, "worker")
        thing.release()
        session.end()
        assert session.call(SAMPLES, "worker") != pid
        with pytest.raises(SessionLost):
            thing.attr("value")


def test_a_restart_loses_the_sessions_that_hold_something(pool: Pool) -> None:
    with pool.llm("echo", name="restarted") as llm:
        holding, empty = llm.session(), llm.session()
        thing = holding.call(SAMPLES, "Thing", 1)
        pid = empty.call(SAMPLES, "worker")
        pool.restart("restarted")
        assert empty.call(SAMPLES, "worker") != pid
        with pytest.raises(SessionLost):
            thing.attr("value")


def test_strict_fail_fast_fails_and_strict_queue_waits_where_there_is_no_room(pool: Pool) -> None:
    with pool.llm("echo", name="full", replicas=2, max_num_seqs=1) as llm:
        waits = llm.session("s", affinity="strict_queue")
        fails = llm.session("s", affinity="strict_fail_fast")
        pid = waits.call(SAMPLES, "worker")
        busy = [waits.stream(SAMPLES, "slowly", 1, 1.5) for _ in range(2)]
        eventually(lambda: max(w["in_flight"] for w in pool.status()["workers"]) == 2)
        with pytest.raises(Overloaded, match="does not wait"):
            fails.call(SAMPLES, "worker")
        with pytest.raises(Overloaded):
            list(fails.stream(SAMPLES, "numbers", 3))
        assert waits.call(SAMPLES, "worker") == pid
        assert [len(list(stream)) for stream in busy] == [1, 1]
        waits.end()


def test_a_call_that_computes_on_has_its_worker_replaced_while_others_go_on(pool: Pool) -> None:
    with pool.llm("echo", name="stuck", step_delay=0.01) as llm:
        pid = llm.session().call(SAMPLES, "worker")
        stream = llm.stream("abc", {"max_tokens": 400, "ignore_eos": True})
        assert next(stream).text
        with pytest.raises(DeadlineExceeded):
            llm.session().within(0.3).call(SAMPLES, "compute", 3600)
        eventually(lambda: llm.session().within(5).call(SAMPLES, "worker") != pid)
        assert sum(len(delta.token_ids) for delta in stream) == 399
        eventually(lambda: not psutil.pid_exists(pid))
