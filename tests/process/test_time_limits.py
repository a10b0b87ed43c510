"""Time-outs as a pool is configured: its own profiles, and limits for the pauses of streams."""

import time
from collections.abc import Iterator

import pytest

from processes import at_most, endless, eventually, unfinished
from vllmport.pool import LLM, AsyncPool, DeadlineExceeded, InvalidRequest, Pool

TIMEOUTS = {
    "profiles": {"blink": 0.3},
    "library_profiles": {"vllm": "blink"},
    "between_tokens": 0.2,
}


@pytest.fixture(scope="module")
def hasty(_module_leaves_nothing: None) -> Iterator[Pool]:
    with Pool(timeouts=TIMEOUTS) as pool:
        yield pool


@pytest.fixture(scope="module")
def slow(hasty: Pool) -> Iterator[LLM]:
    """An engine that takes half a second for each token."""
    with hasty.llm("echo", step_delay=0.5) as llm:
        yield llm


def test_the_pools_own_profile_holds_where_a_call_names_none(slow: LLM) -> None:
    begun = time.monotonic()
    with at_most(0.5), pytest.raises(DeadlineExceeded):
        slow.generate("a", endless())
    assert time.monotonic() - begun >= 0.3
    with pytest.raises(DeadlineExceeded):
        slow.generate("a", endless(), timeout_profile="blink")
    assert slow.generate("a", {"max_tokens": 1}, timeout_profile="default")


def test_a_client_that_joins_is_told(hasty: Pool, slow: LLM) -> None:
    with Pool.connect(hasty.endpoint) as joined, joined.llm(name="echo") as llm:
        with pytest.raises(DeadlineExceeded):
            llm.generate("a", endless())
        with pytest.raises(InvalidRequest, match="batch_job, blink, default"):
            llm.generate("a", timeout_profile="nightly")
    assert slow.name == "echo"


def test_a_pause_between_tokens_ends_the_stream(hasty: Pool, slow: LLM) -> None:
    stream = slow.stream("abc", endless(), timeout=30, first_token_timeout=10)
    next(stream)
    with at_most(0.3), pytest.raises(DeadlineExceeded, match="after 1 tokens") as caught:
        next(stream)
    assert (caught.value.tokens, caught.value.details["limit"]) == (1, "between_tokens")
    eventually(lambda: unfinished(hasty) == 0)
    patient = slow.stream("ab", {"max_tokens": 2}, timeout=30, token_timeout=10)
    assert len(list(patient)) == 2


def test_a_reader_that_takes_its_time_is_not_blamed_on_the_engine(slow: LLM) -> None:
    stream = slow.stream("ab", {"max_tokens": 2}, timeout=30)
    next(stream)
    time.sleep(0.6)  # longer than the limit, and than the next token takes
    assert next(stream).text


async def test_a_late_first_token_ends_the_stream_of_a_coroutine(hasty: Pool, slow: LLM) -> None:
    assert slow.name == "echo"
    async with await AsyncPool.connect(hasty.endpoint) as joined, joined.llm(name="echo") as llm:
        with pytest.raises(DeadlineExceeded, match="no token came") as caught:
            async for _ in llm.stream("abc", endless(), timeout=30, first_token_timeout=0.1):
                pass
        assert caught.value.details["limit"] == "first_token"
