"""The pure parts of the client: batches, requests, parameters, results."""

import math
import re
from typing import Any

import pytest

from vllmport.bridge.errors import DeadlineExceeded, InvalidRequest, Overloaded, WorkerLost
from vllmport.pool.client.batch import WINDOW, Batch
from vllmport.pool.client.mailbox import Done, Failed
from vllmport.pool.client.parameters import Parameters
from vllmport.pool.client.params import (
    LoRARequest,
    PoolingParams,
    SamplingParams,
    StructuredOutputsParams,
)
from vllmport.pool.client.requests import (
    Prompt,
    call_for,
    calls_for,
    chat_requests,
    generate_requests,
    load_arguments,
    params_list,
    prompt_list,
)
from vllmport.pool.client.results import (
    CompletionOutput,
    Logprob,
    RequestOutput,
    deltas_from,
    result_from,
)

HI = {"role": "user", "content": "Hi"}


# Batches.


def batch_of(count: int, deadline: float = math.inf) -> Batch[Any]:
    return Batch([{"n": index} for index in range(count)], lambda value, _: value, deadline)


def submit(batch: Batch[Any], now: float = 0.0) -> list[int]:
    """Submit all that may go out; a request's call id is its index and 100."""
    gone = []
    for index, _ in batch.submits(now):
        batch.submitted(index, index + 100)
        gone.append(index)
    return gone


def test_results_are_in_the_order_of_the_requests() -> None:
    batch = batch_of(3)
    assert submit(batch) == [0, 1, 2]
    assert batch.wait(0.0) is None
    for index in (2, 0, 1):
        assert not batch.done
        assert batch.take(Done(index + 100, f"r{index}"), 0.0) == 1
    assert batch.done
    assert batch.open_calls == []
    assert batch.outcome() == ["r0", "r1", "r2"]


def test_results_are_converted() -> None:
    batch: Batch[str] = Batch([{}], lambda value, attempt: f"{value} by {attempt}")
    submit(batch)
    batch.take(Done(100, 3, 2), 0.0)
    assert batch.outcome() == ["3 by 2"]


def test_empty_batch_is_done() -> None:
    assert batch_of(0).done
    assert batch_of(0).outcome() == []


def test_open_requests_are_bounded() -> None:
    batch = batch_of(WINDOW + 2)
    assert len(submit(batch)) == WINDOW
    assert submit(batch) == []
    batch.take(Done(100, None), 0.0)
    assert submit(batch) == [WINDOW]


def test_failure_ends_the_batch_with_what_was_finished() -> None:
    batch = batch_of(3)
    submit(batch)
    batch.take(Done(101, "one"), 0.0)
    assert batch.take(Failed(100, WorkerLost("gone")), 0.0) == 0
    assert batch.done
    assert batch.open_calls == [102], "to be abandoned"
    assert submit(batch) == []
    with pytest.raises(WorkerLost) as caught:
        batch.outcome()
    assert caught.value.details["results"] == [None, "one", None]


def test_failure_of_a_single_call_has_no_list_of_results() -> None:
    batch = batch_of(1)
    submit(batch)
    batch.take(Failed(100, DeadlineExceeded("late")), 0.0)
    with pytest.raises(DeadlineExceeded) as caught:
        batch.outcome()
    assert "results" not in caught.value.details


def test_full_pool_makes_a_batch_wait_and_try_again() -> None:
    batch = batch_of(2)
    submit(batch)
    batch.take(Failed(101, Overloaded("full", details={"retry_after": 0.5})), 10.0)
    assert not batch.done
    assert batch.wait(10.2) == pytest.approx(0.3)
    assert submit(batch, 10.2) == []
    assert submit(batch, 10.5) == [1]
    assert batch.wait(10.5) is None


def test_full_pool_met_while_submitting_stops_the_rest_for_a_while() -> None:
    batch = batch_of(3)
    for index, _ in batch.submits(0.0):
        if index == 1:
            batch.refused(1, Overloaded("full", details={"retry_after": 0.5}), 0.0)
        else:
            batch.submitted(index, index + 100)
    assert batch.open_calls == [100]
    assert submit(batch, 0.5) == [1, 2]


