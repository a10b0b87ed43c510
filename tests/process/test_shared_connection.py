"""One connection, used by threads and event loops at the same time: who reads, reads for all."""

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from processes import PATIENCE, at_most, endless, eventually
from vllmport.bridge.errors import DeadlineExceeded, PoolClosed
from vllmport.pool import LLM, Pool
from vllmport.pool.client.aio import run_call
from vllmport.pool.client.connection import Connection
from vllmport.pool.client.mailbox import Done, ThreadMailbox
from vllmport.pool.client.requests import call_for

ECHO = call_for("echo", "echo", None, None)
LONG = call_for("echo", "generate", None, None)
LONG_ARGS = {"prompt": "x", "sampling_params": endless()}


@pytest.fixture
def connection(shared_pool: Pool, echo: LLM) -> Iterator[Connection]:
    connection = Connection(shared_pool.endpoint)
    yield connection
    connection.close()


def ask(connection: Connection, value: int) -> int:
    mailbox = ThreadMailbox()
    connection.submit(ECHO, {"value": value}, PATIENCE, mailbox)
    event = connection.wait(mailbox, PATIENCE)
    assert isinstance(event, Done)
    return int(event.value["value"])


async def ask_all(connection: Connection, values: range) -> list[int]:
    answers = [run_call(connection, ECHO, {"value": value}, PATIENCE) for value in values]
    return [answer["value"] for answer in await asyncio.gather(*answers)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_threads_and_loops_are_served_side_by_side(connection: Connection) -> None:
    def by_thread(values: range) -> list[int]:
        return [ask(connection, value) for value in values]

    def by_loop(values: range) -> list[int]:
        rounds = (values[start : start + 20] for start in range(0, len(values), 20))
        return [answer for some in rounds for answer in asyncio.run(ask_all(connection, some))]

    works = (by_thread, by_thread, by_loop, by_loop)
    tasks = [range(1000 * number, 1000 * number + 200) for number in range(len(works))]
    with ThreadPoolExecutor(len(works)) as threads:
        done = [threads.submit(work, task) for work, task in zip(works, tasks, strict=True)]
        assert [future.result(2 * PATIENCE) for future in done] == [list(task) for task in tasks]


async def test_a_loop_that_computes_keeps_no_thread_waiting(connection: Connection) -> None:
    pending = asyncio.create_task(run_call(connection, LONG, LONG_ARGS, PATIENCE))
    await asyncio.sleep(0.1)
    with ThreadPoolExecutor(1) as threads:
        answers = threads.submit(lambda: [ask(connection, value) for value in range(20)])
        assert answers.result(PATIENCE) == list(range(20))  # waits in the loop's own thread
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending


async def test_what_a_thread_closes_a_loop_lets_go_of(shared_pool: Pool, echo: LLM) -> None:
    await ask_all(warm := Connection(shared_pool.endpoint), range(1))
    before = open_descriptors()
    for _ in range(5):
        connection = Connection(shared_pool.endpoint)
        pending = asyncio.create_task(run_call(connection, LONG, LONG_ARGS, PATIENCE))
        await ask_all(connection, range(3))
        await asyncio.to_thread(connection.close)
        with pytest.raises(PoolClosed):
            await pending
    await asyncio.sleep(0.1)
    eventually(lambda: open_descriptors() <= before)
    warm.close()


async def test_a_deadline_holds_in_a_loop_though_the_supervisor_is_stopped() -> None:
    with Pool() as pool, pool.llm("echo"):
        connection = Connection(pool.endpoint)
        pid = pool.status()["supervisor"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with at_most(1.5), pytest.raises(DeadlineExceeded):
                await run_call(connection, ECHO, {"value": 1}, 0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
            connection.close()
