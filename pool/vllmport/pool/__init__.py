"""vLLM kept out of your process: pools of supervised vLLM workers.

    with Pool() as pool:
        llm = pool.llm()
        print(llm.generate("The capital of France is")[0].outputs[0].text)

Names are imported when they are first used: the supervisor and the spawner live in this package
too, and load none of the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllmport.bridge.errors import (
        Cancelled,
        ConnectFailed,
        DeadlineExceeded,
        EngineDead,
        EngineError,
        InvalidRequest,
        Overloaded,
        PoisonRequest,
        PoolClosed,
        PoolLost,
        ProtocolError,
        StartupFailed,
        Unavailable,
        VllmportError,
        WorkerLost,
    )
    from vllmport.pool.client.aio import AsyncLLM, AsyncPool, AsyncStream
    from vllmport.pool.client.llm import LLM, Stream
    from vllmport.pool.client.params import SamplingParams
    from vllmport.pool.client.pool import Pool
    from vllmport.pool.client.results import CompletionOutput, Delta, Logprob, RequestOutput

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncPool",
    "AsyncStream",
    "Cancelled",
    "CompletionOutput",
    "ConnectFailed",
    "DeadlineExceeded",
    "Delta",
    "EngineDead",
    "EngineError",
    "InvalidRequest",
    "Logprob",
    "Overloaded",
    "PoisonRequest",
    "Pool",
    "PoolClosed",
    "PoolLost",
    "ProtocolError",
    "RequestOutput",
    "SamplingParams",
    "StartupFailed",
    "Stream",
    "Unavailable",
    "VllmportError",
    "WorkerLost",
]

_HOMES = {
    "vllmport.pool.client.aio": ("AsyncLLM", "AsyncPool", "AsyncStream"),
    "vllmport.pool.client.llm": ("LLM", "Stream"),
    "vllmport.pool.client.params": ("SamplingParams",),
    "vllmport.pool.client.pool": ("Pool",),
    "vllmport.pool.client.results": ("CompletionOutput", "Delta", "Logprob", "RequestOutput"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF.get(name, "vllmport.bridge.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
