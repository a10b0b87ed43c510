"""Calls whose worker is killed: what had not started goes on, what asks for it is resumed."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import SLACK, at_most, echoed, endless, eventually, unfinished, worker_of, worker_pid
from vllmport.pool import (
    LLM,
    AsyncPool,
    DeadlineExceeded,
    Delta,
    InvalidRequest,
    PoisonRequest,
    Pool,
    RequestOutput,
    WorkerLost,
)
from vllmport.pool.client.stream import Stream

TOKENS = 300
"""At a token in 5 ms: long enough to be killed in the middle."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool whose worker may be killed often."""
    with Pool(policy={"max_restarts": 50, "backoff_max": 0.1, "fail_fast_after": 50}) as pool:
        yield pool


@pytest.fixture
def llm(pool: Pool) -> LLM:
    return pool.llm("echo", step_delay=0.005)


def kill(pool: Pool) -> None:
    """Kill the one worker there is."""
    os.kill(worker_pid(pool), signal.SIGKILL)


def read(stream: Stream, count: int) -> list[Delta]:
    return [next(stream) for _ in range(count)]


def said(deltas: list[Delta]) -> str:
    assert [ord(char) for delta in deltas for char in delta.text] == [
        token for delta in deltas for token in delta.token_ids
    ]
    return "".join(delta.text for delta in deltas)


async def test_of_hundreds_of_calls_only_those_fail_that_were_started(pool: Pool) -> None:
    """100 run, 100 wait in the worker, 100 in the queue."""
    async with await AsyncPool.connect(pool.endpoint) as joined:
        llm = await joined.llm("echo", max_num_seqs=100, step_delay=0.005)
        prompts = [f"prompt {number}" for number in range(300)]
        calls = [asyncio.create_task(llm.generate(prompt, endless(100))) for prompt in prompts]
        await asyncio.to_thread(eventually, lambda: unfinished(pool) == 200)
        kill(pool)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    lost = [outcome for outcome in outcomes if isinstance(outcome, WorkerLost)]
    assert len(lost) == 100
    assert {(error.attempt, error.exit) for error in lost} == {(1, "was killed by SIGKILL")}
    attempts: Counter[int] = Counter()
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if isinstance(outcome, list):
            (result,) = outcome
            assert result.outputs[0].text == echoed(prompt, 100)
            attempts[result.attempts] += 1
    assert attempts == {1: 100, 2: 100}


def test_a_call_that_was_lost_says_how_many_tokens_it_had(pool: Pool, llm: LLM) -> None:
    stream = llm.stream("abc", endless())
    deltas = read(stream, 20)
    kill(pool)
    with pytest.raises(WorkerLost) as caught:
        deltas.extend(stream)
    assert 20 <= len(said(deltas)) <= caught.value.tokens
    assert caught.value.retryable


def test_a_resumed_stream_brings_every_token_once(pool: Pool, llm: LLM) -> None:
    stream = llm.stream("abcdefg", endless(TOKENS), retry="resume")
    deltas = read(stream, 20)
    with at_most(2.0 + TOKENS * 0.005):
        kill(pool)
        deltas.extend(stream)
    assert said(deltas) == echoed("abcdefg", TOKENS)
    assert [delta.finish_reason for delta in deltas if delta.finished] == ["length"]
    assert stream.result is not None
    assert stream.result.attempts == 2
    assert stream.result.usage["completion_tokens"] == TOKENS


def test_a_resumed_stream_goes_to_the_other_replica_at_once(pool: Pool) -> None:
    llm = pool.llm("echo", name="two", replicas=2, step_delay=0.005, load_delay=2.0)
    stream = llm.stream("abc", endless(TOKENS), retry="resume")
    deltas = read(stream, 20)
    busy = next(worker for worker in pool.status()["workers"] if worker["in_flight"])
    with at_most(0.3):
        os.kill(busy["pid"], signal.SIGKILL)
        deltas.append(next(stream))
        while len(deltas) < 60:
            deltas.append(next(stream))
    stream.close()
    assert said(deltas) == echoed("abc", len(said(deltas)))


def test_a_slow_reader_of_a_resumed_stream_loses_nothing(pool: Pool) -> None:
    """Its window was used up when the worker died, and again in the second run."""
    llm = pool.llm("echo", name="fast", step_delay=0.0002)
    stream = llm.stream("abc", endless(4000), retry="resume")
    items = pool.status()["counters"]["items"]
    eventually(lambda: worker_of(pool)["steps"] > 1000)
    kill(pool)
    eventually(lambda: worker_of(pool)["restarts"] == 1 and worker_of(pool)["steps"] > 1000)
    assert pool.status()["counters"]["items"] - items <= stream._window.size
    assert said(list(stream)) == echoed("abc", 4000)


