"""The wire between hosts, supervisor and workers: messages, codec, errors, state tables.

Nothing in this package does I/O, and nothing in it knows vLLM.
"""

from vllmport.bridge.codec import Array, Packed, Ref, Symbol, pack, unpack
from vllmport.bridge.errors import (
    Cancelled,
    ConnectFailed,
    DeadlineExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    NotAllowed,
    Overloaded,
    PermissionDenied,
    PoolClosed,
    PoolLost,
    ProtocolError,
    QuotaExceeded,
    SessionLost,
    StartupFailed,
    VllmportError,
    WorkerLost,
)
from vllmport.bridge.messages import Message, decode, decode_header, encode

__all__ = [
    "Array",
    "Cancelled",
    "ConnectFailed",
    "DeadlineExceeded",
    "EngineDead",
    "EngineError",
    "InvalidRequest",
    "Message",
    "NotAllowed",
    "Overloaded",
    "Packed",
    "PermissionDenied",
    "PoolClosed",
    "PoolLost",
    "ProtocolError",
    "QuotaExceeded",
    "Ref",
    "SessionLost",
    "StartupFailed",
    "Symbol",
    "VllmportError",
    "WorkerLost",
    "decode",
    "decode_header",
    "encode",
    "pack",
    "unpack",
]
