"""The exception tree and its codes."""

import pickle

import pytest

from vllmport.bridge import errors
from vllmport.bridge.errors import (
    ERRORS,
    ConnectFailed,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PoolLost,
    StartupFailed,
    VllmportError,
    WorkerLost,
    error_from_code,
    shown,
)


def test_every_class_has_a_code_of_its_own() -> None:
    classes = [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, VllmportError) and cls is not VllmportError
    ]
    assert {cls.code: cls for cls in classes} == ERRORS
    assert len(classes) == len(ERRORS)


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_a_code_builds_its_class(code: str) -> None:
    error = error_from_code(code, "text", phase="queue", worker="m/0", attempt=2)
    assert type(error) is ERRORS[code]
    assert (str(error), error.phase, error.worker, error.attempt) == ("text", "queue", "m/0", 2)


def test_an_unknown_code_of_a_newer_peer_gives_the_base_class() -> None:
    error = error_from_code("from_the_future", "text", retryable=True)
    assert type(error) is VllmportError
    assert error.retryable


def test_what_the_peer_says_about_retrying_wins() -> None:
    assert Overloaded("full").retryable
    assert not Overloaded("full", retryable=False).retryable
    assert Overloaded.retryable, "the class keeps its own"


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (DeadlineExceeded("x"), TimeoutError),
        (InvalidRequest("x"), ValueError),
        (ConnectFailed("x"), ConnectionError),
        (PoolLost("x"), ConnectionError),
    ],
    ids=lambda value: value.code if isinstance(value, VllmportError) else "",
)
def test_errors_are_caught_as_the_builtin_they_resemble(
    error: VllmportError, base: type[Exception]
) -> None:
    assert isinstance(error, base)


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_errors_survive_pickling(code: str) -> None:
    error = error_from_code(
        code, "text", details={"a": 1}, retryable=True, phase="load", worker="m/0", attempt=1
    )
    back = pickle.loads(pickle.dumps(error))  # noqa: S301  # made right here
    assert type(back) is type(error)
    assert vars(back) == vars(error)


def test_missing_details_have_harmless_defaults() -> None:
    assert Overloaded("x").retry_after == 1.0
    assert (DeadlineExceeded("x").tokens, DeadlineExceeded("x").partial) == (0, None)
    assert (InvalidRequest("x").parameter, InvalidRequest("x").value) == ("", None)
    assert (StartupFailed("x").interpreter, StartupFailed("x").path) == ("", "")
    assert StartupFailed("x").stderr == []
    assert WorkerLost("x").exit == ""


def test_errors_do_not_share_details() -> None:
    one, other = VllmportError("x"), VllmportError("x")
    one.details["a"] = 1
    assert other.details == {}


def test_a_failed_start_shows_what_the_worker_said_last() -> None:
    lines = [f"line {number}" for number in range(20)]
    text = str(StartupFailed("it failed", details={"stderr": lines}))
    assert text.startswith("it failed\n")
    assert "line 19" in text
    assert "line 0" not in text


def test_repr_shows_what_is_known() -> None:
    error = WorkerLost("gone", worker="m/0")
    assert repr(error) == "WorkerLost('gone', retryable=True, worker='m/0')"


def test_any_value_can_be_shown_in_a_message() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    for value in (
        deep,
        [[[["x" * 60] * 9] * 9] * 9] * 9,
        10**10_000,
        "x" * 10_000,
        list(range(10_000)),
        b"x" * 10_000,
    ):
        assert 0 < len(shown(value)) < 200
    assert shown("short") == "'short'"
