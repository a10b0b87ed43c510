"""Options that have their effect on a GPU only; written where there was none, see the document."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import quantized
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


def test_a_checkpoint_of_four_bits_runs_on_a_gpu(pool: Pool, tmp_path: Path) -> None:
    folder = str(quantized(tmp_path / "awq", "awq"))
    with pool.llm(folder, name="awq", quantization="awq", gpu_memory_utilization=0.2) as llm:
        assert "awq" in llm.engine_config()["quantization"]
        assert text_of(llm) == " Paris."


def test_a_cache_of_fp8_holds_twice_as_much(pool: Pool) -> None:
    tokens = {}
    for kind in ("auto", "fp8"):
        with pool.llm(
            "tiny", name=f"cache-{kind}", kv_cache_dtype=kind, kv_cache_memory_bytes=64 << 20
        ) as llm:
            config = llm.engine_config()
            tokens[kind] = config["num_gpu_blocks"] * config["block_size"]
            assert llm.generate(FRANCE, GREEDY)[0].outputs[0].token_ids
    assert tokens["fp8"] == pytest.approx(2 * tokens["auto"], rel=0.05)


def test_offloaded_weights_are_not_in_the_memory_of_the_gpu(pool: Pool) -> None:
    """A gigabyte of weights that nobody trained: only where they lie is of interest."""
    wide = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8}
    options: dict[str, Any] = {"load_format": "dummy", "hf_overrides": wide}
    before, used = read_gpus()[0].used, {}
    for size in (0, 1):
        with pool.llm(
            "tiny",
            name=f"offload-{size}",
            cpu_offload_gb=size,
            kv_cache_memory_bytes=GIB,
            **options,
        ) as llm:
            assert llm.generate(FRANCE, GREEDY)[0].outputs[0].token_ids
            used[size] = read_gpus()[0].used
        eventually(lambda: read_gpus()[0].used < before + GIB, 120)
    assert used[0] - used[1] > GIB // 2


@pytest.mark.parametrize("executor", ["mp", "ray"])
@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_model_is_spread_across_gpus(pool: Pool, split: str, executor: str) -> None:
    if len(read_gpus()) < 2:
        pytest.skip("there is one GPU here")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed here")
    before = [gpu.used for gpu in read_gpus()]
    options: dict[str, Any] = {split: 2, "distributed_executor_backend": executor}
    with pool.llm("tiny", name=f"{split}-{executor}", gpu_memory_utilization=0.2, **options) as llm:
        assert text_of(llm) == " Paris."
        used = [gpu.used - was for gpu, was in zip(read_gpus(), before, strict=True)]
        assert sum(more > GIB for more in used) == 2
