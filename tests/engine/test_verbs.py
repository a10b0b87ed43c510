"""What an engine can do besides generating: each verb by its effect, on real vLLM."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import TINY, UNBOUND
from vllmport.pool import (
    LLM,
    AsyncPool,
    BeamSearchParams,
    EngineError,
    InvalidRequest,
    LoRARequest,
    Pool,
    SamplingParams,
    StructuredOutputsParams,
    VllmportError,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

FRANCE = "The capital of France is"
ADAPTER = str(TINY / "lora-swapped")
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["off", "on"])
def full(request: pytest.FixtureRequest, pool: Pool) -> Iterator[LLM]:
    """An engine with adapters and statistics, in each mode: with two slots, and with one."""
    with pool.llm(
        "tiny",
        name=f"full-{request.param}",
        v1_multiprocessing=request.param,
        env=UNBOUND,
        enable_lora=True,
        max_loras={"off": 2, "on": 1}[request.param],
        max_lora_rank=8,
        disable_log_stats=False,
        enable_prefix_caching=True,
        block_size=32,
        structured_outputs_config={"disable_any_whitespace": True, "backend": "xgrammar"},
    ) as llm:
        yield llm


def text_of(outputs: Any) -> str:
    return str(outputs[0].outputs[0].text)


def refusal(call: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call()
    return caught.value


# Adapters.


def test_an_adapter_is_known_by_name_and_changes_only_its_own_prompts(full: LLM) -> None:
    assert refusal(lambda: full.generate(FRANCE, GREEDY, lora_request="swapped")).parameter
    number = full.add_lora("swapped", ADAPTER)
    assert full.list_loras()["swapped"] == {
        "lora_int_id": number,
        "lora_path": ADAPTER,
        "loaded": True,
    }
    both = full.generate([FRANCE] * 4, GREEDY, lora_request=["swapped", None, "swapped", None])
    texts = [output.outputs[0].text for output in both]
    assert texts == [" Tokyo.", " Paris.", " Tokyo.", " Paris."]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    swapped, base = full.chat([question] * 2, GREEDY, lora_request=["swapped", None])
    assert base.outputs[0].text == " Paris."
    assert swapped.outputs[0].text != base.outputs[0].text
    streamed = "".join(d.text for d in full.stream(FRANCE, GREEDY, lora_request="swapped"))
    assert streamed == " Tokyo."
    with pytest.raises(VllmportError):
        full.add_lora("swapped", str(TINY))  # no adapter: the name keeps the one it has
    assert full.list_loras()["swapped"]["lora_path"] == ADAPTER
    assert full.pin_lora("swapped")
    assert text_of(full.generate(FRANCE, GREEDY, lora_request="swapped")) == " Tokyo."
    assert full.remove_lora("swapped")
    assert "swapped" not in full.list_loras()
    assert refusal(lambda: full.remove_lora("swapped")).parameter == "lora_request"
    assert text_of(full.generate(FRANCE, GREEDY)) == " Paris."


def test_prompts_without_an_adapter_are_the_models_own_when_all_slots_are_taken(
    pool: Pool, full: LLM
) -> None:
    """VLLM 0.32 on the CPU takes "none" for the last slot."""
    names = ["one", "two"][: full.engine_config()["max_loras"]]
    assert_each_is_answered_by_its_own(full, names)
    if len(names) == 2:
        assert steps_of(pool, full, names) < 60, "both are in one step"
    for name in names:
        assert full.remove_lora(name)


def test_adapters_take_turns_where_there_is_one_slot(pool: Pool) -> None:
    with pool.llm(
        "tiny", name="slot", env=UNBOUND, enable_lora=True, max_lora_rank=8, max_loras=1
    ) as llm:
        assert_each_is_answered_by_its_own(llm, ["one"])
        llm.add_lora("two", ADAPTER)
        assert steps_of(pool, llm, ["one", "two"]) >= 80


def assert_each_is_answered_by_its_own(llm: LLM, names: list[str]) -> None:
    for name in names:
        llm.add_lora(name, ADAPTER)
    asked = [*names, None, *names, None]
    found = llm.generate([FRANCE] * len(asked), GREEDY, lora_request=asked)
    texts = [output.outputs[0].text for output in found]
    assert texts == [" Tokyo." if name else " Paris." for name in asked]


def steps_of(pool: Pool, llm: LLM, names: list[str]) -> int:
    """Return in how many steps a prompt for each of these adapters got 40 tokens."""

    def taken() -> int:
        workers = pool.status()["workers"]
        return next(int(w["steps"]) for w in workers if w["model"] == llm.name)

    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    before = taken()
    llm.generate([FRANCE] * len(names), params, lora_request=[*names])
    return taken() - before


def test_vllms_own_request_for_an_adapter_works(full: LLM, tmp_path: Path) -> None:
    request = LoRARequest("mine", 7, ADAPTER)
    assert text_of(full.generate(FRANCE, GREEDY, lora_request=request)) == " Tokyo."
    same = refusal(
        lambda: full.generate(FRANCE, GREEDY, lora_request=LoRARequest("other", 7, ADAPTER))
    )
    assert same.parameter == "lora_int_id"
    copied = str(shutil.copytree(ADAPTER, tmp_path / "copy"))
    same = refusal(
        lambda: full.generate(FRANCE, GREEDY, lora_request=LoRARequest("mine", 7, copied))
    )
    assert same.parameter == "lora_int_id", "vLLM would go on with the first folder"
    assert "load_inplace=True" in str(same)
    request = LoRARequest("mine", 7, copied, load_inplace=True)
    assert text_of(full.generate(FRANCE, GREEDY, lora_request=request)) == " Tokyo."
    assert full.list_loras()["mine"]["lora_path"] == copied
    assert full.remove_lora("mine")


def test_what_would_end_an_engine_with_adapters_is_refused(full: LLM) -> None:
    """VLLM 0.32 on the CPU: prompt_logprobs and a second sequence in one step."""
    several = SamplingParams(n=2, temperature=1, seed=1, max_tokens=4)
    assert len(full.generate(FRANCE, several)[0].outputs) == 2
    deadly = SamplingParams(n=2, temperature=1, max_tokens=4, prompt_logprobs=1)
    assert refusal(lambda: full.generate(FRANCE, deadly)).parameter == "prompt_logprobs"
    assert text_of(full.generate(FRANCE, GREEDY)) == " Paris."


def test_a_model_without_adapters_says_so(off: LLM) -> None:
    error = refusal(lambda: off.generate(FRANCE, GREEDY, lora_request=LoRARequest("a", 1, ADAPTER)))
    assert "enable_lora=True" in str(error)


# Structured outputs.

KINDS: dict[str, tuple[Any, str]] = {
    "choice": (["Rome", "Oslo"], r"Rome|Oslo"),
    "regex": (r"[0-9]{3}-[ab]", r"[0-9]{3}-[ab]"),
    "grammar": ('root ::= "yes" | "no"', r"yes|no"),
    "json": (SCHEMA, r'\{"a": ?(true|false)\}'),
    "json_object": (True, r"\{.*"),
    "structural_tag": (
        {
            "type": "structural_tag",
            "format": {
                "type": "tag",
                "begin": "<c>",
                "content": {"type": "regex", "pattern": "[0-9]{2}"},
                "end": "</c>",
            },
        },
        r"<c>[0-9]{2}</c>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_constraint_holds_in_both_spellings(full: LLM, kind: str) -> None:
    value, pattern = KINDS[kind]
    if kind == "structural_tag":
        value = json.dumps(value)
    new = SamplingParams(
        temperature=1,
        seed=3,
        max_tokens=24,
        structured_outputs=StructuredOutputsParams(**{kind: value}),
    )
    text = text_of(full.generate(FRANCE, new))
    assert re.fullmatch(pattern, text, re.DOTALL), text
    old: dict[str, Any] = {"temperature": 1, "seed": 3, "max_tokens": 24}
    with pytest.warns(FutureWarning, match="structured_outputs"):
        assert text_of(full.generate(FRANCE, {**old, f"guided_{kind}": value})) == text
    with pytest.warns(FutureWarning, match="structured_outputs"):
        again = full.generate(FRANCE, old, guided_decoding_params={kind: value})
    assert text_of(again) == text


@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_the_other_backends_constrain_as_well(pool: Pool, backend: str) -> None:
    old: dict[str, Any] = {"guided_decoding_backend": backend}
    with pytest.warns(FutureWarning, match="structured_outputs_config"):
        llm = pool.llm("tiny", name=backend, env=UNBOUND, **old)
    with llm:
        assert llm.engine_config()["structured_outputs_backend"] == backend
        for kind in ("choice", "regex", "json"):
            value, pattern = KINDS[kind]
            params = SamplingParams(
                temperature=1, seed=5, max_tokens=60, structured_outputs={kind: value}
            )
            text = text_of(llm.generate(FRANCE, params))
            if kind == "json":
                assert json.loads(text)["a"] in (True, False)
            else:
                assert re.fullmatch(pattern, text), text


def test_a_backend_that_cannot_run_here_is_a_typed_error_and_the_engine_goes_on(
    pool: Pool,
) -> None:
    """lm-format-enforcer asks for a distribution called vllm, which the CPU build is not."""
    config = {"backend": "lm-format-enforcer"}
    with pool.llm("tiny", name="enforcer", env=UNBOUND, structured_outputs_config=config) as llm:
        params = SamplingParams(structured_outputs={"choice": ["Rome", "Oslo"]})
        with pytest.raises((InvalidRequest, EngineError)):
            llm.generate(FRANCE, params, timeout=60)
        assert text_of(llm.generate(FRANCE, GREEDY)) == " Paris."


def test_two_constraints_at_one_time_are_refused(full: LLM) -> None:
    params = SamplingParams(structured_outputs={"regex": "a", "choice": ["a"]})
    assert "one kind" in str(refusal(lambda: full.generate(FRANCE, params)))
    error = refusal(lambda: full.generate(FRANCE, {"best_of": 2}))
    assert "cumulative_logprob" in str(error)


# Caches and metrics.


def test_the_prefix_cache_is_forgotten_when_told(full: LLM) -> None:
    prompt = list(range(5, 105))
    full.generate([prompt], GREEDY)
    (warm,) = full.generate([prompt], GREEDY)
    assert warm.num_cached_tokens
    assert full.reset_prefix_cache()
    (cold,) = full.generate([prompt], GREEDY)
    assert cold.num_cached_tokens == 0


def test_metrics_count_what_was_generated(full: LLM) -> None:
    def generated() -> float:
        (found,) = (m for m in full.get_metrics() if m.name == "vllm:generation_tokens")
        return found.value or 0

    before = generated()
    full.generate("1 2 3", SamplingParams(temperature=0, max_tokens=7, ignore_eos=True))
    assert generated() == before + 7
    times = next(m for m in full.get_metrics() if m.name == "vllm:time_to_first_token_seconds")
    assert times.kind == "histogram"
    assert times.count
    assert times.buckets["+Inf"] == times.count


def test_an_engine_without_statistics_says_so(off: LLM) -> None:
    assert "disable_log_stats=False" in str(refusal(off.get_metrics))


def test_a_cache_that_is_not_there_is_not_emptied(full: LLM) -> None:
    assert "text only" in str(refusal(full.reset_mm_cache))


# Sleep, and calls into the workers.


def test_sleep_says_no_where_it_would_do_nothing(full: LLM, pool: Pool) -> None:
    assert "CPU" in str(refusal(full.sleep))
    assert "enable_sleep_mode" in str(refusal(full.wake_up))
    assert not full.is_sleeping()
    assert refusal(lambda: pool.llm("tiny", name="sleepy", enable_sleep_mode=True))


def test_a_method_of_the_workers_is_called_by_name(full: LLM) -> None:
    assert full.collective_rpc("check_health") == [None]
    with pytest.raises((InvalidRequest, EngineError), match="no_such_method"):
        full.collective_rpc("no_such_method")
    with pytest.raises(EngineError, match=r"cannot travel|Can't pickle"):
        full.collective_rpc("get_model")
    assert "worker_extension_cls" in str(refusal(lambda: full.collective_rpc(print)))


# Beams and pooling.


def test_beams_are_sorted_and_end_with_the_best(full: LLM) -> None:
    (found,) = full.beam_search(FRANCE, BeamSearchParams(2, 6))
    best, second = found.sequences
    assert best.text.startswith(f"{FRANCE} Paris")
    assert best.cum_logprob >= second.cum_logprob
    assert len(best.logprobs) == len(best.tokens) - len(full.tokenize(FRANCE))
    error = refusal(lambda: full.beam_search(FRANCE, BeamSearchParams(0, 6)))
    assert "beam_width" in str(error)


def test_a_beam_search_that_is_given_up_leaves_nothing(full: LLM, pool: Pool) -> None:
    with pytest.raises(TimeoutError):
        full.beam_search("1 2 3", BeamSearchParams(4, 2000, ignore_eos=True), timeout=0.5)
    assert sum(worker["unfinished"] for worker in pool.status()["workers"]) == 0
    assert text_of(full.generate(FRANCE, GREEDY)) == " Paris."


def test_a_model_that_generates_refuses_to_embed(full: LLM) -> None:
    assert "runner='pooling'" in str(refusal(lambda: full.embed("a")))
    assert "runner='pooling'" in str(refusal(lambda: full.score("a", "b")))
    assert "pooling_task" in str(refusal(lambda: full.encode("a")))


async def test_pooling_verbs_and_their_refusals(pool: Pool) -> None:
    with pool.llm("tiny", name="pooled", env=UNBOUND, runner="pooling", convert="embed") as llm:
        many = llm.embed(["a", "b"] * 200)
        assert len(many) == 400
        assert list(many[0].outputs.embedding) == list(many[2].outputs.embedding)
        (raw,) = llm.embed("a", pooling_params={"use_activation": False})
        assert sum(x * x for x in raw.outputs.embedding) > 1.5
        with pytest.warns(FutureWarning, match="use_activation"):
            (old,) = llm.embed("a", pooling_params={"normalize": False})
        assert list(old.outputs.embedding) == list(raw.outputs.embedding)
        assert llm.encode("a", pooling_task="embed")[0].outputs.data.shape == (128,)
        assert "Matryoshka" in str(
            refusal(lambda: llm.embed("a", pooling_params={"dimensions": 4}))
        )
        assert "extra_kwargs" in str(
            refusal(lambda: llm.embed("a", pooling_params={"additional_data": 1}))
        )
        assert "'embed', not 'classify'" in str(refusal(lambda: llm.classify("a")))
        assert "generates no text" in str(refusal(lambda: llm.generate("a")))
        assert "paired" in str(refusal(lambda: llm.score(["a", "b"], ["c"])))
        short = llm.embed("1 2 3 4", tokenization_kwargs={"truncate_prompt_tokens": 2})
        assert len(short[0].prompt_token_ids) == 2
        async with (
            await AsyncPool.connect(pool.endpoint) as joined,
            joined.llm(name="pooled") as it,
        ):
            (same,) = await it.embed("a")
            assert list(same.outputs.embedding) == list(many[0].outputs.embedding)
            assert (await it.score("a", "a"))[0].outputs.score == pytest.approx(1, abs=1e-5)


# Media and chat.


def test_media_reach_the_engine_as_bytes(full: LLM) -> None:
    """The bundled model has no eyes: that vLLM looks into the bytes is all there is to see."""
    noise = {"prompt": FRANCE, "multi_modal_data": {"image": b"no image"}}
    assert "cannot identify image" in str(refusal(lambda: full.generate(noise, GREEDY)))
    from PIL import Image

    picture = Image.new("RGB", (8, 8), "red")
    seen = {"prompt": FRANCE, "multi_modal_data": {"image": picture}}
    assert (
        "multimodal" in str(refusal(lambda: full.generate(seen, GREEDY))).replace("-", "").lower()
    )
    parts = [{"type": "image", "image": b"no image"}, {"type": "text", "text": "What is it?"}]
    error = refusal(lambda: full.chat([{"role": "user", "content": parts}], GREEDY))
    assert "image" in str(error)


def test_a_chat_template_of_ones_own_and_its_arguments(full: LLM) -> None:
    template = "{{ messages[0].content }} {{ ending }}"
    (result,) = full.chat(
        [{"role": "user", "content": "The capital of France"}],
        GREEDY,
        chat_template=template,
        chat_template_kwargs={"ending": "is"},
    )
    assert result.outputs[0].text == " Paris."
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    template = "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    (result,) = full.chat(
        [{"role": "user", "content": "x"}], GREEDY, chat_template=template, tools=tools
    )
    assert result.prompt == "look"


def test_the_adapters_folder_is_there() -> None:
    assert Path(ADAPTER).is_dir()