def test_a_result_without_stream_is_made_again(pool: Pool, llm: LLM) -> None:
    async def ask() -> list[Any]:
        async with await AsyncPool.connect(pool.endpoint) as joined, joined.llm(name="echo") as it:
            one = asyncio.create_task(it.generate("abc", endless(TOKENS), retry="resume"))
            chat = [{"role": "user", "content": "xyz"}]
            two = asyncio.create_task(it.chat(chat, endless(TOKENS), retry="resume"))
            await asyncio.to_thread(eventually, lambda: unfinished(pool) == 2)
            kill(pool)
            return [*await one, *await two]

    results: list[RequestOutput] = asyncio.run(ask())
    texts = [result.outputs[0].text for result in results]
    assert texts == [echoed("abc", TOKENS), echoed("xyz", TOKENS)]
    assert [result.attempts for result in results] == [2, 2]


def test_the_deadline_holds_across_attempts(pool: Pool, llm: LLM) -> None:
    stream = llm.stream("abc", endless(), timeout=1.5, retry="resume")
    deltas = read(stream, 20)
    kill(pool)
    with at_most(1.5 + 0.05), pytest.raises(DeadlineExceeded) as caught:
        deltas.extend(stream)
    assert caught.value.attempt == 2
    assert said(deltas) == echoed("abc", len(said(deltas)))
    eventually(lambda: unfinished(pool) == 0, SLACK)


def test_leaving_a_stream_while_it_waits_to_be_resumed_ends_it(pool: Pool) -> None:
    llm = pool.llm("echo", name="slow", step_delay=0.005, load_delay=0.5)
    with llm.stream("abc", endless(), retry="resume") as stream:
        read(stream, 5)
        kill(pool)
        eventually(lambda: pool.status()["models"][0]["queued"] == 1)
    eventually(lambda: pool.status()["models"][0]["queued"] == 0)
    eventually(lambda: worker_of(pool)["state"] == "READY")
    assert unfinished(pool) == 0


def test_a_call_that_kills_its_workers_gets_two_of_them(pool: Pool, llm: LLM) -> None:
    with pytest.raises(PoisonRequest) as caught:
        llm.call("fault", {"kind": "exit", "status": 9}, retry="resume")
    assert caught.value.exits == ["exited with status 9"] * 2
    assert not caught.value.retryable
    assert caught.value.attempt == 2
    assert worker_of(pool)["last_exit"] == "exited with status 9"
    assert llm.generate("well")[0].outputs[0].text == "well"
    assert worker_of(pool)["restarts"] == 2


def test_a_call_that_kills_its_worker_is_not_run_again_unasked(pool: Pool, llm: LLM) -> None:
    """Though the engine is full, so that it would have to wait once it was taken in."""
    streams = [llm.stream("abc", endless()) for _ in range(300)]
    eventually(lambda: unfinished(pool) == 300)
    with pytest.raises(WorkerLost):
        llm.call("fault", {"kind": "exit"})
    for stream in streams:
        stream.close()
    assert llm.generate("well")[0].outputs[0].text == "well"
    assert worker_of(pool)["restarts"] == 1


def test_callers_go_on_while_another_ones_calls_kill_the_worker(pool: Pool, llm: LLM) -> None:
    """One prompt at a time, each made again by hand if it was hit: as without `retry`."""

    async def ask() -> list[str]:
        async with await AsyncPool.connect(pool.endpoint) as joined, joined.llm(name="echo") as it:
            poison = [asyncio.create_task(it.call("fault", {"kind": "exit"})) for _ in range(3)]
            texts = []
            for number in range(20):
                while True:
                    try:
                        (result,) = await it.generate(f"number {number}", endless(20))
                    except WorkerLost:
                        continue
                    texts.append(result.outputs[0].text)
                    break
            await asyncio.gather(*poison, return_exceptions=True)
            return texts

    assert asyncio.run(ask()) == [echoed(f"number {number}", 20) for number in range(20)]


def test_a_way_to_retry_that_there_is_not_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate("abc", retry="always")  # type: ignore[arg-type]
    assert caught.value.parameter == "retry"


def test_boards_of_dead_workers_are_removed(pool: Pool, llm: LLM, runtime_dir: Path) -> None:
    def boards() -> set[str]:
        return {path.name for path in runtime_dir.glob("**/boards/*")}

    (first,) = boards()
    with pytest.raises(WorkerLost):
        llm.call("fault", {"kind": "exit"})
    assert llm.generate("abc")[0].outputs[0].text == "abc"
    (second,) = boards()
    assert first != second


def test_in_flight_streams_survive_a_dozen_kills_of_their_workers(pool: Pool) -> None:
    """Each is hit at most once, or it would be held to be the cause."""
    llm = pool.llm("echo", name="many", step_delay=0.002)
    for _ in range(12):
        stream = llm.stream("abcde", endless(40), retry="resume")
        deltas = read(stream, 10)
        kill(pool)
        deltas.extend(stream)
        assert said(deltas) == echoed("abcde", 40)
