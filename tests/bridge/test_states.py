"""The tables of a worker's and a call's life."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from vllmport.bridge.states import (
    CALL_TRANSITIONS,
    WORKER_TRANSITIONS,
    CallEvent,
    CallState,
    WorkerEvent,
    WorkerState,
    advance,
)

Table = Mapping[tuple[Any, Any], Any]


def reachable(table: Table, start: StrEnum) -> set[StrEnum]:
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        following = {after for (before, _), after in table.items() if before is state} - seen
        seen |= following
        todo += following
    return seen


@pytest.mark.parametrize(
    ("table", "start", "states"),
    [
        (WORKER_TRANSITIONS, WorkerState.STARTING, WorkerState),
        (CALL_TRANSITIONS, CallState.QUEUED, CallState),
    ],
    ids=["worker", "call"],
)
def test_every_state_can_be_reached(table: Table, start: StrEnum, states: type[StrEnum]) -> None:
    assert reachable(table, start) == set(states)


@pytest.mark.parametrize(
    ("table", "events"),
    [(WORKER_TRANSITIONS, WorkerEvent), (CALL_TRANSITIONS, CallEvent)],
    ids=["worker", "call"],
)
def test_every_event_occurs(table: Table, events: type[StrEnum]) -> None:
    assert {event for _, event in table} == set(events)


@pytest.mark.parametrize("state", WorkerState)
def test_every_worker_can_be_stopped(state: WorkerState) -> None:
    assert WorkerState.STOPPED in reachable(WORKER_TRANSITIONS, state)


@pytest.mark.parametrize("state", CallState)
def test_every_call_can_end(state: CallState) -> None:
    assert CallState.DONE in reachable(CALL_TRANSITIONS, state)


def test_nothing_follows_the_last_states() -> None:
    assert reachable(WORKER_TRANSITIONS, WorkerState.STOPPED) == {WorkerState.STOPPED}
    assert reachable(CALL_TRANSITIONS, CallState.DONE) == {CallState.DONE}


def test_a_call_that_was_answered_is_never_run_or_queued_again() -> None:
    after = reachable(CALL_TRANSITIONS, CallState.ABANDONED)
    assert after == {CallState.ABANDONED, CallState.DONE}


def test_a_draining_worker_never_takes_calls_again() -> None:
    assert WorkerState.READY not in reachable(WORKER_TRANSITIONS, WorkerState.DRAINING)


def test_whatever_runs_ends_when_its_worker_is_gone() -> None:
    for state in (CallState.RUNNING, CallState.ABANDONED):
        assert advance(CALL_TRANSITIONS, state, CallEvent.WORKER_GONE) is CallState.DONE


def test_a_step_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(AssertionError, match=r"DONE cannot take .*FINISHED"):
        advance(CALL_TRANSITIONS, CallState.DONE, CallEvent.FINISHED)
