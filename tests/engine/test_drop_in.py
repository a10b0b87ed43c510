"""`vllmport.pool.LLM` in the place of `vllm.LLM`: every public method, and scripts as they are."""

import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from checkpoints import TINY
from processes import environment, worker_pid
from vllmport.pool import LLM, InvalidRequest, SamplingParams
from vllmport.pool.client.drop_in import ELSEWHERE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

FRANCE = "The capital of France is"


def parameters(method: Any, verbs: Mapping[str, frozenset[str]]) -> set[str]:
    """Name what a method takes, by itself or among its further keywords."""
    found: set[str] = set()
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            found.add(parameter.name)
        elif parameter.annotation is Any:  # what the engine's verb of this name takes
            found |= verbs[method.__name__]
        else:
            (named,) = get_args(parameter.annotation)
            found |= named.__annotations__.keys()
    return found


@pytest.mark.filterwarnings("ignore")  # vLLM's and torch's own
def test_every_public_method_of_vllms_class_is_there_or_says_why_not() -> None:
    import vllm

    from vllmport.worker.engines.vllm_requests import VERBS

    theirs_too = vllm.LLM

    methods = [name for name, _ in inspect.getmembers(theirs_too, callable) if name[0] != "_"]
    assert len(methods) > 25
    handle = LLM.__new__(LLM)
    for name in methods:
        if name in ELSEWHERE:
            with pytest.raises(InvalidRequest) as caught:
                getattr(handle, name)()
            assert ELSEWHERE[name] in str(caught.value), name
            continue
        ours = inspect.signature(getattr(LLM, name)).parameters
        theirs = inspect.signature(getattr(theirs_too, name)).parameters
        missing = theirs.keys() - parameters(getattr(LLM, name), VERBS)
        assert not missing, f"{name} lacks {missing}"
        positional = [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD][:2]
        assert [name for name in ours if name in positional] == positional, name
    assert ELSEWHERE.keys() <= {*methods}


def test_errors_of_vllms_own_checks_are_value_errors(off: LLM) -> None:
    for params in ({"temperature": -1}, {"n": 0}, {"top_p": 2.0}):
        with pytest.raises(ValueError, match=next(iter(params))):
            off.generate(FRANCE, params)


def test_the_tokenizer_does_what_scripts_ask_of_it(off: LLM) -> None:
    tokenizer = off.get_tokenizer()
    ids = tokenizer.encode(FRANCE)
    assert ids == off.tokenize(FRANCE) == tokenizer(FRANCE)["input_ids"]
    assert tokenizer.decode(ids) == FRANCE
    assert tokenizer.decode(ids[0]) + tokenizer.decode(ids[1:]) == FRANCE
    assert tokenizer.decode([*ids, tokenizer.eos_token_id or 0], skip_special_tokens=True) == FRANCE
    assert len(tokenizer) == tokenizer.vocab_size == 512
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.tokenize(FRANCE) == tokens
    assert tokenizer.batch_decode([ids, ids[:1]]) == [FRANCE, tokenizer.decode(ids[0])]
    assert tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in tokenizer.all_special_ids
    assert "{%" in (tokenizer.chat_template or "")
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    (asked,) = off.chat(question, SamplingParams(temperature=0))
    assert text == asked.prompt
    as_ids = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert as_ids == asked.prompt_token_ids == off.preprocess_chat(question)


def test_small_facts(off: LLM) -> None:
    assert off.get_world_size() == 1
    assert off.get_default_sampling_params() == SamplingParams()
    with pytest.raises(AttributeError, match="no_such_method"):
        off.no_such_method()


OFFLINE_EXAMPLE = """
from vllmport.pool import LLM, SamplingParams

prompts = ["The capital of France is", "The capital of Japan is"]
sampling_params = SamplingParams(temperature=0.0, top_p=0.95, max_tokens=8)

llm = LLM(model=MODEL, enforce_eager=True, seed=0)
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    generated_text = output.outputs[0].text
    print(f"{output.prompt!r} -> {generated_text!r}")

tokenizer = llm.get_tokenizer()
conversation = [{"role": "user", "content": "What is the capital of Norway?"}]
prompt = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
print(llm.generate(prompt, sampling_params)[0].outputs[0].text)
print(llm.chat([conversation] * 2, sampling_params, use_tqdm=False)[1].outputs[0].text)
llm.reset_prefix_cache()
"""

EMBEDDING_EXAMPLE = """
from vllmport.pool import LLM

llm = LLM(model=MODEL, runner="pooling", convert="embed", enforce_eager=True)
outputs = llm.embed(["Hello, my name is", "The capital of France is"])
for output in outputs:
    embeds = output.outputs.embedding
    trimmed = ((str(embeds[:16])[:-1] + ", ...]") if len(embeds) > 16 else embeds)
    print(f"(size={len(embeds)})")
(output,) = llm.score("What is the capital of France?", "The capital of France is Paris.")
print(0 < output.outputs.score <= 1)
"""


def run(source: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", source.replace("MODEL", repr(str(TINY)))],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_an_example_of_offline_inference_runs_with_its_import_changed() -> None:
    assert run(OFFLINE_EXAMPLE) == [
        "'The capital of France is' -> ' Paris.'",
        "'The capital of Japan is' -> ' Tokyo.'",
        " Oslo.",
        " Oslo.",
    ]


def test_an_example_of_embedding_runs_with_its_import_changed() -> None:
    assert run(EMBEDDING_EXAMPLE) == ["(size=128)", "(size=128)", "True"]


def test_a_template_given_with_the_model_is_used_and_no_pool_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }} is")
    llm = LLM(chat_template=str(path))
    asked = [{"role": "user", "content": "The capital of France"}]
    (result,) = llm.chat(asked, SamplingParams(temperature=0))
    assert result.outputs[0].text == " Paris."
    assert llm.engine_config()["max_model_len"] == 8192
    pid = worker_pid(llm._pool)
    llm.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(ValueError, match="cannot read the chat template"):
        LLM(str(TINY), chat_template="/no/such/template")
