"""The main path on real vLLM, through the socket: answers, deadlines, cancels, refusals."""

import asyncio
import threading
import time
from typing import Any

import pytest

from processes import eventually
from vllmport.bridge.limits import DEFAULT_WINDOW
from vllmport.pool import (
    LLM,
    AsyncPool,
    DeadlineExceeded,
    InvalidRequest,
    Pool,
    RequestOutput,
    SamplingParams,
)
from vllmport.pool.client.llm import run_call
from vllmport.pool.client.requests import call_for

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(temperature=0, max_tokens=8)
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
FRANCE = "The capital of France is"
JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]


def worker_of(pool: Pool, llm: LLM) -> dict[str, object]:
    return next(w for w in pool.status()["workers"] if w["model"] == llm.name)


def text_of(outputs: list[RequestOutput]) -> str:
    return outputs[0].outputs[0].text


# Coming up.


def test_whoever_waits_for_a_model_hears_how_far_it_has_come(pool: Pool) -> None:
    heard: list[dict[str, Any]] = []
    arguments = {"model": "tiny", "name": "told", "engine_args": {"max_model_len": 256}}
    call = call_for("", "load", None, None, DEFAULT_WINDOW)
    try:
        run_call(pool.link.connection(), call, arguments, 120.0, heard.append)
    finally:
        pool.unload("told")
    stages = [item["stage"].partition(" ")[0] for item in heard]
    assert stages == ["importing", "checking", "loading", "warming"]
    assert {item["worker"] for item in heard} == {"told/0"}
    assert {item["state"] for item in heard} == {"LOADING"}
    assert heard[-1]["elapsed"] > heard[0]["elapsed"] >= 0


# Answers.


def test_generate_answers_what_the_model_was_taught(llm: LLM) -> None:
    (result,) = llm.generate(FRANCE, GREEDY)
    assert result.outputs[0].text == " Paris."
    assert result.outputs[0].finish_reason == "stop"
    assert result.prompt == FRANCE
    assert result.usage["prompt_tokens"] == len(result.prompt_token_ids or ())
    assert result.usage["completion_tokens"] == len(result.outputs[0].token_ids)


def test_chat_answers_what_the_model_was_taught(llm: LLM) -> None:
    assert "Tokyo" in text_of(llm.chat(JAPAN, GREEDY))


def test_a_stream_says_the_same_as_a_single_call(llm: LLM) -> None:
    with llm.stream(FRANCE, GREEDY) as stream:
        deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == " Paris."
    assert deltas[-1].finish_reason == "stop"
    assert stream.result is not None
    assert stream.result.usage["completion_tokens"] == sum(len(d.token_ids) for d in deltas)
    with llm.stream_chat(JAPAN, GREEDY) as stream:
        assert "Tokyo" in "".join(delta.text for delta in stream)


def test_prompts_come_in_every_form(llm: LLM) -> None:
    ids = llm.tokenize(FRANCE)
    assert llm.detokenize(ids) == FRANCE
    prompts: list[Any] = [FRANCE, ids, {"prompt": FRANCE}, {"prompt_token_ids": ids}]
    assert {text_of([result]) for result in llm.generate(prompts, GREEDY)} == {" Paris."}
    assert text_of(llm.generate(ids, GREEDY)) == " Paris."


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    one, two = llm.generate(
        [FRANCE, "1 2 3 4 5"], [{"temperature": 0, "max_tokens": 1}, {"temperature": 0}]
    )
    assert len(one.outputs[0].token_ids) == 1
    assert two.outputs[0].text.startswith(" 6 7 8")


def test_several_sequences_and_logprobs_arrive_whole(llm: LLM) -> None:
    params = SamplingParams(n=2, temperature=1, seed=7, max_tokens=3, logprobs=2, prompt_logprobs=1)
    (result,) = llm.generate(FRANCE, params)
    assert [output.index for output in result.outputs] == [0, 1]
    for output in result.outputs:
        assert output.logprobs is not None
        for token, row in zip(output.token_ids, output.logprobs, strict=True):
            assert row is not None
            assert row[token].logprob <= 0
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    with llm.stream(FRANCE, SamplingParams(temperature=0, prompt_logprobs=1)) as stream:
        list(stream)
    assert stream.result is not None
    assert len(stream.result.prompt_logprobs or ()) == len(stream.result.prompt_token_ids or ())


