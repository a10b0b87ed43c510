"""Engine arguments: a user's plain dict → vLLM's configuration.

Owns which names exist, what is wrong with a value, and the few defaults that differ from vLLM's.
Imports vLLM: only for workers that run it.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from vllm import envs
from vllm.config import CompilationConfig, VllmConfig
from vllm.config.compilation import CompilationMode
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.transformers_utils.utils import maybe_model_redirect
from vllm.usage.usage_lib import UsageContext

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import (
    NO_HUB,
    as_config_error,
    no_hub,
    refuse_missing,
    unknown,
)

USAGE = UsageContext.LLM_CLASS
"""vLLM chooses batch sizes by this; callers expect what `vllm.LLM` does."""

DEFAULTS: Mapping[str, Any] = {"disable_log_stats": True}
"""Statistics cost time in each step, and nobody reads this process's log for them."""

MODEST_KV_CACHE = 512 << 20
"""Bytes of KV cache on the CPU where the user chose none."""


def check_engine_args(args: Mapping[str, Any]) -> None:
    """Refuse what can be refused by name, before anything is loaded.

    Raises:
        InvalidRequest: An argument does not exist in this vLLM, or the model is missing.
    """
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name, value in args.items():
        if name not in known:
            raise unknown("engine argument", name, value, known)
    model = args.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest.of("model", model, "the engine argument 'model' is required")
    for name in ("model", "tokenizer", "hf_config_path", "generation_config"):
        if isinstance(args.get(name), str):
            refuse_missing(name, args[name])


def engine_config(
    args: Mapping[str, Any], *, in_process: bool
) -> tuple[VllmConfig, AsyncEngineArgs]:
    """Build the configuration that a dict of engine arguments stands for.

    Raises:
        InvalidRequest: vLLM refuses an argument; the fields are named.
        StartupFailed: Something else is wrong, such as a model that cannot be reached.
    """
    check_engine_args(args)
    if in_process and args.get("data_parallel_size", 1) != 1:
        raise InvalidRequest.of(
            "data_parallel_size",
            args["data_parallel_size"],
            "data_parallel_size needs v1_multiprocessing=on",
        )
    try:
        _reach_tokenizer(args)
        engine_args = AsyncEngineArgs(**{**DEFAULTS, **_with_objects(args)})
        config = engine_args.create_engine_config(USAGE)
    except Exception as exc:  # whatever vLLM and pydantic raise while they check
        raise as_config_error(exc, args) from exc
    if current_platform.is_cpu():
        _settle_cpu(config)
    return config, engine_args


def resolved(engine: Any, tasks: tuple[Any, ...]) -> dict[str, Any]:
    """Describe as plain data what the arguments of a loaded engine were resolved to.

    Args:
        engine: An LLMEngine or an AsyncLLM.
        tasks: What the loaded model can do.
    """
    config: VllmConfig = engine.vllm_config
    return {
        **_of_model(config, engine.get_tokenizer(), tasks),
        **_of_running(config),
        "disable_log_stats": not engine.log_stats,
    }


def _of_model(config: VllmConfig, tokenizer: Any, tasks: tuple[Any, ...]) -> dict[str, Any]:
    model = config.model_config
    pooling = model.runner_type == "pooling"
    return {
        "model": model.model,
        "tokenizer": model.tokenizer,
        "revision": model.revision,
        "trust_remote_code": bool(model.trust_remote_code),
        "architecture": model.architecture,
        "multimodal": bool(model.is_multimodal_model),
        "runner": model.runner_type,
        "convert": model.convert_type,
        "supported_tasks": sorted(map(str, tasks)),
        "pooling_task": model.get_pooling_task(tasks) if pooling else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if model.quantization is None else str(model.quantization),
        "seed": model.seed,
        "enforce_eager": bool(model.enforce_eager),
        "enable_sleep_mode": bool(model.enable_sleep_mode),
        "max_model_len": model.max_model_len,
        "max_logprobs": model.max_logprobs,
        "vocab_size": model.get_vocab_size(),
        "eos_token_id": getattr(tokenizer, "eos_token_id", None),
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
        "default_sampling_params": dict(model.get_diff_sampling_param()),
    }


