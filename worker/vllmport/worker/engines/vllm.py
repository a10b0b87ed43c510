"""Loads vLLM and builds the driver that the specification asks for.

The one place that decides when vLLM is imported; this module itself imports nothing of it.
"""

import gc
import importlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllmport.worker.causes import cause_file
from vllmport.worker.engine import Engine, Port
from vllmport.worker.plugin import name_shared_memory
from vllmport.worker.priority import WORKING, give_way

ENGINE_READY_TIMEOUT = 7 * 24 * 3600
"""Seconds; vLLM's own limit is a total of 600."""


def load_vllm(spec: Mapping[str, Any], port: Port) -> Engine:
    """Import vLLM, check the arguments and build the engine; call it from the main thread.

    Args:
        spec: `model`, a path or a name; `engine_args`, vLLM's; `mode`, "on" or "off"; `loras`,
            the folders of adapters by name; `abort_grace`, the pool's, in seconds.
        port: Is told the stages.

    Raises:
        InvalidRequest: The arguments can never work; nothing was loaded.
        StartupFailed: The engine did not start.
    """
    give_way(WORKING)
    mode, args = spec["mode"], {**spec["engine_args"], "model": spec["model"]}
    warnings = [*spec.get("warnings", ()), *_set_environment(mode)]
    port.progress("importing", "vllm")
    begun = time.monotonic()
    import_vllm()
    from vllmport.worker.engines.vllm_arguments import engine_config
    from vllmport.worker.engines.vllm_errors import as_load_error

    driver = _driver(mode, spec["abort_grace"])
    port.progress("checking", f"imported in {time.monotonic() - begun:.1f} s")
    config, engine_args = engine_config(args, in_process=mode == "off")
    port.progress("loading", f"{args['model']} as {config.model_config.dtype}")
    with cause_file() as file:
        try:
            engine = driver(config, engine_args, port, spec.get("loras", {}))
            engine.info["warnings"] = warnings
            port.progress("warming up")
            engine.warm_up()
        except Exception as exc:  # any class at all: vLLM, torch, the operating system
            raise as_load_error(exc, file.read()) from exc
    return engine  # type: ignore[no-any-return]  # one of two classes, chosen above


def import_vllm() -> None:
    """Import all that an engine needs, whatever its mode; it takes seconds, but only once."""
    # Read as it is imported. Whoever waits for the engine's process waits as long as that loads:
    # it is the pool that tells a load that stalls from one that takes long.
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(ENGINE_READY_TIMEOUT))
    name_shared_memory()
    with _without_collections():
        for name in ("arguments", "async", "errors", "stepped"):
            importlib.import_module(f"vllmport.worker.engines.vllm_{name}")


def _driver(mode: str, abort_grace: float) -> Any:
    if mode == "off":
        from vllmport.worker.engines.vllm_stepped import SteppedVllm

        return SteppedVllm
    from vllmport.worker.engines.vllm_async import AsyncVllm

    return partial(AsyncVllm, abort_grace=abort_grace)


def _set_environment(mode: str) -> list[str]:
    """Say what vLLM reads from the environment only; what the user set there stays.

    Returns:
        What the one who set it should know.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if mode == "on" else "0"
    method = os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if method == "spawn":
        return []
    return [f"VLLM_WORKER_MULTIPROC_METHOD={method} of the environment holds; spawn is safer"]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Import without garbage collections, and leave what was imported out of all later ones.

    A million objects that live as long as the process: walking them again and again takes a
    quarter of the import, and as long once more while the engine is built.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
