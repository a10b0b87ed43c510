"""Calls through a real pool: deadlines, cancelling, order, limits, and callers of every kind."""

import asyncio
import math
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from processes import (
    PATIENCE,
    SLACK,
    at_most,
    echoed,
    endless,
    eventually,
    read_line,
    script,
    unfinished,
    worker_of,
)
from vllmport.bridge.codec import Array
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.pool import (
    LLM,
    AsyncPool,
    Cancelled,
    DeadlineExceeded,
    Delta,
    EngineError,
    InvalidRequest,
    Overloaded,
    Pool,
    PoolClosed,
    SamplingParams,
    WorkerLost,
)
from vllmport.pool.client.requests import Params

SOON = 1.0
"""Seconds within which a cancelled call has to be out of the engine."""


@pytest.fixture(scope="module")
def narrow(shared_pool: Pool) -> Iterator[LLM]:
    """An engine that works on one request at a time, holds two, and has a short queue."""
    with Pool(policy={"max_queue": 2}) as pool:
        yield pool.llm("echo", max_num_seqs=1, step_delay=0.005)


def texts(results: list[Any]) -> list[str]:
    return [result.outputs[0].text for result in results]


def nothing_runs(llm: LLM) -> bool:
    return unfinished(llm._pool) == 0


# Answers.


def test_answers_have_the_shape_and_names_of_vllm(echo: LLM) -> None:
    (result,) = echo.generate("Hello", SamplingParams(max_tokens=3), request_id="mine")
    (output,) = result.outputs
    assert (result.request_id, result.prompt, result.finished) == ("mine", "Hello", True)
    assert result.prompt_token_ids == list(map(ord, "Hello"))
    assert (output.index, output.text, output.token_ids) == (0, "Hel", list(map(ord, "Hel")))
    assert (output.finish_reason, output.finished) == ("length", True)
    assert result.usage == {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0}


@pytest.mark.parametrize(
    "prompt", ["Hi", [72, 105], {"prompt": "Hi"}, {"prompt_token_ids": [72, 105]}], ids=repr
)
def test_prompt_may_be_text_token_ids_or_a_map(echo: LLM, prompt: Any) -> None:
    assert texts(echo.generate(prompt)) == ["Hi"]


def test_stream_brings_every_token_once_and_ends_once(echo: LLM) -> None:
    stream = echo.stream("abc", endless(50), request_id="mine")
    assert stream.result is None
    deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == echoed("abc", 50)
    assert [delta.finish_reason for delta in deltas if delta.finished] == ["length"]
    assert deltas[-1].finished
    assert list(stream) == [], "it stays ended"
    assert stream.result is not None
    assert (stream.result.request_id, stream.result.outputs) == ("mine", [])
    assert stream.result.usage["completion_tokens"] == 50


