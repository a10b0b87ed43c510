"""Where models come from: a hub, a gate, a revision, a folder; and what is said without one."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from checkpoints import TINY, UNBOUND, copied
from hub import Hub, commit_of, hub
from vllmport.pool import LLM, InvalidRequest, Pool, SamplingParams, StartupFailed

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

OPEN, GATED = "facebook/opt-125m", "meta-llama/Llama-2-7b-hf"
TOKEN = "hf_token-of-the-test"
NUMBERS = count(1)  # a name is free again only when its last worker is gone
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The bundled model in two revisions, and once more behind a gate."""
    folder = tmp_path_factory.mktemp("hub")
    main = copied(folder / "main")
    short = copied(folder / "short", max_position_embeddings=1024)
    repositories = {OPEN: {"main": main, "short": short}, GATED: {"main": main}}
    with hub(repositories, {GATED: TOKEN}) as running:
        yield running


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def loaded(pool: Pool, model: str, env: dict[str, str], **options: Any) -> LLM:
    options |= {"v1_multiprocessing": "off", "enforce_eager": True}
    return pool.llm(model, name=f"source {next(NUMBERS)}", env={**UNBOUND, **env}, **options)


def works(llm: LLM) -> bool:
    return llm.generate("The capital of France is", GREEDY)[0].outputs[0].text == " Paris."


def test_a_public_model_is_downloaded_from_the_hub(pool: Pool, served: Hub, cache: Path) -> None:
    with loaded(pool, OPEN, served.environment(cache)) as llm:
        assert works(llm)
        assert llm.engine_config()["max_model_len"] == 8192
    assert f"{OPEN}@main/model.safetensors" in served.downloads
    assert list(cache.rglob("model.safetensors"))


@pytest.mark.parametrize("by_commit", [False, True])
def test_a_revision_is_a_name_or_a_commit(
    pool: Pool, served: Hub, cache: Path, *, by_commit: bool
) -> None:
    revision = commit_of(OPEN, "short") if by_commit else "short"
    with loaded(pool, OPEN, served.environment(cache), revision=revision) as llm:
        assert works(llm)
        config = llm.engine_config()
        assert (config["max_model_len"], config["revision"]) == (1024, revision)


def test_a_gated_model_wants_its_token(pool: Pool, served: Hub, cache: Path) -> None:
    with pytest.raises((StartupFailed, InvalidRequest), match=GATED) as caught:
        loaded(pool, GATED, {**served.environment(cache), "HF_TOKEN": "wrong"})
    assert "wrong" not in str(caught.value.details)
    with loaded(pool, GATED, {**served.environment(cache), "HF_TOKEN": TOKEN}) as llm:
        assert works(llm)
    logs = Path(pool.status()["supervisor"]["log_dir"]).iterdir()
    assert all(TOKEN not in path.read_text() for path in logs)


def test_what_the_hub_does_not_have_says_how_to_alias_it(
    pool: Pool, served: Hub, cache: Path
) -> None:
    with pytest.raises((StartupFailed, InvalidRequest), match="aliases"):
        loaded(pool, "nobody/nothing", served.environment(cache))
    with pytest.raises((StartupFailed, InvalidRequest), match=r"(?i)revision"):
        loaded(pool, OPEN, served.environment(cache), revision="no-such-revision")


OFFLINE = {"HF_HUB_OFFLINE": "1"}
AWAY = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
"""Told not to ask the hub; not told, and nobody answers there."""


@pytest.mark.parametrize(
    ("named", "env"),
    [
        ({"model": "nobody/nothing"}, OFFLINE),
        ({"model": str(TINY), "tokenizer": "nobody/nothing"}, OFFLINE),
        ({"model": str(TINY), "tokenizer": "nobody/nothing"}, AWAY),
    ],
    ids=["model, offline", "tokenizer, offline", "tokenizer, away"],
)
def test_without_a_hub_the_error_comes_at_once(
    pool: Pool, cache: Path, named: dict[str, str], env: dict[str, str]
) -> None:
    begun, blamed = time.monotonic(), list(named)[-1]
    with pytest.raises(StartupFailed, match=f"^{blamed} 'nobody/nothing' is not .* aliases"):
        loaded(pool, env={**env, "HF_HOME": str(cache)}, **named)
    assert time.monotonic() - begun < 60, "what importing vLLM takes, and no more"


def test_a_tokenizer_comes_from_the_hub_and_is_there_without_it(
    pool: Pool, served: Hub, cache: Path
) -> None:
    for env in (served.environment(cache), {**served.environment(cache), **OFFLINE}):
        with loaded(pool, str(TINY), env, tokenizer=OPEN) as llm:
            assert works(llm)
            assert OPEN.rpartition("/")[2] in llm.engine_config()["tokenizer"]


def test_an_alias_may_stand_for_a_tokenizer(pool: Pool) -> None:
    with loaded(pool, str(TINY), {}, tokenizer="tiny") as llm:
        assert llm.engine_config()["tokenizer"] == str(TINY)


def test_modelscope_without_its_package_says_so(pool: Pool, cache: Path) -> None:
    env = {"VLLM_USE_MODELSCOPE": "1", "HF_HOME": str(cache)}
    with pytest.raises((StartupFailed, InvalidRequest), match=r"(?i)modelscope"):
        loaded(pool, "nobody/nothing", env)


def test_a_folder_is_a_model(pool: Pool) -> None:
    with loaded(pool, str(TINY), {}) as llm:
        assert works(llm)
