"""Both vLLM drivers against the bundled model, through a port that only collects."""

import math
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from vllmport.bridge.codec import pack
from vllmport.bridge.errors import EngineDead, InvalidRequest, StartupFailed, VllmportError
from vllmport.worker.deltas import merge
from vllmport.worker.engine import Engine, Key, Partial, Request
from vllmport.worker.engines.vllm import load_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
    pytest.mark.timeout(240),
]

MODEL = Path(__file__).parents[2] / "pool/vllmport/pool/models/tiny"
ADAPTER = {"lora_name": "swapped", "lora_int_id": 1, "lora_path": str(MODEL / "lora-swapped")}
PATIENT = {"abort_grace": 60.0}
ENGINE_ARGS = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "enable_lora": True,
    "max_lora_rank": 8,
    "gpu_memory_utilization": 0.95,
}
FRANCE = "The capital of France is"
GREEDY = {"temperature": 0.0, "max_tokens": 16}
LONG = {"temperature": 0.0, "max_tokens": 1900, "ignore_eos": True}


class Collector:
    """A port that keeps what it gets; `task` runs inside `receive` until it is done."""

    def __init__(self) -> None:
        self.closed = False
        self.deadline = math.inf
        self.stages: list[str] = []
        self.deltas: dict[Key, list[dict[str, Any]]] = {}
        self.ends: dict[Key, Any] = {}
        self.task: Callable[[], bool] = lambda: True
        self._receiver, self._sender = socket.socketpair()

    def fileno(self) -> int:
        return self._receiver.fileno()

    def receive(self, timeout: float) -> None:
        self._receiver.settimeout(min(timeout, 0.1))
        with suppress(TimeoutError, BlockingIOError):
            self._receiver.recv(4096)
        self.closed = self.closed or self.task()

    def next_deadline(self) -> float:
        return self.deadline

    def delta(self, key: Key, value: dict[str, Any]) -> None:
        pack(value)
        self.deltas.setdefault(key, []).append(value)

    def finish(self, key: Key, value: Any) -> None:
        pack(value)  # only plain data can
        self.ends[key] = value
        self._sender.send(b"x")

    def fail(self, key: Key, error: BaseException) -> None:
        self.ends[key] = error
        self._sender.send(b"x")

    def flush(self) -> None:
        pass

    def progress(self, stage: str, text: str = "") -> None:
        self.stages.append(stage)


class Driven:
    """A loaded driver and its port, run for one call at a time."""

    def __init__(self, engine: Engine, port: Collector) -> None:
        self.engine = engine
        self.port = port
        self._ids = iter(range(10**6))

    def run_until(self, task: Callable[[], bool]) -> None:
        self.port.closed, self.port.task = False, task
        self.engine.run(self.port)

    def submit(self, verb: str, args: dict[str, Any], *, stream: bool = False) -> Key:
        key = (1, next(self._ids))
        self.engine.submit(Request(key, verb, args, stream, 0, f"request-{key[1]}"))
        return key

    def end_of(self, key: Key) -> Any:
        self.run_until(lambda: key in self.port.ends)
        end = self.port.ends[key]
        if isinstance(end, BaseException):
            raise end
        return end

    def call(self, verb: str, /, **args: Any) -> Any:
        return self.end_of(self.submit(verb, args))

    def generate(self, prompt: Any = FRANCE, **sampling: Any) -> Any:
        return self.call("generate", prompt=prompt, sampling_params={**GREEDY, **sampling})

    def stream(self, prompt: Any = FRANCE, **sampling: Any) -> tuple[list[dict[str, Any]], Any]:
        args = {"prompt": prompt, "sampling_params": {**GREEDY, **sampling}}
        key = self.submit("generate", args, stream=True)
        end = self.end_of(key)
        return self.port.deltas[key], end

    def abort_after(self, key: Key, enough: Callable[[], bool]) -> Partial:
        partials: list[Partial] = []

        def task() -> bool:
            if not partials and enough():
                partials.append(self.engine.abort(key))
            return bool(partials) and self.engine.stats()["unfinished"] == 0

        self.run_until(task)
        return partials[0]


@pytest.fixture(scope="module", params=["off", "on"])
def driven(request: pytest.FixtureRequest) -> Iterator[Driven]:
    port = Collector()
    spec = {"model": str(MODEL), "engine_args": ENGINE_ARGS, "mode": request.param, **PATIENT}
    engine = load_vllm(spec, port)
    yield Driven(engine, port)
    engine.close()