def test_chat_and_its_stream(echo: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert texts(echo.chat(messages)) == ["Hi"]
    assert texts(echo.chat([messages, [{"role": "user", "content": "Yo"}]])) == ["Hi", "Yo"]
    assert "".join(delta.text for delta in echo.stream_chat(messages)) == "Hi"


def test_tokenize_detokenize_and_facts(echo: LLM) -> None:
    assert echo.tokenize("ab") == [97, 98]
    assert echo.detokenize([97, 98]) == "ab"
    assert echo.engine_config()["step_delay"] == 0.001


# Deadlines.


def test_deadline_in_the_engine_is_kept_and_leaves_nothing_there(echo: LLM) -> None:
    with at_most(0.1 + 0.05), pytest.raises(DeadlineExceeded) as caught:
        echo.generate("abc", endless(), timeout=0.1, request_id="late")
    assert nothing_runs(echo)
    error = caught.value
    assert 0 < error.tokens < 1_000_000
    assert (error.phase, error.worker, error.attempt) == ("decode", "echo/0", 1)
    assert error.partial["outputs"][0]["text"] == echoed("abc", error.tokens)


def test_deadline_of_a_stream_gives_what_had_come_by_then(echo: LLM) -> None:
    deltas: list[Delta] = []
    with pytest.raises(DeadlineExceeded) as caught:
        deltas.extend(echo.stream("abc", endless(), timeout=0.1))
    text = "".join(delta.text for delta in deltas)
    assert text == echoed("abc", caught.value.tokens)
    assert nothing_runs(echo)


def test_call_that_expires_in_the_queue_never_reaches_the_engine(narrow: LLM) -> None:
    pool = narrow._pool
    with narrow.stream("a", endless()) as running, narrow.stream("b", endless()) as held:
        next(running)
        eventually(lambda: worker_of(pool)["in_flight"] == 2)
        with at_most(0.1 + 0.05), pytest.raises(DeadlineExceeded) as caught:
            narrow.generate("c", timeout=0.1)
        assert (caught.value.phase, caught.value.tokens) == ("queue", 0)
        assert (caught.value.worker, caught.value.attempt) == ("", 0)
        assert unfinished(pool) == 2
        assert pool.status()["models"][0]["queued"] == 0
        assert not held.result
    eventually(lambda: nothing_runs(narrow), SOON * SLACK)
    steps = worker_of(pool)["steps"]
    assert worker_of(pool)["steps"] == steps, "nothing more came to it"


def test_call_that_expires_before_its_first_token_says_so(narrow: LLM) -> None:
    with narrow.stream("a", endless()) as running:
        next(running)
        with pytest.raises(DeadlineExceeded) as caught:
            narrow.generate("b", timeout=0.1)
    assert (caught.value.phase, caught.value.tokens) == ("waiting", 0)
    eventually(lambda: nothing_runs(narrow), SOON * SLACK)


def test_deadline_holds_though_the_worker_hangs() -> None:
    """The supervisor answers a grace later, and the client itself another one."""
    with Pool() as pool:
        llm = pool.llm("echo")
        with at_most(1.5), pytest.raises(DeadlineExceeded) as caught:
            llm.call("fault", {"kind": "hang"}, timeout=0.2)
        assert caught.value.phase == "worker"


def test_timeout_may_be_infinite(echo: LLM) -> None:
    assert texts(echo.generate("abc", timeout=math.inf)) == ["abc"]


# Cancelling.


def test_leaving_a_stream_cancels_it(echo: LLM) -> None:
    with echo.stream("abc", endless()) as stream:
        for _ in stream:
            break
    eventually(lambda: nothing_runs(echo), SOON * SLACK)
    assert list(stream) == []


def test_closing_a_stream_cancels_it(echo: LLM) -> None:
    stream = echo.stream("abc", endless())
    next(stream)
    stream.close()
    stream.close()
    eventually(lambda: nothing_runs(echo), SOON * SLACK)


def test_forgetting_a_stream_cancels_it(echo: LLM) -> None:
    for _ in echo.stream("abc", endless()):
        break
    eventually(lambda: nothing_runs(echo), SOON * SLACK)


def test_cancelled_call_that_waits_in_the_queue_is_forgotten(narrow: LLM) -> None:
    pool = narrow._pool
    with narrow.stream("a", endless()) as running, narrow.stream("b", endless()):
        next(running)
        with narrow.stream("c", endless()):
            eventually(lambda: pool.status()["models"][0]["queued"] == 1)
        eventually(lambda: pool.status()["models"][0]["queued"] == 0)
    eventually(lambda: nothing_runs(narrow), SOON * SLACK)


async def test_cancelling_the_task_cancels_the_call(shared_pool: Pool, echo: LLM) -> None:
    async with await AsyncPool.connect(shared_pool.endpoint) as pool, pool.llm(name="echo") as llm:
        task = asyncio.create_task(llm.generate("abc", endless()))
        await asyncio.to_thread(eventually, lambda: not nothing_runs(echo))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(eventually, lambda: nothing_runs(echo), SOON * SLACK)

        async def read() -> None:
            async for _ in llm.stream("abc", endless()):
                pass

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await read()
        await asyncio.to_thread(eventually, lambda: nothing_runs(echo), SOON * SLACK)


CLIENT = """
import os, sys
from vllmport.pool import Pool
pool = Pool.connect(sys.argv[1])
llm = pool.llm(name="echo")
endless = {"max_tokens": 10**6, "ignore_eos": True}
"""


def test_killed_client_leaves_nothing_in_the_engine(shared_pool: Pool, echo: LLM) -> None:
    source = CLIENT + "s = llm.stream('a', endless); next(s); print('on'); list(s)"
    with script(source, shared_pool.endpoint) as client:
        assert read_line(client) == "on"
        assert unfinished(shared_pool) == 1
        client.kill()
        eventually(lambda: nothing_runs(echo), SOON * SLACK)
        assert shared_pool.status()["supervisor"]["clients"] == 1


def test_ctrl_c_cancels_the_call_and_leaves_the_pool_healthy() -> None:
    source = """
from vllmport.pool import Pool
with Pool() as pool:
    llm = pool.llm("echo", step_delay=0.001)
    print("on")
    for attempt in range(2):
        try:
            if attempt == 0:
                llm.generate("abc", {"max_tokens": 10**6, "ignore_eos": True})
            else:
                for _ in llm.stream("abc", {"max_tokens": 10**6, "ignore_eos": True}):
                    pass
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print(pool.status()["workers"][0]["unfinished"], llm.generate("well")[0].outputs[0].text)
"""
    with script(source) as program:
        assert read_line(program) == "on"
        for _ in range(2):
            threading.Event().wait(0.3)  # it shall be in the middle of the call
            program.send_signal(signal.SIGINT)
            assert read_line(program) == "interrupted"
        assert read_line(program) == "0 well"
        assert program.wait(PATIENCE) == 0


# Order, queues, batches.


def test_lower_priority_number_runs_first(narrow: LLM) -> None:
    pool, finished = narrow._pool, []

    def ask(prompt: str, priority: int) -> None:
        narrow.generate(prompt, priority=priority)
        finished.append(prompt)

    with narrow.stream("a", endless()) as running, narrow.stream("b", endless()):
        next(running)
        threads = []
        for queued, (prompt, priority) in enumerate([("later", 5), ("sooner", -5)], 1):
            threads.append(threading.Thread(target=ask, args=(prompt, priority)))
            threads[-1].start()
            eventually(lambda queued=queued: pool.status()["models"][0]["queued"] == queued)  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE)
    assert finished == ["sooner", "later"]


