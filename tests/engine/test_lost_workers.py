"""Real vLLM whose worker or engine is killed: what is left, and what becomes of its calls."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoints import UNBOUND
from processes import SHARED_MEMORY, all_gone, at_most, entries, eventually, shared_memory_of
from vllmport.pool import LLM, Delta, EngineDead, Pool, SamplingParams, WorkerLost
from vllmport.pool.client.stream import Stream
from vllmport.pool.processes import WORKER_TAG

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

PROMPT = "1 2 3 4 5"
GREEDY = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
SEEDED = SamplingParams(temperature=1, seed=7, max_tokens=100, ignore_eos=True)
SEVERAL = SamplingParams(n=2, temperature=1, seed=7, max_tokens=100, logprobs=1, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
UNSEEDED = SamplingParams(temperature=2, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def pool(_module_leaves_nothing: None) -> Iterator[Pool]:
    """Of this module alone: what is in it dies."""
    with Pool(policy={"standby": False}) as pool:
        yield pool


@pytest.fixture(scope="module")
def off(pool: Pool) -> LLM:
    return pool.llm("tiny", name="off", env=UNBOUND)


@pytest.fixture(scope="module")
def on(pool: Pool) -> LLM:
    return pool.llm("tiny", name="on", v1_multiprocessing="on", env=UNBOUND)


def state_of(pool: Pool, llm: LLM) -> dict[str, Any]:
    return next(dict(w) for w in pool.status()["workers"] if w["model"] == llm.name)


def worker_of(pool: Pool, llm: LLM) -> psutil.Process:
    return psutil.Process(state_of(pool, llm)["pid"])


def answers(llm: LLM) -> bool:
    result = llm.generate("The capital of France is", {"temperature": 0, "max_tokens": 4})
    return result[0].outputs[0].text == " Paris."


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
    plain = off.stream(PROMPT, LONG)
    parts = [part_of(stream, 10) for stream in streams]
    part_of(random, 10)
    part_of(plain, 10)
    start = time.monotonic()
    worker.kill()
    with pytest.raises(WorkerLost) as caught:
        list(plain)
    assert time.monotonic() - start < 2
    assert (caught.value.exit, caught.value.attempt) == ("was killed by SIGKILL", 1)
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
    assert answers(off)
    again = state_of(pool, off)
    assert (again["unfinished"], again["restarts"]) == (0, 1)
    assert again["last_exit"] == "was killed by SIGKILL"


def test_a_killed_engine_core_fails_its_calls_or_has_them_resumed(pool: Pool, on: LLM) -> None:
    before = worker_of(pool, on)
    below = before.children(recursive=True)
    core = next(process for process in below if "EngineCor" in process.name())
    undisturbed = joined(list(on.stream(PROMPT, GREEDY)))
    stream = on.stream(PROMPT, GREEDY, retry="resume")
    plain = on.stream(PROMPT, LONG)
    deltas = part_of(stream, 10)
    part_of(plain, 10)
    core.kill()
    with pytest.raises((EngineDead, WorkerLost)) as caught:
        list(plain)
    assert caught.value.retryable
    deltas.extend(stream)
    assert joined(deltas) == undisturbed
    assert stream.result is not None
    assert stream.result.attempts >= 2
    assert worker_of(pool, on).pid != before.pid


def test_a_killed_worker_takes_its_engine_along_with_its_memory_and_sockets_and_comes_back(
    pool: Pool, on: LLM
) -> None:
    before = state_of(pool, on)
    worker = worker_of(pool, on)
    environ = worker.environ()
    folder = Path(environ["TMPDIR"])
    everybody = [worker, *worker.children(recursive=True)]
    assert {process.name() for process in everybody} > {"VLLM::EngineCore", "VLLM::Worker"}
    segments = shared_memory_of(everybody, environ[WORKER_TAG])
    assert {name.partition("-")[0][:4] for name in segments} >= {"psm_", "sem."}
    assert any(path.is_socket() for path in folder.iterdir())
    stream = on.stream(PROMPT, LONG)
    next(stream)
    start = time.monotonic()
    worker.kill()
    with pytest.raises(WorkerLost) as caught:
        list(stream)
    assert time.monotonic() - start < 2
    assert caught.value.retryable
    assert caught.value.exit == "was killed by SIGKILL"
    with at_most(2):
        eventually(lambda: all_gone(everybody))
        eventually(lambda: not entries(SHARED_MEMORY) & segments and not folder.exists())
    assert answers(on)
    again = state_of(pool, on)
    assert again["restarts"] == before["restarts"] + 1
    assert again["last_exit"] == "was killed by SIGKILL"