def test_wait_for_a_full_pool_ends_with_the_deadline() -> None:
    batch = batch_of(2, deadline=10.1)
    submit(batch)
    batch.take(Failed(101, Overloaded("full", details={"retry_after": 30.0})), 10.0)
    assert batch.wait(10.0) == pytest.approx(0.1)
    assert submit(batch, 10.1) == [1]


def test_full_pool_refuses_a_single_call() -> None:
    batch = batch_of(1)
    submit(batch)
    batch.take(Failed(100, Overloaded("full")), 0.0)
    with pytest.raises(Overloaded):
        batch.outcome()


# Requests.


@pytest.mark.parametrize(
    ("prompts", "listed"),
    [
        ("a", ["a"]),
        ({"prompt": "a"}, [{"prompt": "a"}]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1], {"prompt": "b"}], ["a", [1], {"prompt": "b"}]),
        ([], []),
    ],
    ids=repr,
)
def test_prompts_are_told_apart(prompts: Any, listed: list[Any]) -> None:
    assert prompt_list(prompts) == listed


@pytest.mark.parametrize("prompts", [None, 3, {1, 2}, ["a", 3], [1.5], [None]], ids=repr)
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompt_list(prompts)
    assert caught.value.parameter == "prompts"


def test_parameters_are_for_all_or_one_each() -> None:
    assert params_list(None, 2) == [None, None]
    assert params_list({"n": 2}, 2) == [{"n": 2}, {"n": 2}]
    assert params_list([SamplingParams(n=2), None], 2) == [{"n": 2}, None]
    with pytest.raises(InvalidRequest, match="3 sampling parameters for 2 prompts"):
        params_list([None, None, None], 2)
    with pytest.raises(InvalidRequest, match="not int"):
        params_list([3], 1)


def test_only_what_differs_from_the_default_travels() -> None:
    assert SamplingParams().to_wire() == {}
    params = SamplingParams(temperature=0.0, stop=[], ignore_eos=False, max_tokens=None)
    assert params.to_wire() == {"temperature": 0.0, "stop": [], "max_tokens": None}
    nested = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    assert nested.to_wire() == {"structured_outputs": {"regex": "a+"}}
    assert LoRARequest("name", 1, "/path").to_wire() == {
        "lora_name": "name",
        "lora_int_id": 1,
        "lora_path": "/path",
    }