def test_each_prompt_of_a_list_may_have_a_priority_of_its_own(narrow: LLM) -> None:
    """The first never ends: the second comes to its end only because it ran before."""
    status, results = narrow._pool.status, []

    def ask() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            narrow.generate(["later", "sooner"], [endless(), None], priority=[5, -5], timeout=3)
        results.extend(caught.value.details["results"])

    with narrow.stream("a", endless()) as running, narrow.stream("b", endless()):
        next(running)
        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: status()["models"][0]["queued"] == 2)
    thread.join(PATIENCE)
    later, sooner = results
    assert later is None
    assert sooner.outputs[0].text == "sooner"
    with pytest.raises(InvalidRequest, match="1 priorities for 2 prompts"):
        narrow.generate(["a", "b"], priority=[1])


def test_full_queue_says_when_to_come_back(narrow: LLM) -> None:
    pool = narrow._pool
    streams = [narrow.stream(letter, endless()) for letter in "abcd"]
    eventually(lambda: pool.status()["models"][0]["queued"] == 2)
    with pytest.raises(Overloaded):
        list(narrow.stream("e"))
    with pytest.raises(Overloaded) as caught:
        narrow.generate("e")
    assert caught.value.retryable
    assert 0 < caught.value.retry_after <= 30
    assert caught.value.details["queued"] == 2
    for stream in streams:
        stream.close()
    assert texts(narrow.generate("e")) == ["e"]


def test_batch_waits_for_room_in_a_full_queue(narrow: LLM) -> None:
    prompts = [f"prompt {index}" for index in range(12)]
    assert texts(narrow.generate(prompts, {"max_tokens": 9}, timeout=PATIENCE)) == prompts


