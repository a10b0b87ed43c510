"""What every contender of the inference section is asked to do, and with what."""

import itertools
import time
from typing import Any, Final

from bench.workload import ENGINE_ARGS

EMBED_ARGS: Final[dict[str, Any]] = {**ENGINE_ARGS, "runner": "pooling", "convert": "embed"}
TEXTS: Final = [f"{number} {number + 1} {number + 2}" for number in range(1000)]
BACKGROUND: Final = 32
"""Streams that run while the time to the first token of another is taken."""

_numbers = itertools.count(1)


def prompts(count: int) -> list[str]:
    """Return so many different prompts of the same length."""
    return [f"{number} {number + 1} {number + 2} {number + 3}" for number in range(count)]


def fresh_prompts(count: int) -> list[str]:
    """Return prompts that no engine has cached."""
    return [f"{next(_numbers)} one two three" for _ in range(count)]


def timed(work: Any) -> tuple[float, Any]:
    """Return how many seconds some work took, and what came of it."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found
