"""Streams of real vLLM whose worker or engine is killed: resumed token by token, or lost."""

from typing import Any

import psutil
import pytest

from vllmport.pool import LLM, Delta, Pool, SamplingParams, WorkerLost
from vllmport.pool.client.stream import Stream

pytestmark = pytest.mark.vllm

PROMPT = "1 2 3 4 5"
GREEDY = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
SEEDED = SamplingParams(temperature=1, seed=7, max_tokens=100, ignore_eos=True)
SEVERAL = SamplingParams(n=2, temperature=1, seed=7, max_tokens=100, logprobs=1, ignore_eos=True)
UNSEEDED = SamplingParams(temperature=2, max_tokens=100, ignore_eos=True)


def worker_of(pool: Pool, llm: LLM) -> psutil.Process:
    return psutil.Process(
        next(worker["pid"] for worker in pool.status()["workers"] if worker["model"] == llm.name)
    )


def joined(deltas: list[Delta]) -> dict[int, tuple[str, list[int], list[Any], int]]:
    """Return text, tokens, log-probabilities and ends of each output."""
    found: dict[int, tuple[str, list[int], list[Any], int]] = {}
    for delta in deltas:
        text, tokens, logprobs, ends = found.get(delta.index, ("", [], [], 0))
        rows = [sorted(row or ()) for row in delta.logprobs or ()]
        tokens, logprobs = tokens + list(delta.token_ids), logprobs + rows
        found[delta.index] = (text + delta.text, tokens, logprobs, ends + delta.finished)
    return found


def part_of(stream: Stream, tokens: int) -> list[Delta]:
    """Read so many tokens, or some more."""
    deltas: list[Delta] = []
    while sum(len(delta.token_ids) for delta in deltas) < tokens:
        deltas.append(next(stream))
    return deltas


def test_streams_whose_worker_was_killed_are_the_same_as_undisturbed_ones_or_lost(
    pool: Pool, off: LLM
) -> None:
    worker = worker_of(pool, off)
    off.generate(PROMPT, UNSEEDED)  # a new engine begins with the same random numbers
    reproducible = [GREEDY, SEEDED, SEVERAL]
    undisturbed = [joined(list(off.stream(PROMPT, params))) for params in reproducible]
    streams = [off.stream(PROMPT, params, retry="resume") for params in reproducible]
    random = off.stream(PROMPT, UNSEEDED, retry="resume")
    parts = [part_of(stream, 10) for stream in streams]
    part_of(random, 10)
    worker.kill()
    for stream, deltas, expected in zip(streams, parts, undisturbed, strict=True):
        deltas.extend(stream)
        assert joined(deltas) == expected
        assert stream.result is not None
        assert stream.result.attempts == 2
        tokens = sum(len(tokens) for _, tokens, _, _ in expected.values())
        assert stream.result.usage["completion_tokens"] == tokens
    with pytest.raises(WorkerLost, match="run again, token") as caught:
        list(random)
    assert (caught.value.exit, caught.value.attempt) == ("was killed by SIGKILL", 2)
    status = next(w for w in pool.status()["workers"] if w["model"] == off.name)
    assert (status["unfinished"], status["restarts"]) == (0, 1)


def test_a_stream_whose_engine_core_was_killed_is_resumed(pool: Pool, on: LLM) -> None:
    below = worker_of(pool, on).children(recursive=True)
    core = next(process for process in below if "EngineCor" in process.name())
    undisturbed = joined(list(on.stream(PROMPT, GREEDY)))
    stream = on.stream(PROMPT, GREEDY, retry="resume")
    deltas = part_of(stream, 10)
    core.kill()
    deltas.extend(stream)
    assert joined(deltas) == undisturbed
    assert stream.result is not None
    assert stream.result.attempts >= 2
