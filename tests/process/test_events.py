"""Each event is told when what it names happens, with what belongs to it.

Those of calls are tested with calls, those of devices with devices, those of standbys with vLLM.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from control_groups import control_group
from processes import PATIENCE, SLACK, endless, eventually, is_running, worker_of, worker_pid
from vllmport.bridge.errors import DeadlineExceeded
from vllmport.bridge.events import EVENTS
from vllmport.pool import LLM, AsyncPool, Pool, PoolLost, StartupFailed, WorkerLost
from vllmport.pool.client.aio_events import AsyncEventStream
from vllmport.pool.client.events import EventStream
from vllmport.pool.reap import sweep


def wait_for(stream: EventStream, name: str) -> dict[str, Any]:
    """Return the next event of this name."""
    while True:
        event = stream.get(PATIENCE)
        assert event is not None, f"the stream ended before {name}"
        if event["event"] == name:
            return event


@contextmanager
def watched(**policy: Any) -> Iterator[tuple[Pool, LLM, EventStream]]:
    """A pool with an echo model, and its events from the beginning."""
    with Pool(policy={"backoff_initial": 0.05, **policy}) as pool:
        llm = pool.llm("echo", step_delay=0.005)
        with pool.events(last=1000) as stream:
            yield pool, llm, stream


def test_the_life_of_a_pool_and_its_clients() -> None:
    with watched() as (pool, _, stream):
        status = pool.status()["supervisor"]
        assert wait_for(stream, "pool.started")["pid"] == status["pid"]
        with Pool.connect(pool.endpoint) as joined:
            connected = wait_for(stream, "client.connected")
            while connected["pid"] == os.getpid() and connected["client"] == 1:
                connected = wait_for(stream, "client.connected")
            assert joined.status()["supervisor"]["clients"] == 2
        gone = wait_for(stream, "client.gone")
        assert gone["client"] == connected["client"]
        assert gone["reason"] in ("it left", "disconnected")
        pool.call("shutdown", {"drain": True})
        assert wait_for(stream, "pool.stopping")["drain"] is True


def test_the_life_of_a_model() -> None:
    with watched() as (pool, _, stream):
        pid = worker_pid(pool)
        assert wait_for(stream, "worker.ready")["mode"] == "echo"
        assert wait_for(stream, "model.ready")["model"] == "echo"
        pool.unload("echo")
        draining = wait_for(stream, "worker.draining")
        assert (draining["pid"], draining["reason"]) == (pid, "unloaded")
        exited = wait_for(stream, "worker.exited")
        assert (exited["expected"], exited["cause"]) == (True, "exited with status 0")
        assert wait_for(stream, "worker.cleared")["pid"] == pid
        assert wait_for(stream, "model.unloaded")["model"] == "echo"


def test_a_worker_that_does_not_stop_when_asked_is_signalled() -> None:
    with watched(stop_timeout=1.0) as (pool, _, stream):
        os.kill(worker_pid(pool), signal.SIGSTOP)
        pool.unload("echo")
        signals = [wait_for(stream, "worker.signalled") for _ in range(3)]
        assert [(event["signal"], event["scope"]) for event in signals] == [
            ("SIGTERM", "leader"),
            ("SIGTERM", "group"),
            ("SIGKILL", "all"),
        ]
        assert wait_for(stream, "worker.exited")["expected"] is True


def test_a_model_that_cannot_load_has_failed() -> None:
    with watched() as (pool, _, stream):
        with pytest.raises(StartupFailed):
            pool.llm("echo", name="broken", fail_load="no such thing")
        gave_up = wait_for(stream, "worker.gave_up")
        assert (gave_up["worker"], gave_up["error"]) == ("broken/0", "no such thing")
        assert wait_for(stream, "model.failed")["model"] == "broken"


def test_a_model_whose_workers_keep_dying_is_unavailable() -> None:
    with watched(fail_fast_after=1, backoff_initial=5.0) as (_, llm, stream):
        with pytest.raises(WorkerLost):
            llm.call("fault", {"kind": "exit"})
        event = wait_for(stream, "model.unavailable")
        assert (event["model"], event["reason"]) == ("echo", "exited with status 9")
        assert event["retry_after"] > 0


def test_a_spawner_that_died() -> None:
    with watched() as (pool, _, stream):
        spawner = pool.status()["spawner"]["pid"]
        os.kill(spawner, signal.SIGKILL)
        assert wait_for(stream, "spawner.lost")["pid"] == spawner


def test_what_a_killed_pool_had_left(runtime_dir: Path) -> None:
    with Pool() as killed:
        killed.llm("echo")
        status = killed.status()
        run_dir = Path(killed.endpoint.removeprefix("ipc://")).parent
        pids = [status["supervisor"]["pid"], status["spawner"]["pid"], worker_pid(killed)]
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, signum)
        with watched() as (_, _, stream):
            event = wait_for(stream, "orphan.reaped")
            assert event["outcome"] == "removed"
            assert event["what"] == str(run_dir)
        assert not run_dir.exists()


def test_what_cannot_be_killed_is_told_and_not_waited_for() -> None:
    """A frozen process of the first kind of control group dies only when it is thawed."""
    with (
        control_group(("freezer", "freezer.state", "THAWED")) as group,
        watched() as (pool, llm, stream),
    ):
        child = llm.call("fault", {"kind": "child", "ways": ["setsid"]})["pid"]
        (group / "cgroup.procs").write_text(str(child))
        (group / "freezer.state").write_text("FROZEN")
        os.kill(worker_pid(pool), signal.SIGKILL)
        try:
            event = wait_for(stream, "worker.unkillable")
            assert f"pid {child} " in event["left"]
            eventually(lambda: worker_of(pool)["state"] == "READY", SLACK * 6)
        finally:
            (group / "freezer.state").write_text("THAWED")
        eventually(lambda: not is_running_pid(child))


def test_worker_that_cannot_be_killed_is_replaced_and_the_pool_stops(runtime_dir: Path) -> None:
    with (
        control_group(("freezer", "freezer.state", "THAWED")) as group,
        ExitStack() as stack,
    ):
        frozen = 0
        try:
            with watched(abort_grace=0.2) as (pool, llm, stream):
                frozen = worker_pid(pool)
                (group / "cgroup.procs").write_text(str(frozen))
                (group / "freezer.state").write_text("FROZEN")
                with pytest.raises(DeadlineExceeded):
                    llm.generate("a", endless(), timeout=0.2)
                event = wait_for(stream, "worker.unkillable")
                assert f"pid {frozen} " in event["left"]
                assert wait_for(stream, "worker.spawned")["pid"] != frozen
                eventually(lambda: worker_of(pool)["state"] == "READY", SLACK * 6)
                folder = Path(pool.status()["supervisor"]["log_dir"])
                log = stack.enter_context((folder / "supervisor.log").open())  # outlives its name
                start = time.monotonic()
            assert time.monotonic() - start < 6 * SLACK
            assert f"cannot be killed: pid {frozen} " in log.read()
        finally:
            (group / "freezer.state").write_text("THAWED")
        eventually(lambda: not is_running_pid(frozen))
    sweep(runtime_dir)  # the ledger was left, for this


async def wait_in_turn(stream: AsyncEventStream, *names: str) -> None:
    """Wait for events of these names, one after the other; others may come between them."""
    for name in names:
        while (await stream.get(PATIENCE) or {})["event"] != name:
            pass


async def test_a_coroutine_watches_from_when_it_says() -> None:
    async with AsyncPool() as pool:
        entered, awaited = pool.events(), await pool.events()
        begun, behind = pool.events(last=1000), pool.events()
        await pool.llm("echo")
        for stream in (awaited, begun):
            await wait_in_turn(stream, "worker.spawned", "model.ready")
        async with entered, behind:
            with pytest.raises(TimeoutError):
                await entered.get(0.3)
            await pool.unload("echo")
            async for event in entered:
                assert event["event"] not in ("worker.spawned", "model.ready")
                if event["event"] == "model.unloaded":
                    break
            await wait_in_turn(behind, "model.unloaded")
        assert [event async for event in entered] == [], "it was left"


async def test_a_coroutine_that_stops_waiting_for_an_event_loses_none() -> None:
    async with AsyncPool() as pool, pool.events() as stream:
        waiting = asyncio.create_task(stream.get())
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await pool.llm("echo")
        await wait_in_turn(stream, "worker.spawned", "worker.registered", "worker.ready")


async def test_who_watches_no_more_costs_the_pool_nothing() -> None:
    async with AsyncPool() as pool:
        stream, dropped = await pool.events(), await pool.events()
        connection = await pool.connection()
        assert "2 calls" in repr(connection)
        await stream.aclose()
        del dropped
        assert "0 calls" in repr(connection)
        assert await stream.get() is None


@pytest.mark.parametrize("killed", [False, True])
async def test_watching_in_a_coroutine_ends_with_the_pool(*, killed: bool) -> None:
    async with AsyncPool() as pool, pool.events() as stream:
        pid = (await pool.status())["supervisor"]["pid"]
        if killed:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(PoolLost):
                [event async for event in stream]
        else:
            await pool.aclose()
            assert [event async for event in stream] == []


def is_running_pid(pid: int) -> bool:
    import psutil

    try:
        return is_running(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def test_every_event_of_the_catalogue_is_in_a_test() -> None:
    tests = Path(__file__).parents[1]
    text = "".join(path.read_text() for path in tests.rglob("*.py"))
    assert [name for name in EVENTS if f'"{name}"' not in text] == []
