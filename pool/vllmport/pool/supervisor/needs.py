"""What a worker of a model takes: GPUs, a share of their memory, RAM.

Reads the sizes of the files in the model's folder; decides nothing.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from vllmport.pool.plan import ECHO_MODEL, ModelSpec
from vllmport.pool.supervisor.admission import Needs
from vllmport.pool.supervisor.devices import GIB

DEFAULT_FRACTION: Final = 0.92
"""vLLM's own `gpu_memory_utilization`."""

PROCESS_RAM: Final = GIB
"""Bytes that a vLLM worker takes besides its weights."""

WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".gguf")


def needs_of(spec: ModelSpec, environ: Mapping[str, str], *, has_gpus: bool) -> Needs:
    """Estimate what a worker of this model takes.

    Args:
        spec: The model.
        environ: The supervisor's environment; the model's own comes on top.
        has_gpus: Whether the machine has any. On a GPU, the files of the weights pass through RAM
            that can be had back at once, so they are not counted.
    """
    if spec.engine == ECHO_MODEL:
        return Needs()
    args = spec.engine_args
    shown = {**environ, **spec.env}.get("CUDA_VISIBLE_DEVICES")
    if not has_gpus or shown == "":
        return Needs(ram=_ram(spec))
    if args.get("distributed_executor_backend") == "ray" or args.get("device_ids"):
        return Needs(ram=PROCESS_RAM)  # placed by somebody else
    return Needs(
        devices=math.prod(
            _count(args.get(name))
            for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        ),
        fraction=_fraction(args.get("gpu_memory_utilization")),
        visible=None if shown is None else tuple(part.strip() for part in shown.split(",")),
        ram=PROCESS_RAM,
    )


def _ram(spec: ModelSpec) -> int:
    """Weights, cache and the process itself; 0 where the weights are not on this disk."""
    weights = weights_size(spec.model)
    if not weights:
        return 0
    cache = spec.engine_args.get("kv_cache_memory_bytes")
    return weights + PROCESS_RAM + (cache if isinstance(cache, int) else 0)


def weights_size(folder: str) -> int:
    """Return the bytes of a model's weights; 0 if it is not a folder that can be read."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(WEIGHTS))
    except OSError:
        return 0


# A value of a wrong kind is the worker's to refuse, with all that vLLM knows about it.


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _fraction(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else DEFAULT_FRACTION