def _of_running(config: VllmConfig) -> dict[str, Any]:
    cache, scheduler, parallel = (
        config.cache_config,
        config.scheduler_config,
        config.parallel_config,
    )
    lora, structured = config.lora_config, config.structured_outputs_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "scheduling_policy": str(scheduler.policy),
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "distributed_executor_backend": str(parallel.distributed_executor_backend),
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "kv_cache_dtype": str(cache.cache_dtype),
        "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "enable_prefix_caching": bool(cache.enable_prefix_caching),
        "cpu_offload_gb": config.offload_config.uva.cpu_offload_gb,
        "enable_lora": lora is not None,
        "max_loras": None if lora is None else lora.max_loras,
        "max_lora_rank": None if lora is None else lora.max_lora_rank,
        "structured_outputs_backend": structured.backend,
        "device": current_platform.device_type,
    }


def _reach_tokenizer(args: Mapping[str, Any]) -> None:
    """Ask the hub, once, for a tokenizer that is not the model's own.

    vLLM does so only as it builds the engine, and file by file: without a hub that takes minutes.
    """
    asked = args.get("tokenizer")
    if asked in (None, args["model"]) or args.get("skip_tokenizer_init"):
        return
    name = maybe_model_redirect(str(asked))
    if envs.VLLM_USE_MODELSCOPE or Path(name).exists():
        return
    revision = args.get("tokenizer_revision") or args.get("revision")
    try:
        snapshot_download(name, revision=revision, allow_patterns=["tokenizer_config.json"])
    except HFValidationError:  # no name on the hub: an address of another kind, for vLLM to judge
        return
    except NO_HUB as exc:
        raise no_hub(exc, "tokenizer", name) from exc


def _with_objects(args: Mapping[str, Any]) -> dict[str, Any]:
    """Build what `vllm.LLM` accepts as plain data and EngineArgs does not."""
    mode = args.get("compilation_config")
    if isinstance(mode, int):
        return {**args, "compilation_config": CompilationConfig(mode=CompilationMode(mode))}
    return dict(args)


def _settle_cpu(config: VllmConfig) -> None:
    """Ask for a modest KV cache, and mean `enforce_eager` all the way.

    On the CPU `gpu_memory_utilization` is a share of the machine's RAM, and vLLM refuses to start
    if that much is not free: 0.9, the value in every example, hardly ever is. A size in bytes
    switches that off. VLLM_CPU_KVCACHE_SPACE has already become one here.
    """
    cache = config.cache_config
    if cache.kv_cache_memory_bytes is None:
        cache.kv_cache_memory_bytes = max(MODEST_KV_CACHE, _one_long_request(config))
    if config.model_config.enforce_eager:
        _compile_nothing()


def _one_long_request(config: VllmConfig) -> int:
    """Estimate the bytes of KV cache for one request of full length, generously."""
    model, parallel = config.model_config, config.parallel_config
    per_token = (
        2
        * model.get_num_layers(parallel)
        * model.get_num_kv_heads(parallel)
        * model.get_head_size()
        * model.dtype.itemsize
    )
    tokens = model.max_model_len + 2 * int(config.cache_config.block_size or 128)
    return int(per_token * tokens)


def _compile_nothing() -> None:
    """Keep torch from compiling helpers of vLLM's sampler, which `enforce_eager` leaves compiled.

    On the CPU the first request with logprobs would stop the whole engine for 2 to 40 seconds.
    """
    import torch  # loaded long ago, but named only here

    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # for engine processes yet to be started
    if os.environ["TORCH_COMPILE_DISABLE"] == "1":
        torch.compiler.set_stance("force_eager")  # for this one
