"""`v1_multiprocessing` auto, on and off, with cleaning up by process group and without it."""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from checkpoints import UNBOUND, copied
from vllmport.pool import LLM, Pool, SamplingParams, StartupFailed

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

GREEDY = SamplingParams(temperature=0, max_tokens=8)
ARGS: dict[str, Any] = {"enforce_eager": True, "env": UNBOUND, "kv_cache_memory_bytes": 32 << 20}


@pytest.fixture(scope="module")
def unsafe(_module_leaves_nothing: None) -> Iterator[Pool]:
    with Pool(process_group_kill=False, policy={"standby": False}) as pool:
        yield pool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy: for the bundled model itself `auto` is off, to be quick."""
    return str(copied(tmp_path_factory.mktemp("model") / "copy"))


def state_of(pool: Pool, llm: LLM) -> tuple[str, bool]:
    """Return the mode, and whether the engine has a process of its own."""
    worker = next(w for w in pool.status()["workers"] if w["model"] == llm.name)
    assert worker["pgid"] == worker["pid"]
    family = psutil.Process(worker["pid"]).children(recursive=True)
    assert llm.generate("The capital of France is", GREEDY)[0].outputs[0].text == " Paris."
    return worker["mode"], any("VLLM" in process.name() for process in family)


def test_with_cleaning_up_each_mode_is_what_was_asked_for(pool: Pool, off: LLM, on: LLM) -> None:
    assert state_of(pool, off) == ("off", False)
    assert state_of(pool, on) == ("on", True)
    assert off.engine_config()["warnings"] == on.engine_config()["warnings"] == []


def test_with_cleaning_up_the_engine_has_a_process_if_nothing_is_asked(
    pool: Pool, model: str
) -> None:
    with pool.llm(model, name="auto", v1_multiprocessing="auto", **ARGS) as llm:
        assert state_of(pool, llm) == ("on", True)
        assert llm.engine_config()["warnings"] == []


@pytest.mark.parametrize("asked", ["auto", "off"])
def test_without_cleaning_up_the_engine_stays_in_the_worker(
    unsafe: Pool, model: str, asked: str
) -> None:
    with unsafe.llm(model, name=asked, v1_multiprocessing=asked, **ARGS) as llm:
        assert state_of(unsafe, llm) == ("off", False)
        warnings = llm.engine_config()["warnings"]
        assert [text for text in warnings if "process_group_kill is false" in text] == (
            warnings if asked == "auto" else []
        )
        assert bool(warnings) == (asked == "auto")


def test_without_cleaning_up_on_fails_fast(unsafe: Pool, model: str) -> None:
    with pytest.raises(StartupFailed, match="process_group_kill is false"):
        unsafe.llm(model, name="on", v1_multiprocessing="on", **ARGS)


def test_the_users_own_variable_decides_where_auto_was_left(pool: Pool, model: str) -> None:
    args = {**ARGS, "env": {**UNBOUND, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}}
    with pool.llm(model, name="mine", **args) as llm:
        assert state_of(pool, llm) == ("off", False)
        assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in llm.engine_config()["warnings"][0]