def test_batch_that_waits_for_room_keeps_its_deadline(narrow: LLM) -> None:
    """Though the pool says to come back later than that."""
    streams = [narrow.stream(letter, endless()) for letter in "abcd"]
    eventually(lambda: narrow._pool.status()["models"][0]["queued"] == 2)
    with at_most(0.1 + 0.05), pytest.raises(DeadlineExceeded) as caught:
        narrow.generate(["e", "f"], timeout=0.1)
    assert caught.value.details["results"] == [None, None]
    for stream in streams:
        stream.close()
    eventually(lambda: nothing_runs(narrow), SOON * SLACK)


def test_batch_keeps_order_and_is_spread_over_replicas(shared_pool: Pool) -> None:
    prompts = [f"number {index}" for index in range(16)]

    def in_flight() -> list[int]:
        workers = shared_pool.status()["workers"]
        return [worker["in_flight"] for worker in workers if worker["model"] == "two"]

    with (
        shared_pool.llm("echo", name="two", replicas=2, step_delay=0.01) as llm,
        ThreadPoolExecutor(1) as executor,
    ):
        results = executor.submit(llm.generate, prompts, endless(40), request_id="b")
        eventually(lambda: in_flight() == [8, 8])
        answers = results.result()
    assert texts(answers) == [echoed(prompt, 40) for prompt in prompts]
    assert [answer.request_id for answer in answers] == [f"b-{index}" for index in range(16)]


def test_each_prompt_of_a_batch_may_have_its_own_parameters(echo: LLM) -> None:
    params: list[Params] = [SamplingParams(max_tokens=1), {"max_tokens": 2}, None]
    assert texts(echo.generate(["abc", "def", "ghi"], params)) == ["a", "de", "ghi"]


def test_failed_batch_tells_what_was_finished(echo: LLM) -> None:
    params = [{"max_tokens": 2}, endless()]
    with pytest.raises(DeadlineExceeded) as caught:
        echo.generate(["abc", "def"], params, timeout=0.3)
    first, second = caught.value.details["results"]
    assert first.outputs[0].text == "ab"
    assert second is None
    eventually(lambda: nothing_runs(echo), SOON * SLACK)


def test_batch_with_one_impossible_prompt_fails_and_stops_the_others(echo: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        echo.generate(["abc", ""], endless())
    assert caught.value.parameter == "prompt"
    assert caught.value.details["results"] == [None, None]
    eventually(lambda: nothing_runs(echo), SOON * SLACK)


def test_empty_batch_is_answered_with_nothing(echo: LLM) -> None:
    assert echo.generate([]) == []


def test_progress_bar_may_be_ones_own(echo: LLM) -> None:
    class Bar:
        made: list["Bar"] = []  # noqa: RUF012

        def __init__(self, total: int, **_: Any) -> None:
            self.total, self.steps = total, 0
            self.made.append(self)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, by: int) -> None:
            self.steps += by

    echo.generate(["a", "b", "c"], use_tqdm=Bar)
    (bar,) = Bar.made
    assert (bar.total, bar.steps) == (3, 3)


# Streams.


def test_slow_reader_of_a_long_stream_loses_nothing_and_is_not_flooded(shared_pool: Pool) -> None:
    tokens = 8 * DEFAULT_WINDOW
    with shared_pool.llm("echo", name="fast") as llm:
        items = shared_pool.status()["counters"]["items"]
        stream = llm.stream("abc", endless(tokens))
        eventually(lambda: unfinished(shared_pool) == 0)  # the engine does not wait for readers
        came = shared_pool.status()["counters"]["items"] - items
        assert came <= DEFAULT_WINDOW + 1, "the window, and the last one"
        deltas = list(stream)
    assert len(deltas) == came
    assert "".join(delta.text for delta in deltas) == echoed("abc", tokens)
    assert stream.result is not None
    assert stream.result.usage["completion_tokens"] == tokens


