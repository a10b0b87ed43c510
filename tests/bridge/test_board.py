"""The record a worker leaves: what was written is read, and a slot in use is whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmport.bridge.board import SIZE, SLOTS, Board, Held, OnRecord


def test_what_the_worker_records_the_supervisor_reads() -> None:
    buffer = bytearray(SIZE)
    worker, supervisor = Board(buffer), Board(buffer)
    worker.turn(steps=0, tokens=0)
    worker.turn(steps=7, tokens=2**40)
    first = worker.hold(1, 2**62, Held.STARTED)
    worker.hold(3, 4, Held.WAITING)
    worker.count(first, 12)
    assert (supervisor.turns, supervisor.steps, supervisor.tokens) == (2, 7, 2**40)
    assert supervisor.calls() == {
        (1, 2**62): OnRecord(Held.STARTED, 12),
        (3, 4): OnRecord(Held.WAITING, 0),
    }


def test_a_sleeping_engine_is_on_record_until_it_wakes() -> None:
    board = Board(bytearray(SIZE))
    assert not board.asleep
    board.turn(steps=7, tokens=2**40, asleep=True)
    assert (board.asleep, board.tokens) == (True, 2**40)
    board.turn(steps=7, tokens=2**40, asleep=False)
    assert not board.asleep


def test_a_call_moves_between_waiting_and_started() -> None:
    board = Board(bytearray(SIZE))
    slot = board.hold(1, 1, Held.STARTED)
    board.move(slot, Held.WAITING)
    assert board.calls() == {(1, 1): OnRecord(Held.WAITING, 0)}
    board.move(slot, Held.STARTED)
    assert board.calls() == {(1, 1): OnRecord(Held.STARTED, 0)}


def test_a_call_that_ended_stays_on_record_until_all_other_slots_were_used() -> None:
    board = Board(bytearray(SIZE))
    slot = board.hold(1, 1, Held.STARTED)
    board.count(slot, 5)
    board.end(slot)
    for call_id in range(2, SLOTS + 1):
        board.hold(1, call_id, Held.WAITING)
    assert board.calls()[1, 1] == OnRecord(Held.ENDED, 5)
    assert board.hold(2, 1, Held.STARTED) == slot
    assert (1, 1) not in board.calls()
    assert board.calls()[2, 1] == OnRecord(Held.STARTED, 0)


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
    for number, (call_id, deed, tokens) in enumerate(deeds):
        key = (call_id, max((n for c, n in slots if c == call_id), default=-1))
        if key not in slots:
            key = (call_id, number)
            slots[key] = board.hold(*key, Held.WAITING)
            expected[key] = OnRecord(Held.WAITING, 0)
        elif deed == 0:
            board.end(slots.pop(key))
            expected[key] = expected[key]._replace(held=Held.ENDED)
        elif deed == 1:
            board.move(slots[key], Held.STARTED)
            expected[key] = expected[key]._replace(held=Held.STARTED)
        else:
            board.count(slots[key], tokens)
            expected[key] = expected[key]._replace(tokens=min(tokens, 2**32 - 1))
    assert board.calls() == expected
