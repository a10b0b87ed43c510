"""Options that have their effect on a GPU only; written where there was none, see the document."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from processes import eventually
from vllmport.pool import (
    LLM,
    CudaOutOfMemory,
    GpuMemoryUtilization,
    InvalidRequest,
    KVCacheTooSmall,
    Pool,
    SamplingParams,
    StartupFailed,
)
from vllmport.pool.gpu import read_gpus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

GREEDY = SamplingParams(temperature=0, max_tokens=8)
FRANCE = "The capital of France is"
GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def _vllm_sees_the_gpu() -> None:
    code = "import sys, torch, vllm._C; sys.exit(not torch.cuda.is_available())"
    found = importlib.util.find_spec("vllm") is not None
    if not found or subprocess.run([sys.executable, "-c", code], check=False).returncode:
        pytest.skip("no vLLM here that fits the torch of this machine")


@pytest.fixture(scope="module")
def pool(_module_leaves_nothing: None) -> Iterator[Pool]:
    with Pool(policy={"standby": False}) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> None:
    """The module shares its pool."""


def text_of(llm: LLM) -> str:
    return llm.generate(FRANCE, GREEDY)[0].outputs[0].text


def test_gpu_memory_utilization_decides_how_much_is_taken(pool: Pool) -> None:
    before = read_gpus()[0]
    sizes = []
    for share in (0.2, 0.4):
        with pool.llm("tiny", name=f"share-{share}", gpu_memory_utilization=share) as llm:
            assert text_of(llm) == " Paris."
            sizes.append(read_gpus()[0].used - before.used)
        eventually(lambda: read_gpus()[0].used < before.used + GIB, 120)
    assert sizes[1] - sizes[0] == pytest.approx(0.2 * before.total, rel=0.25)


def test_sleep_gives_memory_back_and_wake_up_takes_it_again(pool: Pool) -> None:
    with pool.llm(
        "tiny", name="sleeper", enable_sleep_mode=True, gpu_memory_utilization=0.4
    ) as llm:
        awake = read_gpus()[0].used
        llm.sleep(1)
        assert llm.is_sleeping()
        eventually(lambda: read_gpus()[0].used < awake / 2, 60)
        assert llm.wake_up()
        assert not llm.is_sleeping()
        assert text_of(llm) == " Paris."


@pytest.mark.parametrize("mode", ["off", "on"])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kv_cache_memory_bytes": 1 << 16}, KVCacheTooSmall),
        ({"gpu_memory_utilization": 1.0}, (GpuMemoryUtilization, CudaOutOfMemory)),
        ({"quantization": "awq"}, (InvalidRequest, StartupFailed)),
    ],
    ids=str,
)
def test_failures_have_types_of_their_own(
    pool: Pool, mode: str, options: dict[str, Any], error: Any
) -> None:
    with pytest.raises(error):
        pool.llm("tiny", name=f"{mode} {options}", v1_multiprocessing=mode, **options)


def test_quantization_while_loading(pool: Pool) -> None:
    with pool.llm("tiny", name="fp8", quantization="fp8", gpu_memory_utilization=0.2) as llm:
        assert llm.engine_config()["quantization"] == "fp8"
        assert llm.generate(FRANCE, GREEDY)[0].outputs[0].token_ids
