"""The engine without a model, through a port that only collects."""

from collections.abc import Callable
from typing import Any

import pytest

from vllmport.bridge.errors import InvalidRequest, StartupFailed
from vllmport.worker.deltas import merge
from vllmport.worker.engine import Key, Partial, Request
from vllmport.worker.engines.echo import ARGUMENTS, EchoEngine
from vllmport.worker.engines.stepped import run_stepped


class Collector:
    """A port that keeps what it gets; `turn` runs at each `receive`."""

    def __init__(self) -> None:
        self.closed = False
        self.stages: list[str] = []
        self.deltas: dict[Key, list[dict[str, Any]]] = {}
        self.ends: dict[Key, Any] = {}
        self.flushed = 0
        self.timeouts: list[float] = []
        self.turn: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        raise NotImplementedError

    def receive(self, timeout: float) -> None:
        self.timeouts.append(timeout)
        self.turn()

    def next_deadline(self) -> float:
        return 0.0

    def delta(self, key: Key, value: dict[str, Any]) -> None:
        self.deltas.setdefault(key, []).append(value)

    def finish(self, key: Key, value: Any) -> None:
        assert key not in self.ends
        self.ends[key] = value

    def fail(self, key: Key, error: BaseException) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        self.flushed += 1

    def progress(self, stage: str, text: str = "") -> None:
        self.stages.append(stage)


@pytest.fixture
def port() -> Collector:
    return Collector()


@pytest.fixture
def engine(port: Collector) -> EchoEngine:
    return EchoEngine({}, port)


def ask(
    engine: EchoEngine, number: int, verb: str = "generate", *, stream: bool = False, **args: Any
) -> Key:
    key = (1, number)
    engine.submit(Request(key, verb, args, stream, 0, f"r{number}"))
    return key


def finish(engine: EchoEngine) -> None:
    while engine.busy:
        engine.step()


def answer(engine: EchoEngine, port: Collector, prompt: str, **params: Any) -> tuple[str, str]:
    key = ask(engine, 1, prompt=prompt, sampling_params=params)
    finish(engine)
    (output,) = port.ends[key]["outputs"]
    return output["text"], output["finish_reason"]


def test_prompt_comes_back_a_character_a_step(engine: EchoEngine, port: Collector) -> None:
    key = ask(engine, 1, prompt="abc")
    engine.step()
    engine.step()
    assert (engine.busy, port.ends) == (True, {})
    engine.step()
    assert not engine.busy
    result = port.ends[key]
    assert result["prompt_token_ids"] == [97, 98, 99]
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0}
    assert result["request_id"] == "r1"
    assert port.deltas == {}, "nobody asked for a stream"


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({}, "abc", "stop"),
        ({"max_tokens": 2}, "ab", "length"),
        ({"max_tokens": 3}, "abc", "length"),
        ({"max_tokens": 7, "ignore_eos": True}, "abcabca", "length"),
        ({"max_tokens": 2, "ignore_eos": True}, "ab", "length"),
        ({"max_tokens": None}, "abc", "length"),
    ],
    ids=str,
)
def test_answer_ends_with_the_prompt_or_the_limit(
    engine: EchoEngine, port: Collector, params: dict[str, Any], text: str, reason: str
) -> None:
    assert answer(engine, port, "abc", **params) == (text, reason)


def test_default_limit_is_16_tokens(engine: EchoEngine, port: Collector) -> None:
    assert answer(engine, port, "x" * 20) == ("x" * 16, "length")


def test_stream_says_each_character_once(engine: EchoEngine, port: Collector) -> None:
    key = ask(engine, 1, prompt="abc", stream=True)
    finish(engine)
    deltas = port.deltas[key]
    assert [delta["outputs"][0]["text"] for delta in deltas] == ["a", "b", "c"]
    assert [delta["outputs"][0]["finish_reason"] for delta in deltas] == [None, None, "stop"]
    assert "outputs" not in port.ends[key]
    whole = merge(merge(deltas[0], deltas[1]), deltas[2])["outputs"][0]
    assert (whole["text"], whole["token_ids"]) == ("abc", [97, 98, 99])
    assert whole["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "prompt", ["Hi", [72, 105], {"prompt": "Hi"}, {"prompt_token_ids": [72, 105]}], ids=repr
)
def test_every_form_of_a_prompt(engine: EchoEngine, port: Collector, prompt: Any) -> None:
    assert answer(engine, port, prompt) == ("Hi", "stop")


def test_chat_says_what_was_said(engine: EchoEngine, port: Collector) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    key = ask(engine, 1, "chat", messages=messages)
    finish(engine)
    assert port.ends[key]["outputs"][0]["text"] == "S\nHi"