def test_quick_reader_of_a_long_stream_gets_every_token_as_it_comes(echo: LLM) -> None:
    deltas = list(echo.stream("abc", endless(3 * DEFAULT_WINDOW)))
    assert "".join(delta.text for delta in deltas) == echoed("abc", 3 * DEFAULT_WINDOW)
    assert len(deltas) > 2 * DEFAULT_WINDOW, "credit was given back in time"


def test_64_streams_at_once_from_threads_are_each_right(echo: LLM) -> None:
    def read(index: int) -> str:
        return "".join(delta.text for delta in echo.stream(f"prompt {index} ", endless(64)))

    with ThreadPoolExecutor(64) as executor:
        answers = list(executor.map(read, range(64)))
    assert answers == [echoed(f"prompt {index} ", 64) for index in range(64)]


async def test_64_streams_at_once_from_coroutines_are_each_right(
    shared_pool: Pool, echo: LLM
) -> None:
    async with await AsyncPool.connect(shared_pool.endpoint) as pool, pool.llm(name="echo") as llm:

        async def read(index: int) -> str:
            stream = llm.stream(f"prompt {index} ", endless(64))
            return "".join([delta.text async for delta in stream])

        answers = await asyncio.gather(*map(read, range(64)))
        assert answers == [echoed(f"prompt {index} ", 64) for index in range(64)]
        together = await llm.generate([f"prompt {index} " for index in range(64)], endless(64))
        assert texts(together) == answers


# Arguments.


