"""vLLM's own refusals and failures, as its own code raises them, and what becomes of each."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from checkpoints import TINY
from vllmport.bridge.errors import (
    CudaOutOfMemory,
    GpuMemoryUtilization,
    InvalidRequest,
    KVCacheTooSmall,
    StartupFailed,
)
from vllmport.worker.causes import Cause

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    from vllmport.worker.engines.vllm import import_vllm

    import_vllm()


# What is wrong with an argument.


@pytest.mark.parametrize(
    ("args", "parameter"),
    [
        ({"max_model_len": 100_000}, "max_model_len"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"quantization": "nope"}, "quantization"),
        ({"quantization": "awq"}, "quantization"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": 100, "enable_chunked_prefill": False}, "max_num_batched_tok"),
        ({"kv_cache_dtype": "nope"}, "kv_cache_dtype"),
        ({"structured_outputs_config": {"backend": "nope"}}, "structured_outputs_config"),
        ({"compilation_config": {"mode": 9}}, "compilation_config"),
        ({"speculative_config": {"x": 1}}, "speculative_config"),
        ({"tokenizer": "/nope"}, "tokenizer"),
        ({"generation_config": "./nope"}, "generation_config"),
    ],
    ids=str,
)
def test_a_refused_engine_argument_is_named_with_its_value(
    args: dict[str, Any], parameter: str
) -> None:
    from vllmport.worker.engines.vllm_arguments import engine_config

    with pytest.raises(InvalidRequest) as caught:
        engine_config({"model": str(TINY), "seed": 1, **args}, in_process=True)
    assert caught.value.parameter.startswith(parameter)
    value = args[caught.value.parameter]
    assert caught.value.value in (value, repr(value))
    assert len(caught.value.message) > 10


# Memory.


def too_little_is_free() -> None:
    from vllm.config import CacheConfig
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.utils import request_memory

    gib = 1 << 30
    found = MemorySnapshot(
        free_memory=10 * gib, total_memory=80 * gib, device="cpu", auto_measure=False
    )
    request_memory(found, CacheConfig(gpu_memory_utilization=0.9))


def no_cache_is_left() -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    _check_enough_kv_cache_memory(0, lambda: 1, 1, lambda _: 1)


def the_cache_is_too_small() -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    _check_enough_kv_cache_memory(1 << 20, lambda: 1 << 30, 4096, lambda _: 512)


def a_gpu_is_full() -> None:
    import torch

    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    raise torch.OutOfMemoryError(text)


MEMORY = pytest.mark.parametrize(
    ("failure", "cls", "advice"),
    [
        (too_little_is_free, GpuMemoryUtilization, "lower gpu_memory_utilization"),
        (no_cache_is_left, KVCacheTooSmall, "lower max_model_len"),
        (the_cache_is_too_small, KVCacheTooSmall, "kv_cache_dtype='fp8'"),
        (a_gpu_is_full, CudaOutOfMemory, "use quantization"),
    ],
)


def raised(failure: Callable[[], None]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever vLLM raises
        failure()
    return caught.value


@MEMORY
def test_a_lack_of_memory_has_a_class_of_its_own_and_advice(
    failure: Callable[[], None], cls: type[StartupFailed], advice: str
) -> None:
    from vllmport.worker.engines.vllm_errors import as_load_error

    error = as_load_error(raised(failure))
    assert type(error) is cls
    assert advice in error.message
    assert error.phase == "load"
    assert not error.retryable


@MEMORY
def test_it_has_so_where_a_process_of_the_engine_met_it(
    failure: Callable[[], None], cls: type[StartupFailed], advice: str
) -> None:
    """What that process wrote down is all that the worker gets, beside a general error."""
    from vllmport.worker.engines.vllm_errors import as_load_error

    told = Cause(*json.loads(json.dumps(Cause.of(raised(failure)))))
    error = as_load_error(RuntimeError("Engine core initialization failed"), told)
    assert type(error) is cls
    assert advice in error.message


def test_the_same_words_from_elsewhere_are_no_lack_of_memory() -> None:
    from vllmport.worker.engines.vllm_errors import as_load_error

    error = as_load_error(raised(lambda: (_ for _ in ()).throw(ValueError("CUDA out of memory"))))
    assert type(error) is StartupFailed
