"""Time-out profiles, and budgets on the wire."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.limits import MAX_TIMEOUT_MS
from vllmport.bridge.timeouts import (
    LIBRARY_PROFILE,
    PROFILES,
    Timeouts,
    from_wire,
    resolve_timeout,
    to_wire,
    with_timeout,
)


@pytest.mark.parametrize(
    ("profile", "seconds"),
    [("default", 120), ("streaming", 1800), ("ml_inference", 600), ("batch_job", 3600)],
)
def test_a_profile_stands_for_its_seconds(profile: str, seconds: float) -> None:
    assert resolve_timeout(profile=profile) == seconds


def test_an_exact_timeout_wins_over_a_profile() -> None:
    assert resolve_timeout(2.5, "batch_job") == 2.5
    assert resolve_timeout(3, "no such profile") == 3.0


def test_with_neither_the_profile_of_the_library_holds() -> None:
    assert resolve_timeout() == PROFILES[LIBRARY_PROFILE] == 600


def test_infinity_means_no_limit() -> None:
    assert resolve_timeout(math.inf) == math.inf
    assert to_wire(math.inf) is None
    assert from_wire(None, 5.0) == math.inf


def test_own_profiles_may_be_given() -> None:
    assert resolve_timeout(profile="mine", profiles={"mine": 7.0}) == 7.0


@pytest.mark.parametrize("timeout", [0, -1, -0.0, math.nan, True, "5", [5]])
def test_a_timeout_that_is_no_positive_number_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidRequest, match="positive number of seconds") as caught:
        resolve_timeout(timeout)
    assert caught.value.parameter == "timeout"


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="known: batch_job, default") as caught:
        resolve_timeout(profile="patient")
    assert (caught.value.parameter, caught.value.value) == ("timeout_profile", "patient")


@given(st.floats(0, 1e308))
def test_every_finite_timeout_has_a_budget_within_the_limit(seconds: float) -> None:
    budget = to_wire(seconds)
    assert budget is not None
    assert 0 <= budget <= MAX_TIMEOUT_MS


def test_what_is_left_is_rounded_up_and_never_negative() -> None:
    assert [to_wire(s) for s in (0.0001, 0.001, 1.0005, 0.0, -3.0)] == [1, 1, 1001, 0, 0]


@given(st.integers(0, MAX_TIMEOUT_MS), st.floats(0, 1e7))
def test_a_budget_becomes_a_deadline_on_this_clock(budget: int, now: float) -> None:
    assert from_wire(budget, now) - now == pytest.approx(budget / 1000, abs=1e-3)


def test_a_pools_own_profiles_add_to_the_built_in_ones() -> None:
    timeouts = Timeouts({**PROFILES, "nightly": 7200.0}, "nightly")
    assert timeouts.seconds() == 7200
    assert timeouts.seconds(profile="batch_job") == 3600
    assert timeouts.seconds(5, "nightly") == 5
    assert Timeouts(**timeouts.to_wire()) == timeouts


def test_pauses_of_a_stream_are_those_of_the_call_else_of_the_pool() -> None:
    timeouts = Timeouts(first_token=9.0)
    assert timeouts.pauses() == (9.0, math.inf)
    assert timeouts.pauses(2, 0.5) == (2.0, 0.5)
    with pytest.raises(InvalidRequest, match="between_tokens must be a positive"):
        timeouts.pauses(None, 0)


def test_options_get_a_timeout_among_them() -> None:
    params = {"sampling_params": 1}
    assert with_timeout(params, timeout_profile="ml_inference") == {
        "sampling_params": 1,
        "timeout_profile": "ml_inference",
    }
    assert with_timeout(timeout=300) == {"timeout": 300.0}
    for wrong in (0, -100, "soon", True):
        with pytest.raises(InvalidRequest):
            with_timeout(timeout=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="needs"):
        with_timeout(params)


def test_an_empty_name_is_no_profile() -> None:
    with pytest.raises(InvalidRequest, match="unknown timeout profile ''; known: batch_job"):
        Timeouts().seconds(profile="")


@pytest.mark.parametrize("profile", [["x"], {"a": 1}, 3], ids=repr)
def test_a_profile_is_named_by_text(profile: Any) -> None:
    with pytest.raises(InvalidRequest, match="unknown timeout profile") as caught:
        resolve_timeout(profile=profile)
    assert caught.value.parameter == "timeout_profile"
