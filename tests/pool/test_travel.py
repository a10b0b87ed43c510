"""What cannot leave this process is named, with what to give instead."""

from dataclasses import dataclass
from typing import Any

import pytest

from vllmport.bridge.codec import unpack
from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.client.params import SamplingParams
from vllmport.pool.client.requests import chat_requests, generate_requests, load_arguments
from vllmport.pool.client.travel import pack_arguments


@dataclass
class Config:
    level: int = 3


class Processor:
    pass


def loading(**engine_args: Any) -> dict[str, Any]:
    return load_arguments(
        "m",
        None,
        v1_multiprocessing="auto",
        env=engine_args.pop("env", None),
        replicas=1,
        loras=None,
        preset=None,
        engine_args=engine_args,
    )


def generating(params: Any = None, **extra: Any) -> dict[str, Any]:
    (args,) = generate_requests("hi", params, extra)
    return args


@pytest.mark.parametrize(
    ("args", "parameter", "said"),
    [
        (loading(hf_overrides=lambda c: c), "hf_overrides", 'as text, "module.Name"'),
        (loading(hf_overrides={"a": [object()]}), "hf_overrides", "hf_overrides.a.0 is a "),
        (loading(hf_overrides={object(): 1}), "hf_overrides", "hf_overrides.a key is a "),
        (loading(compilation_config=Config()), "compilation_config", "its fields as a map"),
        (
            loading(logits_processors=[Processor]),
            "logits_processors",
            "test_travel.Processor, which",
        ),
        (loading(env={"A": print}), "env", "env.A is a "),
        (loading(dtype=Processor()), "dtype", "give plain data"),
        (generating(SamplingParams(stop=object())), "stop", "plain data"),  # type: ignore[arg-type]
        (generating({"logit_bias": {1: object()}}), "logit_bias", "logit_bias.1 is a"),
        (generating(tokenization_kwargs={"f": print}), "tokenization_kwargs", ".f is a "),
        (
            chat_requests([{"role": "user", "content": "x"}], None, {"tools": [print]})[0],
            "tools",
            "tools.0 is a builtin_function_or_method, which cannot travel",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_travel_is_named(args: dict[str, Any], parameter: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pack_arguments(args)
    assert caught.value.parameter == parameter
    assert said in caught.value.message
    assert isinstance(caught.value.value, str), "the kind of thing it is"


def test_all_that_can_travel_does() -> None:
    args = {"a": [1, {"b": (2.5, None)}], "c": b"x", "d": {"e"}}
    assert unpack(*pack_arguments(args)) == args


def test_what_is_only_too_large_is_blamed_on_nothing() -> None:
    with pytest.raises(InvalidRequest, match="the limit is") as caught:
        pack_arguments({"prompt": ["x" * 2**20] * 200})
    assert caught.value.parameter == ""


def test_what_holds_itself_is_refused_too() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="cannot travel"):
        pack_arguments({"prompt": endless})


def test_arrays_are_parameters_too() -> None:
    np = pytest.importorskip("numpy")
    rows = np.arange(4)
    wire = SamplingParams(prompt_logprob_token_ids=rows).to_wire()
    assert wire["prompt_logprob_token_ids"] is rows
