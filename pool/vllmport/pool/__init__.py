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
        CudaOutOfMemory,
        DeadlineExceeded,
        EngineDead,
        EngineError,
        GpuMemoryUtilization,
        InvalidRequest,
        KVCacheTooSmall,
        NotAllowed,
        Overloaded,
        PermissionDenied,
        PoisonRequest,
        PoolClosed,
        PoolLost,
        ProtocolError,
        QuotaExceeded,
        SessionLost,
        StartupFailed,
        Unavailable,
        VllmportError,
        WorkerLost,
    )
    from vllmport.bridge.timeouts import with_timeout
    from vllmport.pool.client.aio import AsyncLLM, AsyncPool
    from vllmport.pool.client.aio_stream import AsyncStream
    from vllmport.pool.client.aio_universal import AsyncItemStream, AsyncRef, AsyncSession
    from vllmport.pool.client.llm import LLM
    from vllmport.pool.client.params import (
        BeamSearchParams,
        LoRARequest,
        PoolingParams,
        SamplingParams,
        StructuredOutputsParams,
    )
    from vllmport.pool.client.pool import Pool
    from vllmport.pool.client.pooled import (
        BeamSearchOutput,
        BeamSearchSequence,
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        Metric,
        PoolingOutput,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from vllmport.pool.client.results import CompletionOutput, Delta, Logprob, RequestOutput
    from vllmport.pool.client.stream import Stream
    from vllmport.pool.client.universal import ItemStream, Ref, Session

__all__ = [
    "LLM",
    "AsyncItemStream",
    "AsyncLLM",
    "AsyncPool",
    "AsyncRef",
    "AsyncSession",
    "AsyncStream",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "Cancelled",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConnectFailed",
    "CudaOutOfMemory",
    "DeadlineExceeded",
    "Delta",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineDead",
    "EngineError",
    "GpuMemoryUtilization",
    "InvalidRequest",
    "ItemStream",
    "KVCacheTooSmall",
    "LoRARequest",
    "Logprob",
    "Metric",
    "NotAllowed",
    "Overloaded",
    "PermissionDenied",
    "PoisonRequest",
    "Pool",
    "PoolClosed",
    "PoolLost",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "ProtocolError",
    "QuotaExceeded",
    "Ref",
    "RequestOutput",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "Session",
    "SessionLost",
    "StartupFailed",
    "Stream",
    "StructuredOutputsParams",
    "Unavailable",
    "VllmportError",
    "WorkerLost",
    "with_timeout",
]

_HOMES = {
    "vllmport.bridge.timeouts": ("with_timeout",),
    "vllmport.pool.client.aio": ("AsyncLLM", "AsyncPool"),
    "vllmport.pool.client.aio_stream": ("AsyncStream",),
    "vllmport.pool.client.aio_universal": ("AsyncItemStream", "AsyncRef", "AsyncSession"),
    "vllmport.pool.client.llm": ("LLM",),
    "vllmport.pool.client.stream": ("Stream",),
    "vllmport.pool.client.params": (
        "BeamSearchParams",
        "LoRARequest",
        "PoolingParams",
        "SamplingParams",
        "StructuredOutputsParams",
    ),
    "vllmport.pool.client.pool": ("Pool",),
    "vllmport.pool.client.pooled": (
        "BeamSearchOutput",
        "BeamSearchSequence",
        "ClassificationOutput",
        "ClassificationRequestOutput",
        "EmbeddingOutput",
        "EmbeddingRequestOutput",
        "Metric",
        "PoolingOutput",
        "PoolingRequestOutput",
        "ScoringOutput",
        "ScoringRequestOutput",
    ),
    "vllmport.pool.client.universal": ("ItemStream", "Ref", "Session"),
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
