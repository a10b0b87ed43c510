"""What is measured: the same prompts, parameters and engine arguments for all contenders."""

from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = str(ROOT / "pool" / "vllmport" / "pool" / "models" / "tiny")

ENGINE_ARGS: Final[dict[str, Any]] = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "disable_log_stats": True,
}
"""vLLM's, spelled out where its own defaults differ between the library and the server."""

ENGINE_ENV: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_COMPILE_DISABLE": "1",  # what `enforce_eager` means in a worker of the pool
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",  # connections stay open between the rounds
}

ROUNDS: Final = 5

ONE_PROMPT: Final = "The capital of France is"
ONE_PARAMS: Final[dict[str, Any]] = {"temperature": 0.0, "max_tokens": 1}
ONE_CALLS: Final = 100
"""One-token calls in each round."""

STREAMS: Final = 64
TOKENS: Final = 64
BATCH_TOKENS: Final = STREAMS * TOKENS
BATCH_PROMPTS: Final = [f"{i} {i + 1} {i + 2} {i + 3}" for i in range(STREAMS)]
BATCH_PARAMS: Final[dict[str, Any]] = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
BATCH_PASSES: Final = 3
"""Batches in each round, where one takes a fraction of a second; the server makes one."""

ECHO_VALUE: Final[dict[str, Any]] = {"id": 7, "text": "x" * 138}
"""150 bytes of msgpack."""
ECHO_CALLS: Final = 1000
IN_FLIGHT: Final = 64
IN_FLIGHT_CALLS: Final = 100
"""Calls of each of the `IN_FLIGHT` callers in each round."""
