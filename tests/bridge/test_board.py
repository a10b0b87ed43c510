"""The record a worker leaves: what was written is read, and a slot in use is whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmport.bridge.board import SIZE, SLOTS, Board, Held, OnRecord


def test_what_the_worker_records_the_supervisor_reads() -> None:
    buffer = bytearray(SIZE)
    worker, supervisor = Board(buffer), Board(buffer)
    worker.turn(steps=0)
    worker.turn(steps=7)
    first = worker.hold(1, 2**62, Held.STARTED)
    worker.hold(3, 4, Held.WAITING)
    worker.count(first, 12)
    assert (supervisor.turns, supervisor.steps) == (2, 7)
    assert supervisor.calls() == {
        (1, 2**62): OnRecord(Held.STARTED, 12),
        (3, 4): OnRecord(Held.WAITING, 0),
    }


def test_a_call_that_is_dropped_is_off_the_record_and_its_slot_is_given_again() -> None:
    board = Board(bytearray(SIZE))
    slot = board.hold(1, 1, Held.STARTED)
    board.count(slot, 5)
    board.drop(slot)
    assert board.calls() == {}
    assert board.hold(1, 2, Held.WAITING) == slot
    board.start(slot)
    assert board.calls() == {(1, 2): OnRecord(Held.STARTED, 0)}


def test_the_board_has_an_end() -> None:
    board = Board(bytearray(SIZE))
    for call_id in range(SLOTS):
        board.hold(1, call_id, Held.WAITING)
    with pytest.raises(IndexError):
        board.hold(1, SLOTS, Held.WAITING)
    assert len(board.calls()) == SLOTS


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2**33))))
def test_any_order_of_records_reads_as_a_table_would(deeds: list[tuple[int, int, int]]) -> None:
    board = Board(bytearray(SIZE))
    slots: dict[tuple[int, int], int] = {}
    expected: dict[tuple[int, int], OnRecord] = {}
    for call_id, deed, tokens in deeds:
        key = (1, call_id)
        if key not in slots:
            slots[key] = board.hold(*key, Held.WAITING)
            expected[key] = OnRecord(Held.WAITING, 0)
        elif deed == 0:
            board.drop(slots.pop(key))
            del expected[key]
        elif deed == 1:
            board.start(slots[key])
            expected[key] = expected[key]._replace(held=Held.STARTED)
        else:
            board.count(slots[key], tokens)
            expected[key] = expected[key]._replace(tokens=min(tokens, 2**32 - 1))
    assert board.calls() == expected
