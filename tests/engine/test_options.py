"""Engine options, each by what it does on real vLLM; several to an engine where they allow it."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoints import TINY, UNBOUND, copied, quantized
from processes import eventually
from vllmport.pool import (
    LLM,
    DeadlineExceeded,
    InvalidRequest,
    KVCacheTooSmall,
    Pool,
    SamplingParams,
    StartupFailed,
)
from vllmport.pool.client.params import LoRARequest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

FRANCE = "The capital of France is"
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SECRET = "hf_not-to-be-seen-anywhere"


def text_of(llm: LLM, prompt: Any = FRANCE) -> str:
    return llm.generate(prompt, GREEDY)[0].outputs[0].text


def worker_of(pool: Pool, llm: LLM) -> dict[str, Any]:
    return next(dict(w) for w in pool.status()["workers"] if w["model"] == llm.name)


def log_of(pool: Pool, llm: LLM) -> str:
    folder = Path(pool.status()["supervisor"]["log_dir"])
    return "".join(path.read_text() for path in folder.glob(f"*{llm.name}*"))


@pytest.fixture(scope="module")
def small(pool: Pool) -> Iterator[LLM]:
    """The guide's basic, memory, latency and removed options at one time."""
    old: dict[str, Any] = {"swap_space": 4, "lora_extra_vocab_size": 256}
    with pytest.warns(FutureWarning, match="vLLM has removed") as told:
        llm = pool.llm(
            "tiny",
            name="small",
            preset="latency",
            env={
                **UNBOUND,
                "HF_TOKEN": SECRET,
                "VLLM_LOGGING_LEVEL": "ERROR",
                "CUDA_VISIBLE_DEVICES": "",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            },
            v1_multiprocessing="off",
            dtype="float32",
            max_model_len=512,
            max_num_batched_tokens=64,
            kv_cache_memory_bytes=32 << 20,
            gpu_memory_utilization=0.9,
            cpu_offload_gb=0,
            trust_remote_code=False,
            tensor_parallel_size=1,
            distributed_executor_backend="mp",
            hf_token=SECRET,
            **old,
        )
    notes = [str(warning.message) for warning in told]
    assert any("swap_space" in note and "kv_offloading_size" in note for note in notes)
    assert any("lora_extra_vocab_size" in note for note in notes)
    with llm:
        yield llm


def test_the_engine_says_what_the_options_became(small: LLM) -> None:
    config = small.engine_config()
    expected = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 64,
        "kv_cache_memory_bytes": 32 << 20,
        "gpu_memory_utilization": 0.9,
        "cpu_offload_gb": 0,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "enforce_eager": True,
    }
    assert {name: config[name] for name in expected} == expected


def test_max_model_len_refuses_one_token_more(small: LLM) -> None:
    assert small.generate([[5] * 511], SamplingParams(max_tokens=1))
    with pytest.raises(InvalidRequest, match="511"):
        small.generate([[5] * 512], SamplingParams(max_tokens=1))


def test_max_num_seqs_of_one_never_runs_two(small: LLM, pool: Pool, off: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)

    def steps(llm: LLM) -> int:
        before = int(worker_of(pool, llm)["steps"])
        llm.generate([f"{index} {index + 1}" for index in range(3)], params)
        return int(worker_of(pool, llm)["steps"]) - before

    assert steps(small) >= 300, "each token has a step of its own"
    assert steps(off) < 200, "where more may run, a step makes a token of each"


def test_max_num_batched_tokens_cuts_a_prompt_into_steps(small: LLM, pool: Pool, off: LLM) -> None:
    def steps(llm: LLM) -> int:
        before = int(worker_of(pool, llm)["steps"])
        llm.generate([list(range(3, 403))], SamplingParams(max_tokens=1))
        return int(worker_of(pool, llm)["steps"]) - before

    assert steps(small) >= 400 // 64 + 1
    assert steps(off) < 4


def test_dtype_decides_how_exact_the_model_computes(small: LLM, off: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1)

    def logprob(llm: LLM) -> float:
        output = llm.generate(FRANCE, params)[0].outputs[0]
        assert output.logprobs is not None
        assert output.logprobs[0] is not None
        return output.logprobs[0][output.token_ids[0]].logprob

    exact, rounded = logprob(small), logprob(off)
    assert exact != rounded
    assert exact == pytest.approx(rounded, abs=0.05)


def test_kv_cache_memory_bytes_is_what_the_cache_takes(small: LLM, off: LLM) -> None:
    def taken(llm: LLM, size: int) -> int:
        config = llm.engine_config()
        each = 2 * 2 * 2 * 32 * size  # keys and values, layers, heads, their size
        return int(config["num_gpu_blocks"] * config["block_size"] * each)

    assert taken(small, 4) == pytest.approx(32 << 20, rel=0.02)
    assert taken(off, 2) == pytest.approx(512 << 20, rel=0.02), "what the CPU gets by itself"