def test_verbs_that_answer_at_once(engine: EchoEngine, port: Collector) -> None:
    assert port.ends[ask(engine, 1, "tokenize", prompt="ab")] == {"token_ids": [97, 98], "count": 2}
    assert port.ends[ask(engine, 2, "detokenize", token_ids=[97, 98])] == {"text": "ab"}
    assert port.ends[ask(engine, 3, "echo", any=[1, {"thing": None}])] == {
        "any": [1, {"thing": None}]
    }
    assert not engine.busy


def test_only_so_many_requests_run_at_once(port: Collector) -> None:
    engine = EchoEngine({"max_num_seqs": 2}, port)
    assert engine.capacity == 4
    keys = [ask(engine, number, prompt="ab") for number in range(3)]
    engine.step()
    engine.step()
    assert list(port.ends) == keys[:2]
    finish(engine)
    assert list(port.ends) == keys


def test_abort_tells_how_far_a_request_had_come(engine: EchoEngine, port: Collector) -> None:
    key = ask(engine, 1, prompt="abc")
    assert engine.abort(key) == Partial("waiting", 0, None)
    key = ask(engine, 2, prompt="abc")
    engine.step()
    phase, tokens, result = engine.abort(key)
    assert (phase, tokens) == ("decode", 1)
    assert result is not None
    assert (result["finished"], result["outputs"][0]["text"]) == (False, "a")
    assert engine.stats() == {"unfinished": 0, "steps": 1}
    assert engine.abort(key) == Partial("waiting", 0, None)
    finish(engine)
    assert port.ends == {}


@pytest.mark.parametrize(
    ("verb", "args", "parameter"),
    [
        ("dance", {}, "verb"),
        ("generate", {"prompt": ""}, "prompt"),
        ("generate", {"prompt": "x" * 65537}, "prompt"),
        ("generate", {"prompt": 3}, "prompt"),
        ("generate", {"prompt": None}, "prompt"),
        ("generate", {"prompt": ["a"]}, "prompt"),
        ("generate", {"prompt": [-1]}, "prompt"),
        ("generate", {"prompt": {"text": "a"}}, "prompt"),
        ("generate", {}, "prompt"),
        ("generate", {"prompt": "a", "sampling_params": {"temperatur": 1}}, "temperatur"),
        ("generate", {"prompt": "a", "sampling_params": {"max_tokens": 0}}, "max_tokens"),
        ("generate", {"prompt": "a", "sampling_params": {"max_tokens": "2"}}, "max_tokens"),
        ("generate", {"prompt": "a", "sampling_params": 3}, "sampling_params"),
        ("chat", {"messages": [{"role": "user"}]}, "messages"),
        ("chat", {}, "messages"),
        ("tokenize", {"prompt": 3}, "prompt"),
        ("detokenize", {"token_ids": ["a"]}, "token_ids"),
        ("fault", {"kind": "dance"}, "kind"),
        ("fault", {"kind": "child", "ways": ["dance"]}, "ways"),
        ("fault", {"kind": "child", "ways": "setsid"}, "ways"),
    ],
    ids=str,
)
def test_impossible_request_is_refused_and_leaves_nothing(
    engine: EchoEngine, port: Collector, verb: str, args: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(engine, 1, verb, **args)
    assert caught.value.parameter == parameter
    assert not engine.busy
    assert port.ends == {}


def test_unknown_engine_argument_is_refused_before_anything_is_loaded(port: Collector) -> None:
    with pytest.raises(InvalidRequest, match="step_delay") as caught:
        EchoEngine({"dtype": "auto"}, port)
    assert caught.value.parameter == "dtype"
    assert port.stages == []


@pytest.mark.parametrize(("children", "parameter"), [(3, "children"), ([["dance"]], "ways")])
def test_children_that_cannot_be_are_refused(
    port: Collector, children: object, parameter: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EchoEngine({"children": children}, port)
    assert caught.value.parameter == parameter


def test_facts_are_the_arguments_with_their_defaults(port: Collector) -> None:
    assert EchoEngine({"max_model_len": 8}, port).info == {
        **ARGUMENTS,
        "model": "echo",
        "max_model_len": 8,
    }
    assert port.stages == ["loading"]


def test_load_may_be_told_to_fail(port: Collector) -> None:
    with pytest.raises(StartupFailed, match="as you wish") as caught:
        EchoEngine({"fail_load": "as you wish"}, port)
    assert caught.value.phase == "load"


def test_loop_steps_while_there_is_work_and_flushes_each_step(
    engine: EchoEngine, port: Collector
) -> None:
    turns = iter(["ask", "", "", "leave"])

    def turn() -> None:
        match next(turns):
            case "ask":
                ask(engine, 1, prompt="abc")
            case "leave":
                port.closed = True

    port.turn = turn
    run_stepped(engine, port)
    assert engine.stats() == {"unfinished": 0, "steps": 3}
    assert port.flushed == 4
    assert len(port.ends) == 1
