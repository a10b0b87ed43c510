"""Universal calls on vLLM itself, whichever way its engine runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmport.pool import LLM, InvalidRequest, NotAllowed, Pool, Ref, SamplingParams, Session

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

GREEDY = SamplingParams(temperature=0, max_tokens=8)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def session(llm: LLM) -> Iterator[Session]:
    with llm.session() as session:
        yield session


def test_sampling_parameters_are_made_read_and_changed(session: Session) -> None:
    params = session.call("vllm", "SamplingParams", max_tokens=8, temperature=0.0, stop=["x"])
    assert isinstance(params, Ref)
    assert params.type == "vllm.sampling_params.SamplingParams"
    assert params.attr("max_tokens") == 8
    assert params.attr("stop") == ["x"]
    params.set_attr("max_tokens", 9)
    copy = params.method("clone")
    assert copy.attr("max_tokens") == 9
    made = session.call("vllm", "SamplingParams.from_optional", n=3)
    assert made.attr("n") == 3
    assert session.get("vllm.sampling_params", "RequestOutputKind.DELTA") == 1


def test_the_tokenizer_of_the_loaded_engine_is_a_ref(llm: LLM, session: Session) -> None:
    tokenizer = session.get("engine", "tokenizer")
    ids = tokenizer.method("encode", "The capital of France is")
    assert ids == llm.tokenize("The capital of France is")
    assert tokenizer.method("decode", ids) == llm.detokenize(ids)
    assert session.call("engine", "tokenizer.decode", ids) == llm.detokenize(ids)
    assert tokenizer.attr("vocab_size") > 10
    with pytest.raises(NotAllowed):
        tokenizer.attr("backend_tokenizer")
    with pytest.raises(NotAllowed):
        tokenizer.method("save_pretrained", "/tmp/x")


def test_a_generator_of_vllm_is_streamed(session: Session) -> None:
    found = list(session.stream("vllm.config", "iter_architecture_defaults"))
    assert len(found) > 3
    assert all(isinstance(suffix, str) for suffix, _ in found)


def test_configurations_are_copies(session: Session, llm: LLM) -> None:
    config = session.get("engine", "model_config")
    before = config.attr("max_model_len")
    config.set_attr("max_model_len", 1)
    assert config.attr("max_model_len") == 1
    with llm.session() as other:
        assert other.get("engine", "model_config").attr("max_model_len") == before
    assert llm.generate("The capital of France is", GREEDY)[0].outputs[0].text == " Paris."
    assert session.get("engine", "vllm_config").attr("model_config.max_model_len") == before
    assert session.get("engine", "default_sampling_params") == {}


def test_escapes_and_engines_are_refused(session: Session) -> None:
    params = session.call("vllm", "SamplingParams")
    for module, name in (
        ("os", "system"),
        ("vllm", "LLM"),
        ("vllm", "LLMEngine.from_engine_args"),
        ("vllm", "AsyncLLMEngine.from_vllm_config"),
        ("vllm.entrypoints.llm", "LLM"),
        ("vllm", "SamplingParams.__init__.__globals__"),
        ("vllm.sampling_params", "json.loads"),
        ("vllm.config", "get_current_vllm_config"),
        ("vllm.envs", "VLLM_API_KEY"),
        ("vllm", "__version__"),
    ):
        with pytest.raises(NotAllowed):
            session.call(module, name)
        with pytest.raises(NotAllowed):
            session.get(module, name)
    for name in ("__class__", "__reduce__", "_all_stop_token_ids", "clone"):
        with pytest.raises(NotAllowed):
            params.attr(name)
    with pytest.raises(InvalidRequest):
        session.attr(params, "")


def test_calls_of_the_engine_go_on_beside_universal_ones(llm: LLM, session: Session) -> None:
    streams = [llm.stream("The capital of France is", GREEDY) for _ in range(4)]
    for number in range(50):
        assert session.call("vllm", "SamplingParams", n=number + 1).attr("n") == number + 1
    assert ["".join(delta.text for delta in stream) for stream in streams] == [" Paris."] * 4


def test_the_shipped_manifest_is_that_of_the_installed_vllm(pool: Pool) -> None:
    path = ROOT / "worker/vllmport/worker/universal/api.json"
    shipped = json.loads(path.read_text(encoding="utf-8"))
    if shipped["vllm"] != json.loads((ROOT / "manifest/vllm.json").read_text())["vllm"]:
        pytest.fail("run make bindings: the two manifests are of different versions")
    script = str(ROOT / "scripts" / "api_manifest.py")
    command = [sys.executable, script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