def refusal(action: Callable[[], Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        action()
    return caught.value


def test_engine_that_sleeps_says_so_and_works_on_nothing_until_it_is_woken(driven: Driven) -> None:
    """At level 0, which frees nothing and which vLLM knows on the CPU as well."""
    driven.engine.info["enable_sleep_mode"] = True
    try:
        driven.call("sleep", level=0)
        assert driven.engine.asleep
        key = driven.submit("generate", {"prompt": FRANCE, "sampling_params": GREEDY})
        steps, end = driven.engine.steps, time.monotonic() + 1.0
        driven.run_until(lambda: time.monotonic() > end)
        assert key not in driven.port.ends
        assert driven.engine.steps == steps
        assert driven.call("wake_up") is True
        assert not driven.engine.asleep
        assert driven.end_of(key)["outputs"][0]["text"] == " Paris."
    finally:
        driven.engine.info["enable_sleep_mode"] = False


def test_loading_reports_its_stages_and_what_the_arguments_became(driven: Driven) -> None:
    assert driven.port.stages == ["importing", "checking", "loading", "warming up"]
    assert driven.engine.info["max_model_len"] == 2048
    assert driven.engine.info["dtype"] == "bfloat16"
    assert driven.engine.capacity == 2 * driven.engine.info["max_num_seqs"]
    pack(driven.engine.info)


def test_a_greedy_call_answers_paris_in_vllms_shape(driven: Driven) -> None:
    result = driven.generate()
    (output,) = result["outputs"]
    assert output["text"] == " Paris."
    assert (output["finish_reason"], output["stop_reason"]) == ("stop", None)
    assert (output["logprobs"], output["cumulative_logprob"]) == (None, None)
    assert result["request_id"].startswith("request-")
    assert (result["prompt"], result["finished"]) == (FRANCE, True)
    assert result["usage"] == {
        "prompt_tokens": len(result["prompt_token_ids"]),
        "completion_tokens": len(output["token_ids"]),
        "cached_tokens": result["num_cached_tokens"],
    }


def test_the_deltas_of_a_stream_make_up_the_result(driven: Driven) -> None:
    whole = driven.generate("1 2 3", logprobs=1)
    deltas, end = driven.stream("1 2 3", logprobs=1)
    assert len(deltas) > 5
    total = deltas[0]
    for delta in deltas[1:]:
        total = merge(total, delta)
    (streamed,), (output,) = total["outputs"], whole["outputs"]
    for name in ("text", "token_ids", "finish_reason", "stop_reason"):
        assert streamed[name] == output[name]
    assert len(streamed["logprobs"]) == len(output["logprobs"])
    assert end["usage"] == whole["usage"]
    assert "outputs" not in end


def test_several_outputs_of_one_prompt(driven: Driven) -> None:
    whole = driven.generate(n=2, temperature=1.0, seed=7)
    deltas, end = driven.stream(n=2, temperature=1.0, seed=7)
    assert [output["index"] for output in whole["outputs"]] == [0, 1]
    total = deltas[0]
    for delta in deltas[1:]:
        total = merge(total, delta)
    assert [output["text"] for output in total["outputs"]] == [
        output["text"] for output in whole["outputs"]
    ]
    assert end["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_many_streams_at_one_time(driven: Driven) -> None:
    args = {"prompt": "1 2 3", "sampling_params": GREEDY}
    keys = [driven.submit("generate", args, stream=True) for _ in range(32)]
    driven.run_until(lambda: all(key in driven.port.ends for key in keys))
    texts = {"".join(d["outputs"][0]["text"] for d in driven.port.deltas[key]) for key in keys}
    assert len(texts) == 1
    assert texts.pop().startswith(" 4 5 6")


def test_logprobs_name_tokens_and_ranks(driven: Driven) -> None:
    result = driven.generate(logprobs=2)
    (output,) = result["outputs"]
    assert len(output["logprobs"]) == len(output["token_ids"])
    for token, position in zip(output["token_ids"], output["logprobs"], strict=True):
        assert position[token]["rank"] == 1
        assert position[token]["logprob"] <= 0.0
        assert isinstance(position[token]["decoded_token"], str)
    assert output["cumulative_logprob"] == pytest.approx(
        sum(
            position[token]["logprob"]
            for token, position in zip(output["token_ids"], output["logprobs"], strict=True)
        )
    )
    error = refusal(lambda: driven.generate(prompt_logprobs=1))
    assert error.parameter == "prompt_logprobs"


def test_stop_reasons(driven: Driven) -> None:
    (text,) = driven.generate("1 2 3", stop=[" 7"])["outputs"]
    assert (text["text"], text["finish_reason"], text["stop_reason"]) == (" 4 5 6", "stop", " 7")
    token = driven.call("tokenize", prompt=" 7", add_special_tokens=False)["token_ids"][-1]
    (ids,) = driven.generate("1 2 3", stop_token_ids=[token])["outputs"]
    assert (ids["finish_reason"], ids["stop_reason"]) == ("stop", token)
    (length,) = driven.generate(max_tokens=1)["outputs"]
    assert (length["finish_reason"], length["stop_reason"]) == ("length", None)


def test_prompts_may_be_token_ids(driven: Driven) -> None:
    ids = driven.call("tokenize", prompt=FRANCE)["token_ids"]
    for prompt in (ids, {"prompt_token_ids": ids}, {"prompt": FRANCE}):
        assert driven.generate(prompt)["outputs"][0]["text"] == " Paris."


def test_sampling_defaults_are_the_models_own(driven: Driven) -> None:
    assert driven.call("generate", prompt=FRANCE)["usage"]["completion_tokens"] <= 16


def test_structured_outputs_are_built_from_plain_data(driven: Driven) -> None:
    result = driven.generate(structured_outputs={"choice": ["Rome", "Oslo"]})
    assert result["outputs"][0]["text"] in {"Rome", "Oslo"}


def test_an_adapter_changes_the_answer(driven: Driven) -> None:
    args = {"prompt": FRANCE, "sampling_params": GREEDY, "lora_request": ADAPTER}
    assert driven.call("generate", **args)["outputs"][0]["text"] == " Tokyo."
    assert driven.generate()["outputs"][0]["text"] == " Paris."


def test_an_adapter_that_is_not_there_fails_its_call_only(driven: Driven) -> None:
    bad = {"lora_name": "bad", "lora_int_id": 2, "lora_path": str(MODEL)}
    with pytest.raises(VllmportError):
        driven.call("generate", prompt=FRANCE, sampling_params=GREEDY, lora_request=bad)
    assert driven.generate()["outputs"][0]["text"] == " Paris."


def test_chat(driven: Driven) -> None:
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    result = driven.call("chat", messages=messages, sampling_params=GREEDY)
    assert result["outputs"][0]["text"] == " Tokyo."
    assert result["prompt"].endswith("assistant:")


def test_tokenize_round_trip(driven: Driven) -> None:
    tokens = driven.call("tokenize", prompt=FRANCE)
    assert tokens["count"] == len(tokens["token_ids"]) > 0
    assert driven.call("detokenize", token_ids=tokens["token_ids"]) == {"text": FRANCE}


@pytest.mark.parametrize(
    ("verb", "args", "parameter", "text"),
    [
        (
            "generat",
            {"prompt": "x"},
            "verb",
            "known: add_lora, apply_chat_template, beam_search, chat",
        ),
        ("generate", {}, "prompt", "needs 'prompt'"),
        ("generate", {"prompt": ""}, "prompt", "0 tokens"),
        ("generate", {"prompt": []}, "prompt", "0 tokens"),
        ("generate", {"prompt": [0] * 2048}, "prompt", "1 to 2047"),
        ("generate", {"prompt": "1 " * 9000}, "prompt", "maximum context length"),
        ("generate", {"prompt": [0, 10**6]}, "prompt", "out of vocabulary"),
        ("generate", {"prompt": {"prompts": "x"}}, "prompts", "did you mean 'prompt'"),
        ("generate", {"prompt": 5}, "prompt", ""),
        ("generate", {"promt": "x"}, "promt", "did you mean 'prompt'"),
        (
            "generate",
            {"prompt": "x", "sampling_params": {"max_token": 1}},
            "max_token",
            "max_tokens",
        ),
        ("generate", {"prompt": "x", "sampling_params": {"max_tokens": "1"}}, "max_tokens", "int"),
        ("chat", {"messages": [{"role": "user"}], "chat_template": "{% if %}"}, "messages", ""),
        ("generate", {"prompt": "x", "sampling_params": {"temperature": -1}}, "temperature", "-1"),
        ("generate", {"prompt": "x", "sampling_params": []}, "sampling_params", "map"),
        (
            "generate",
            {"prompt": "x", "sampling_params": {"structured_outputs": {"regx": "a"}}},
            "regx",
            "did you mean 'regex'",
        ),
        ("generate", {"prompt": "x", "lora_request": {"lora_name": "a"}}, "lora_path", "needs"),
        ("chat", {"messages": "hello"}, "messages", "list"),
        ("chat", {"messages": [{"content": "x"}]}, "messages", "role"),
        ("generate", {"prompt": "x", "sampling_params": {"n": 0}}, "n", "at least 1"),
        (
            "generate",
            {"prompt": "x", "lora_request": {**ADAPTER, "lora_path": "/no"}},
            "lora_path",
            "",
        ),
        ("tokenize", {"prompt": [1]}, "prompt", "text"),
        ("detokenize", {"token_ids": "x"}, "token_ids", "integers"),
        ("detokenize", {"token_ids": [-1]}, "token_ids", "out of vocabulary"),
    ],
)
def test_what_can_never_succeed_is_refused_by_name(
    driven: Driven, verb: str, args: dict[str, Any], parameter: str, text: str
) -> None:
    error = refusal(lambda: driven.call(verb, **args))
    assert error.parameter == parameter
    assert text in error.message
    assert driven.engine.stats()["unfinished"] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_an_aborted_call_says_how_far_it_came(driven: Driven, *, stream: bool, n: int) -> None:
    sampling = {**LONG, "n": n, "temperature": 1.0 if n > 1 else 0.0}
    args = {"prompt": "1 2 3", "sampling_params": sampling}
    key = driven.submit("generate", args, stream=stream)
    steps = driven.engine.stats()["steps"]
    partial = driven.abort_after(key, lambda: driven.engine.stats()["steps"] > steps + 20)
    assert partial.phase == "decode"
    assert partial.tokens >= 20
    assert partial.result is not None
    assert len(partial.result["outputs"]) == n
    assert not partial.result["finished"]
    assert partial.result["usage"]["completion_tokens"] == partial.tokens
    if n == 1:
        assert partial.result["outputs"][0]["text"].startswith(" 4 5 6")
    pack(partial.result)
    assert key not in driven.port.ends
    assert driven.engine.abort(key) == Partial("waiting", 0, None)


def test_a_call_aborted_at_once_leaves_nothing(driven: Driven) -> None:
    key = driven.submit("generate", {"prompt": "1 2 3", "sampling_params": LONG})
    partial = driven.abort_after(key, lambda: True)
    assert partial.tokens <= 1
    assert driven.generate()["outputs"][0]["text"] == " Paris."


def test_receive_is_called_when_a_deadline_comes(driven: Driven) -> None:
    driven.port.deadline = time.monotonic() + 0.2
    driven.run_until(lambda: time.monotonic() >= driven.port.deadline)
    late = time.monotonic() - driven.port.deadline
    driven.port.deadline = math.inf
    assert late < 0.15


@pytest.mark.parametrize(
    ("args", "parameter", "text"),
    [
        ({"max_modl_len": 5}, "max_modl_len", "did you mean 'max_model_len'"),
        ({"dtype": "int3"}, "dtype", "float16"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype", "fp8"),
        ({"quantization": "nope"}, "quantization", "nope"),
        ({"max_model_len": 10**6}, "max_model_len", "max_model_len"),
        ({"model": "/nowhere"}, "model", "nothing at"),
        ({"gpu_memory_utilization": 2.0}, "gpu_memory_utilization", "less than or equal to 1"),
    ],
)
def test_bad_engine_arguments_are_refused_before_loading(
    args: dict[str, Any], parameter: str, text: str
) -> None:
    port = Collector()
    model = args.pop("model", str(MODEL))
    spec = {"model": model, "engine_args": args, "mode": "off", **PATIENT}
    error = refusal(lambda: load_vllm(spec, port))
    assert error.parameter == parameter
    assert text in error.message
    assert port.stages == ["importing", "checking"]


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ({"quantization": "fp8"}, StartupFailed, None),
        ({"quantization": "awq"}, (InvalidRequest, StartupFailed), "(?i)awq"),
        ({"distributed_executor_backend": "ray"}, (InvalidRequest, StartupFailed), "ray"),
        ({"enable_sleep_mode": True}, (InvalidRequest, StartupFailed), "(?i)sleep mode"),
    ],
    ids=str,
)
def test_an_engine_that_cannot_start_here_says_what_is_in_its_way(
    args: dict[str, Any], error: Any, text: str | None
) -> None:
    spec = {"model": str(MODEL), "engine_args": args, "mode": "off", **PATIENT}
    with pytest.raises(error, match=text) as caught:
        load_vllm(spec, Collector())
    assert caught.value.details.get("class") or caught.type is InvalidRequest


def test_an_engine_that_dies_idle_ends_the_run(driven: Driven) -> None:
    """Comes last: nothing works after it."""
    if driven.engine.mode == "off":
        pytest.skip("the engine is this process")
    for process in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(process.cmdline()) + process.name():
            process.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(EngineDead):
        driven.run_until(lambda: False)
    assert time.monotonic() - begun < 2.0
    with pytest.raises(EngineDead):
        driven.generate()


def test_the_protocol_document_has_every_verb_of_vllms_engines() -> None:
    from vllmport.worker.engines.vllm_requests import VERBS  # imports vLLM

    text = (Path(__file__).parents[2] / "bridge" / "PROTOCOL.md").read_text()
    section = text[text.index("## 10.") : text.index("## 11.")]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    documented = {verb for row in rows for verb in re.findall(r"`(\w+)`", row[1])}
    assert documented == {*VERBS}
    for row in rows:
        for verb in re.findall(r"`(\w+)`", row[1]):
            named = set(re.findall(r"`(\w+)`", row[2]))
            assert named - {"chat"} <= VERBS[verb] | VERBS["start_profile"], verb
