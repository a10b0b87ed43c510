"""The heap of deadlines."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from vllmport.bridge.deadlines import Deadlines


def test_the_earliest_is_next_and_due_ones_come_oldest_first() -> None:
    due: Deadlines[str] = Deadlines()
    for key, time in (("late", 3.0), ("early", 1.0), ("between", 2.0)):
        due.set(key, time)
    assert due.next() == 1.0
    assert list(due.pop_due(2.0)) == ["early", "between"]
    assert (due.next(), len(due)) == (3.0, 1)


def test_nothing_is_due_when_there_is_nothing() -> None:
    due: Deadlines[str] = Deadlines()
    assert due.next() == math.inf
    assert list(due.pop_due(1e9)) == []


def test_a_key_has_one_time_the_last_one_set() -> None:
    due: Deadlines[str] = Deadlines()
    due.set("a", 1.0)
    due.set("a", 5.0)
    assert list(due.pop_due(4.0)) == []
    due.set("a", 2.0)
    assert list(due.pop_due(9.0)) == ["a"]


def test_infinity_takes_a_key_out() -> None:
    due: Deadlines[str] = Deadlines()
    due.set("a", 1.0)
    due.set("a", math.inf)
    assert len(due) == 0
    assert due.next() == math.inf


def test_a_key_set_again_while_due_ones_are_taken_waits_for_its_new_time() -> None:
    due: Deadlines[str] = Deadlines()
    due.set("a", 1.0)
    for key in due.pop_due(1.0):
        due.set(key, 2.0)
    assert due.next() == 2.0


def test_keys_that_cannot_be_compared_may_share_a_time() -> None:
    due: Deadlines[object] = Deadlines()
    keys = {object(), object()}
    for key in keys:
        due.set(key, 1.0)
    assert set(due.pop_due(1.0)) == keys


def test_calls_that_end_early_leave_nothing_behind() -> None:
    due: Deadlines[int] = Deadlines()
    due.set(-1, 1e9)
    for number in range(100_000):
        due.set(number, 1e6 + number)
        due.discard(number)
    assert len(due._heap) < 200
    assert due.next() == 1e9


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "discard", "pop"]), st.integers(0, 9), st.integers(0, 100)
        )
    )
)
@settings(max_examples=200)
def test_it_is_a_map_with_a_minimum(steps: list[tuple[str, int, int]]) -> None:
    due: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    for what, key, time in steps:
        if what == "set":
            due.set(key, time)
            model[key] = time
        elif what == "discard":
            due.discard(key)
            model.pop(key, None)
        else:
            popped = list(due.pop_due(time))
            expected = {key for key, at in model.items() if at <= time}
            assert [model[key] for key in popped] == sorted(model[key] for key in expected)
            assert set(popped) == expected
            model = {key: at for key, at in model.items() if at > time}
        assert due.next() == min(model.values(), default=math.inf)
        assert len(due) == len(model)