def test_priorities_decide_who_runs_next(small: LLM, pool: Pool) -> None:
    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    finished: list[str] = []

    def call(name: str, priority: int) -> None:
        small.generate("1 2 3", params, priority=priority)
        finished.append(name)

    def queued() -> int:
        return sum(model["queued"] for model in pool.status()["models"])

    threads = []
    pid = worker_of(pool, small)["pid"]
    os.kill(pid, signal.SIGSTOP)  # else a fast engine is done before all of them are there
    try:
        # Two fill the engine, which runs one at a time; the others wait for their turn.
        filling = [small.stream("1 2 3", params) for _ in range(2)]
        for name, priority in (("late", 5), ("early", -5)):
            threads.append(threading.Thread(target=call, args=(name, priority)))
            threads[-1].start()
            eventually(lambda: queued() == len(threads))
    finally:
        os.kill(pid, signal.SIGCONT)
    for stream in filling:
        list(stream)
    for thread in threads:
        thread.join()
    assert finished == ["early", "late"]


def test_variables_of_a_model_reach_its_workers_and_are_shown_to_nobody(
    small: LLM, pool: Pool
) -> None:
    worker = worker_of(pool, small)
    variables = psutil.Process(worker["pid"]).environ()
    assert (variables["HF_TOKEN"], variables["CUDA_VISIBLE_DEVICES"]) == (SECRET, "")
    log = log_of(pool, small)
    assert " INFO " not in log.replace("INFO vllmport", "")
    status = pool.status()
    model = next(model for model in status["models"] if model["name"] == "small")
    assert "HF_TOKEN" in model["env"]
    supervisor = Path(status["supervisor"]["log_dir"], "supervisor.log").read_text()
    for text in (log, supervisor, str(status), str(small.engine_config()), repr(small)):
        assert SECRET not in text


def test_what_was_overridden_in_the_environment_is_said(small: LLM) -> None:
    mode, method = small.engine_config()["warnings"]
    assert "v1_multiprocessing=off overrides VLLM_ENABLE_V1_MULTIPROCESSING=1" in mode
    assert "VLLM_WORKER_MULTIPROC_METHOD=fork of the environment holds" in method


def test_vllms_own_processes_are_spawned_unless_the_user_says_otherwise(off: LLM) -> None:
    assert off.engine_config()["warnings"] == []


def test_streams_are_limited_in_their_first_token_and_between_tokens(small: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    with small.stream("1 2 3", long) as first:
        next(first)
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="first_token") as caught:
            list(small.stream("4 5 6", long, first_token_timeout=0.02))
        assert time.monotonic() - begun < 1.0
        assert (caught.value.tokens, caught.value.details["limit"]) == (0, "first_token")
    with pytest.raises(DeadlineExceeded, match="between_tokens") as caught:
        list(small.stream("4 5 6", long, token_timeout=0.0002))  # a step takes longer
    assert caught.value.details["limit"] == "between_tokens"
    assert caught.value.tokens >= 1
    assert "".join(d.text for d in small.stream(FRANCE, GREEDY, token_timeout=20)) == " Paris."
    assert text_of(small) == " Paris."


# Other engines.


def test_a_cache_of_fp8_holds_more_and_throughput_is_a_preset(pool: Pool, small: LLM) -> None:
    with pool.llm(
        "tiny",
        name="fp8",
        env=UNBOUND,
        preset="throughput",
        kv_cache_dtype="fp8",
        dtype="bfloat16",
        kv_cache_memory_bytes=32 << 20,
    ) as llm:
        config = llm.engine_config()
        assert (config["max_num_seqs"], config["max_num_batched_tokens"]) == (256, 8192)
        assert config["gpu_memory_utilization"] == 0.95
        assert config["kv_cache_dtype"] == "fp8"
        bytes_for_tokens = small.engine_config()
        tokens = config["num_gpu_blocks"] * config["block_size"]
        fewer = bytes_for_tokens["num_gpu_blocks"] * bytes_for_tokens["block_size"]
        assert tokens == pytest.approx(4 * fewer, rel=0.02), "one byte a number instead of four"
        assert text_of(llm) == " Paris."