@pytest.mark.parametrize("size", [64, 4096, 8 * 2**20], ids=["inline", "buffer", "8 MiB"])
def test_arrays_travel_there_and_back(echo: LLM, size: int) -> None:
    data = os.urandom(size)
    sent = {"array": Array("float32", (size // 8, 2), data), "other": [1, "two"]}
    received = echo.call("echo", sent)
    assert received["other"] == [1, "two"]
    assert (received["array"].dtype, received["array"].shape) == ("float32", (size // 8, 2))
    assert bytes(received["array"].data) == data


@pytest.mark.parametrize(
    "value",
    ["x" * (17 * 2**20), Array("uint8", (65 * 2**20,), bytes(65 * 2**20)), object(), "\ud800"],
    ids=["payload", "buffer", "no plain data", "no Unicode"],
)
def test_argument_that_cannot_travel_is_refused_before_it_is_sent(echo: LLM, value: Any) -> None:
    with pytest.raises(InvalidRequest):
        echo.call("echo", {"value": value})
    assert texts(echo.generate("abc")) == ["abc"]


def test_arguments_that_cannot_work_are_named(echo: LLM) -> None:
    def refused(parameter: str, match: str, **kwargs: Any) -> None:
        prompts = kwargs.pop("prompts", "abc")
        with pytest.raises(InvalidRequest, match=match) as caught:
            echo.generate(prompts, **kwargs)
        assert caught.value.parameter == parameter
        assert not caught.value.retryable

    refused("timeout", "positive", timeout=-1)
    refused("timeout", "positive", timeout=0)
    refused("timeout", "positive", timeout=math.nan)
    refused("timeout_profile", "ml_inference", timeout_profile="ml_inferenz")
    refused("sampling_params", "2 sampling parameters for 1", sampling_params=[None, None])
    refused("temperatur", "unknown sampling parameter", sampling_params={"temperatur": 0})
    refused("sampling_params", "not int", sampling_params=3)
    refused("priority", "whole number", priority=0.5)
    refused("prompts", "not float", prompts=[1.5])
    refused("prompt", "0 tokens", prompts="")
    refused("prompt", "1 to 65536", prompts="x" * 65537)


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm, **more: llm.embed("a", **more),
        lambda llm, **more: llm.beam_search(["a"], {"beam_width": 2}, **more),
        lambda llm, **more: llm.list_loras(**more),
    ],
)
def test_a_misspelt_limit_is_refused_with_what_it_may_have_been(echo: LLM, ask: Any) -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'timeout'") as caught:
        ask(echo, tiemout=5)
    assert caught.value.parameter == "tiemout"
    with pytest.raises(InvalidRequest, match="no argument 'convert'"):
        ask(echo, convert=5)


def test_unknown_verb_is_refused_with_those_there_are(echo: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown verb 'speak'.*tokenize") as caught:
        echo.call("speak", {})
    assert caught.value.parameter == "verb"


def test_unknown_verb_of_the_pool_is_refused_with_those_there_are(shared_pool: Pool) -> None:
    with pytest.raises(InvalidRequest, match=r"no verb 'dance'.*unload"):
        shared_pool.call("dance", {})


@pytest.mark.parametrize(
    "args", [{}, {"prompt": 3}, {"prompt": None}, {"prompt": [1, "two"]}], ids=repr
)
def test_malformed_arguments_fail_this_call_alone(echo: LLM, args: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequest, EngineError)):
        echo.call("generate", args)
    assert texts(echo.generate("abc")) == ["abc"]


def test_exception_of_the_engine_is_an_engine_error_with_its_class(echo: LLM) -> None:
    with pytest.raises(EngineError, match="told to raise") as caught:
        echo.call("fault", {"kind": "raise"})
    assert caught.value.details["class"] == "builtins.RuntimeError"
    assert caught.value.worker == "echo/0"


# Models and leases.


def test_equal_specification_attaches_to_what_runs(shared_pool: Pool, echo: LLM) -> None:
    pid = worker_of(shared_pool)["pid"]
    with shared_pool.llm("echo", step_delay=0.001) as second, shared_pool.llm(name="echo"):
        assert texts(second.generate("abc")) == ["abc"]
        assert shared_pool.status()["models"][0]["leases"] == 3
        assert worker_of(shared_pool)["pid"] == pid
    assert shared_pool.status()["models"][0]["leases"] == 1


def test_other_specification_under_the_same_name_is_refused(shared_pool: Pool, echo: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"'echo'.*step_delay.*unload it") as caught:
        shared_pool.llm("echo", step_delay=0.5)
    assert caught.value.parameter == "name"
    assert texts(echo.generate("abc")) == ["abc"]


def test_name_of_nothing_is_refused(shared_pool: Pool) -> None:
    with pytest.raises(InvalidRequest, match="'nobody'") as caught:
        shared_pool.llm(name="nobody")
    assert caught.value.parameter == "name"


@pytest.mark.parametrize(
    "options",
    [{"v1_multiprocessing": "maybe"}, {"replicas": 0}, {"env": {"A=B": "c"}}, {"replica": 2}],
    ids=repr,
)
def test_option_that_cannot_work_is_named(shared_pool: Pool, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shared_pool.llm("echo", name="never", **options)
    assert caught.value.parameter == next(iter(options))
    assert "never" not in {model["name"] for model in shared_pool.status()["models"]}


def test_engine_stops_with_the_last_lease(shared_pool: Pool) -> None:
    def running() -> bool:
        return "brief" in {model["name"] for model in shared_pool.status()["models"]}

    first = shared_pool.llm("echo", name="brief")
    second = shared_pool.llm("echo", name="brief")
    first.close()
    first.close()
    assert texts(second.generate("abc")) == ["abc"]
    with pytest.raises(PoolClosed):
        first.generate("abc")
    second.close()
    eventually(lambda: not running())


def test_declared_model_stays_when_nobody_holds_a_lease() -> None:
    with Pool(models={"mine": {"model": "echo"}}) as pool:
        with pool.llm(name="mine") as llm:
            assert texts(llm.generate("abc")) == ["abc"]
            pid = worker_of(pool)["pid"]
        assert pool.status()["models"][0]["declared"]
        with pool.llm(name="mine") as llm:
            assert texts(llm.generate("abc")) == ["abc"]
        assert worker_of(pool)["pid"] == pid


def test_leases_of_a_client_end_with_it(shared_pool: Pool) -> None:
    with Pool.connect(shared_pool.endpoint) as other:
        other.llm("echo", name="borrowed")
    eventually(lambda: "borrowed" not in {m["name"] for m in shared_pool.status()["models"]})


def test_unload_stops_a_model_whoever_holds_it(shared_pool: Pool) -> None:
    llm = shared_pool.llm("echo", name="unwanted")
    shared_pool.unload("unwanted")
    assert "unwanted" not in {model["name"] for model in shared_pool.status()["models"]}
    with pytest.raises(InvalidRequest, match="'unwanted'"):
        llm.generate("abc")
    with pytest.raises(InvalidRequest, match="'unwanted'"):
        shared_pool.unload("unwanted")


def test_unload_lets_open_calls_finish(shared_pool: Pool) -> None:
    llm = shared_pool.llm("echo", name="leaving", step_delay=0.005)
    stream = llm.stream("abc", endless(60))
    next(stream)
    shared_pool.unload("leaving")
    assert len(list(stream)) == 59


def test_model_may_be_asked_before_it_is_ready(shared_pool: Pool) -> None:
    with shared_pool.llm("echo", name="slow to load", load_delay=0.3, wait=False) as llm:
        assert texts(llm.generate("abc")) == ["abc"]


# Callers.


def test_call_from_a_thread(echo: LLM) -> None:
    with ThreadPoolExecutor(1) as executor:
        assert texts(executor.submit(echo.generate, "abc").result()) == ["abc"]


async def test_sync_client_works_in_a_running_event_loop(echo: LLM) -> None:
    assert texts(echo.generate("abc")) == ["abc"]
    with Pool() as pool, pool.llm("echo") as llm:
        assert texts(llm.generate("abc")) == ["abc"]


async def test_async_pool_of_its_own() -> None:
    async with AsyncPool() as pool:
        llm = await pool.llm("echo")
        assert texts(await llm.generate(["ab", "cd"])) == ["ab", "cd"]
        messages = [{"role": "user", "content": "Hi"}]
        assert texts(await llm.chat(messages)) == ["Hi"]
        assert "".join([delta.text async for delta in llm.stream_chat(messages)]) == "Hi"
        assert await llm.tokenize("ab") == [97, 98]
        assert await llm.detokenize([97, 98]) == "ab"
        assert (await llm.engine_config())["model"] == "echo"
        with pytest.raises(WorkerLost):
            await llm.call("fault", {"kind": "exit"})
        await llm.aclose()
        with pytest.raises(PoolClosed):
            await llm.generate("abc")


def test_script_needs_no_main_guard() -> None:
    source = """
from vllmport.pool import LLM
llm = LLM("echo", max_num_seqs=8)
print(llm.generate("no guard")[0].outputs[0].text)
llm.close()
"""
    with script(source) as program:
        assert read_line(program) == "no guard"
        assert program.wait(PATIENCE) == 0
        assert program.stderr is not None
        assert program.stderr.read() == ""


def test_forked_child_is_a_plain_client_whose_exit_stops_nothing() -> None:
    source = """
import os, sys
from vllmport.pool import Pool
with Pool() as pool:
    llm = pool.llm("echo")
    for how in ("exit", "close"):
        child = os.fork()
        if child == 0:
            print(llm.generate("child")[0].outputs[0].text, flush=True)
            if how == "close":
                llm.close()
                pool.close()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(llm.generate("parent")[0].outputs[0].text)
    print(pool.status()["workers"][0]["restarts"])
"""
    with script(source) as program:
        printed = [read_line(program) for _ in range(5)]
        assert printed == ["child", "parent", "child", "parent", "0"]
        assert program.wait(PATIENCE) == 0


def test_cancelled_is_what_the_other_readers_of_a_closed_call_see(echo: LLM) -> None:
    """A call cancelled on the wire still ends, with an error of its own."""
    connection = echo._pool.link.connection()
    stream = echo.stream("abc", endless())
    next(stream)
    connection.cancel(stream._call)
    with pytest.raises(Cancelled) as caught:
        list(stream)
    assert caught.value.details["tokens"] > 0
    assert caught.value.phase == "decode"