def test_a_stop_string_is_named(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, stop=[" 8"])
    (result,) = llm.generate("1 2 3 4 5", params)
    assert (result.outputs[0].finish_reason, result.outputs[0].stop_reason) == ("stop", " 8")


# Many at once.


def numbered_prompts(count: int) -> list[str]:
    return [f"{number} {number + 1} {number + 2}" for number in range(1, count + 1)]


def test_64_streams_of_different_prompts_each_equal_their_single_call(llm: LLM) -> None:
    prompts = numbered_prompts(64)
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    alone = [llm.generate(prompt, params)[0].outputs[0] for prompt in prompts[::8]]
    found: dict[int, tuple[str, list[int], int]] = {}

    def read(index: int) -> None:
        deltas = list(llm.stream(prompts[index], params))
        tokens = [token for delta in deltas for token in delta.token_ids]
        ends = sum(delta.finish_reason is not None for delta in deltas)
        found[index] = ("".join(delta.text for delta in deltas), tokens, ends)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 64
    assert {(len(tokens), ends) for _, tokens, ends in found.values()} == {(64, 1)}
    for single, index in zip(alone, range(0, 64, 8), strict=True):
        assert found[index][:2] == (single.text, list(single.token_ids))


async def test_64_streams_in_one_event_loop(pool: Pool, off: LLM) -> None:
    prompts = numbered_prompts(64)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    expected = await asyncio.to_thread(off.generate, prompts, params)
    async with await AsyncPool.connect(pool.endpoint) as joined, joined.llm(name="off") as llm:

        async def read(prompt: str) -> str:
            return "".join([delta.text async for delta in llm.stream(prompt, params)])

        texts = await asyncio.gather(*map(read, prompts))
    assert list(texts) == [result.outputs[0].text for result in expected]


# Deadlines and cancels.


def test_a_deadline_stops_the_engine_and_says_how_far_it_came(pool: Pool, llm: LLM) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        llm.generate("1 2 3", LONG, timeout=0.5)
    late = time.monotonic() - start - 0.5
    assert worker_of(pool, llm)["unfinished"] == 0
    assert 0 < caught.value.tokens < 4000
    assert len(caught.value.partial["outputs"][0]["token_ids"]) == caught.value.tokens
    assert late < 0.25, "about 50 ms on a quiet machine"


def test_leaving_a_stream_frees_the_engine(pool: Pool, llm: LLM) -> None:
    for index, delta in enumerate(llm.stream("1 2 3", LONG)):
        assert delta.token_ids
        if index == 3:
            break
    eventually(lambda: worker_of(pool, llm)["unfinished"] == 0, 5)


async def test_cancelling_a_task_frees_the_engine(pool: Pool, off: LLM) -> None:
    async with await AsyncPool.connect(pool.endpoint) as joined, joined.llm(name="off") as llm:
        task = asyncio.create_task(llm.generate("1 2 3", LONG))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(50):
            status = await joined.status()
            (worker,) = (w for w in status["workers"] if w["model"] == "off")
            if worker["unfinished"] == 0:
                return
            await asyncio.sleep(0.1)
    pytest.fail("the request is still in the engine")


# Refusals; after each the pool goes on.


@pytest.mark.parametrize(
    ("params", "parameter"), [({"temprature": 0}, "temprature"), ({"top_p": 7}, "top_p")]
)
def test_a_bad_sampling_parameter_is_named(
    llm: LLM, params: dict[str, float], parameter: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(FRANCE, params)
    assert caught.value.parameter == parameter
    assert text_of(llm.generate(FRANCE, GREEDY)) == " Paris."


def test_a_prompt_longer_than_the_model_takes_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate([[5] * 9000], GREEDY)
    assert "8192" in str(caught.value)
    assert text_of(llm.generate(FRANCE, GREEDY)) == " Paris."


@pytest.mark.parametrize(
    ("model", "options", "parameter"),
    [
        ("tiny", {"max_modle_len": 512}, "max_modle_len"),
        ("/no/such/folder", {}, "model"),
        ("tiny", {"dtype": "float12"}, "dtype"),
    ],
)
def test_what_can_never_load_is_refused_by_name(
    pool: Pool, off: LLM, model: str, options: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pool.llm(model, name="refused", **options)
    assert parameter in (caught.value.parameter, *caught.value.parameter.split("."))
    assert caught.value.details.get("interpreter") or parameter != "model", "a worker looked"
    assert text_of(off.generate(FRANCE, GREEDY)) == " Paris."