@pytest.mark.parametrize(("method", "dtype"), [("awq", "auto"), ("gptq", "float16")])
def test_a_quantized_checkpoint_runs(
    pool: Pool, off: LLM, tmp_path: Path, method: str, dtype: Any
) -> None:
    folder = str(quantized(tmp_path / method, method))
    options: dict[str, Any] = {"env": UNBOUND, "v1_multiprocessing": "off", "enforce_eager": True}
    options |= {"dtype": dtype, "kv_cache_memory_bytes": 32 << 20}
    with pool.llm(folder, name=method, quantization=method, **options) as llm:
        config = llm.engine_config()
        assert config["quantization"].endswith(method)
        assert config["dtype"] == ("bfloat16" if dtype == "auto" else dtype)
        assert text_of(llm) == " Paris."
        params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
        exact, rounded = (
            one.generate(FRANCE, params)[0].outputs[0].cumulative_logprob for one in (off, llm)
        )
        assert exact != rounded


CONFIGURATION = """
import os
from pathlib import Path
from transformers import LlamaConfig

class TinyConfig(LlamaConfig):
    model_type = "tiny-of-its-own"

Path(os.environ["MARK"]).touch()
"""


def test_code_that_comes_with_a_model_runs_only_if_trusted(pool: Pool, tmp_path: Path) -> None:
    folder = copied(
        tmp_path / "custom",
        model_type="tiny-of-its-own",
        auto_map={"AutoConfig": "configuration_tiny.TinyConfig"},
    )
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    mark = tmp_path / "it-ran"
    env = {**UNBOUND, "MARK": str(mark), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    with pytest.raises((InvalidRequest, StartupFailed), match="trust_remote_code"):
        pool.llm(str(folder), name="untrusted", env=env)
    assert not mark.exists()
    with pool.llm(
        str(folder),
        name="trusted",
        env=env,
        v1_multiprocessing="off",
        enforce_eager=True,
        trust_remote_code=True,
        preset="memory",
        gpu_memory_utilization=1.0,
    ) as llm:
        assert mark.exists()
        assert text_of(llm) == " Paris."
        config = llm.engine_config()
        assert (config["max_model_len"], config["gpu_memory_utilization"]) == (2048, 1.0)


def test_gpu_memory_utilization_is_no_share_of_main_memory(off: LLM) -> None:
    """VLLM's CPU build would want nine tenths of the machine to be free, and take them."""
    config = off.engine_config()
    assert config["gpu_memory_utilization"] > 0.8
    assert config["kv_cache_memory_bytes"] == 512 << 20


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [  # what vLLM refuses sooner is tested with its drivers
        ({"pipeline_parallel_size": 2}, StartupFailed, None),
        ({"kv_cache_memory_bytes": 1 << 16}, KVCacheTooSmall, "lower max_model_len"),
        (
            {"kv_cache_memory_bytes": 1 << 16, "v1_multiprocessing": "on"},
            KVCacheTooSmall,
            "lower max_model_len",
        ),
    ],
    ids=str,
)
def test_what_this_machine_cannot_do_is_a_typed_error_and_the_pool_goes_on(
    pool: Pool, off: LLM, options: dict[str, Any], error: Any, text: str | None
) -> None:
    with pytest.raises(error, match=text):
        pool.llm("tiny", name=f"impossible {options}", env=UNBOUND, **options)
    assert text_of(off) == " Paris."


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quantization": "squeezellm"}, "compressed-tensors"),
        ({"quantization": "bitsandbytes"}, "fp8_per_tensor"),
        ({"load_format": "bitsandbytes"}, "fp8_per_tensor"),
        ({"task": "translate"}, "runner and convert"),
        ({"max_lora_rank": 24}, "one of 1, 8, 16, 32, 64"),
        ({"distributed_executor_backend": "rya"}, "one of ray, mp, uni"),
        ({"max_modle_len": 5}, "did you mean 'max_model_len'"),
    ],
    ids=str,
)
def test_what_vllm_never_takes_is_refused_before_a_worker_starts(
    pool: Pool, options: dict[str, Any], text: str
) -> None:
    before = pool.status()["workers"]
    with pytest.raises(InvalidRequest, match=re.escape(text)):
        pool.llm("tiny", name="refused", **options)
    assert [worker["id"] for worker in pool.status()["workers"]] == [w["id"] for w in before]


def test_an_adapter_of_a_higher_rank_is_refused(pool: Pool) -> None:
    adapter = LoRARequest("swapped", 1, str(TINY / "lora-swapped"))
    with pool.llm(
        "tiny", name="rank", env=UNBOUND, enable_lora=True, max_lora_rank=1, max_loras=1
    ) as llm:
        assert llm.engine_config()["max_lora_rank"] == 1
        with pytest.raises(InvalidRequest, match="rank"):
            llm.generate(FRANCE, GREEDY, lora_request=adapter)
        assert text_of(llm) == " Paris."