@pytest.mark.parametrize(
    ("cls", "given", "text"),
    [
        (SamplingParams, {"temperatur": 0}, "did you mean 'temperature'"),
        (SamplingParams, {"best_of": 3}, "removed the parameter 'best_of': set n"),
        (SamplingParams, {"guided_json": {}}, 'see structured_outputs={"json"'),
        (PoolingParams, {"normalize": True}, "use_activation"),
        (PoolingParams, {"additional_data": 1}, "extra_kwargs"),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_with_what_to_use(
    cls: type[Parameters], given: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(text)) as caught:
        cls(**given)
    assert caught.value.parameter == next(iter(given))


def test_generate_requests_have_prompt_parameters_and_what_was_given_besides() -> None:
    prompts: list[Prompt] = ["a", (1,)]
    assert generate_requests(prompts, {"n": 1}, {"lora_request": None, "other": 1}) == [
        {"prompt": "a", "sampling_params": {"n": 1}, "other": 1},
        {"prompt": [1], "sampling_params": {"n": 1}, "other": 1},
    ]


def test_one_conversation_or_a_list_of_them() -> None:
    (one,) = chat_requests([HI, HI], None, {})
    assert one == {"messages": [HI, HI], "sampling_params": None}
    assert [r["messages"] for r in chat_requests([[HI], [HI, HI]], None, {})] == [[HI], [HI, HI]]


@pytest.mark.parametrize("messages", ["Hi", HI, [], None, 3], ids=repr)
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_requests(messages, None, {})
    assert caught.value.parameter == "messages"


@pytest.mark.parametrize("messages", [["Hi"], [[HI], "Hi"], [HI, "Hi"], [[3]]], ids=repr)
def test_what_is_no_message_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_requests(messages, None, {})
    assert caught.value.parameter == "messages"


def test_call_has_an_id_made_up_unless_one_was_given() -> None:
    first, second = (call_for("m", "v", None, None) for _ in range(2))
    assert first.request_id != second.request_id
    assert call_for("m", "v", -3, "mine", 5)[1:8] == ("m", "v", None, 5, -3, "mine", 0)


@pytest.mark.parametrize("priority", [0.5, "1", True], ids=repr)
def test_priority_is_a_whole_number(priority: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call_for("m", "v", priority, None)
    assert caught.value.parameter == "priority"


def test_prompts_of_a_batch_have_ids_of_their_own() -> None:
    (alone,) = calls_for("m", "v", 1, None, "mine", None)
    assert alone.request_id == "mine"
    both = calls_for("m", "v", 2, None, "mine", None)
    assert [call.request_id for call in both] == ["mine-0", "mine-1"]
    first, second = (c.request_id or "" for c in calls_for("m", "v", 2, None, None, None))
    assert first.removesuffix("-0") == second.removesuffix("-1")


def test_prompts_have_one_priority_or_each_its_own() -> None:
    def priorities(count: int, given: Any) -> list[int]:
        return [call.priority for call in calls_for("m", "v", count, given, None, None)]

    assert priorities(2, None) == [0, 0]
    assert priorities(2, 3) == [3, 3]
    assert priorities(3, [1, -2, 5]) == priorities(3, (1, -2, 5)) == [1, -2, 5]
    with pytest.raises(InvalidRequest, match="2 priorities for 3 prompts") as caught:
        priorities(3, [1, 2])
    assert caught.value.parameter == "priority"
    with pytest.raises(InvalidRequest, match="whole number"):
        priorities(2, [1, 0.5])


def test_load_arguments_are_plain() -> None:
    assert load_arguments(
        "m",
        None,
        v1_multiprocessing="auto",
        env=None,
        replicas=1,
        loras=None,
        preset="latency",
        engine_args={"dtype": "auto"},
    ) == {
        "preset": "latency",
        "loras": {},
        "model": "m",
        "name": None,
        "v1_multiprocessing": "auto",
        "env": {},
        "replicas": 1,
        "engine_args": {"dtype": "auto"},
    }


# Results.

OUTPUT = {
    "index": 0,
    "text": "Hi",
    "token_ids": [1, 2],
    "cumulative_logprob": -0.5,
    "logprobs": [{1: {"logprob": -0.5, "rank": 1, "decoded_token": "H"}}, None],
    "finish_reason": "stop",
    "stop_reason": 7,
}


def test_result_has_vllms_names() -> None:
    data = {
        "request_id": "r",
        "prompt": "p",
        "prompt_token_ids": [9],
        "prompt_logprobs": [None, {9: {"logprob": -1.0}}],
        "num_cached_tokens": 4,
        "finished": True,
        "usage": {"prompt_tokens": 1},
        "outputs": [OUTPUT],
    }
    assert result_from(data) == RequestOutput(
        request_id="r",
        prompt="p",
        prompt_token_ids=[9],
        outputs=[
            CompletionOutput(0, "Hi", [1, 2], -0.5, [{1: Logprob(-0.5, 1, "H")}, None], "stop", 7)
        ],
        finished=True,
        prompt_logprobs=[None, {9: Logprob(-1.0)}],
        num_cached_tokens=4,
        usage={"prompt_tokens": 1},
    )


def test_summary_of_a_stream_has_no_outputs() -> None:
    data = {"request_id": "r", "prompt": None, "prompt_token_ids": None, "finished": True}
    assert result_from(data).outputs == []


def test_deltas_are_one_for_each_sequence_that_went_on() -> None:
    later = {"index": 2, "text": "x", "token_ids": [3]}
    first, second = deltas_from({"outputs": [OUTPUT, later]})
    assert (first.index, first.finished) == (0, True)
    assert (second.index, second.text, second.finished) == (2, "x", False)
