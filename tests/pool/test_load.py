"""The choice of the worker with the fewest calls."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllmport.pool.supervisor.load import LeastLoaded


def loads(**workers: int) -> LeastLoaded:
    load = LeastLoaded()
    for worker, capacity in workers.items():
        load.add(worker, capacity)
    return load


def take(load: LeastLoaded, count: int) -> list[str | None]:
    picked = []
    for _ in range(count):
        worker = load.pick()
        picked.append(worker)
        if worker is not None:
            load.shift(worker, 1)
    return picked


def test_there_is_nobody_to_pick_at_first() -> None:
    assert loads().pick() is None


def test_calls_are_spread_evenly() -> None:
    assert take(loads(a=2, b=2, c=2), 6) == ["a", "b", "c", "a", "b", "c"]


def test_full_workers_are_not_picked() -> None:
    assert take(loads(a=1, b=2), 4) == ["a", "b", "b", None]


def test_the_worker_with_the_fewest_calls_is_picked() -> None:
    load = loads(a=9, b=9)
    take(load, 6)
    load.shift("b", -2)
    assert take(load, 2) == ["b", "b"]


def test_of_equals_the_one_left_alone_the_longest_is_picked() -> None:
    load = loads(a=9, b=9)
    load.shift("a", 1)
    load.shift("b", 1)
    load.shift("a", -1)
    load.shift("b", -1)
    assert load.pick() == "a"


def test_a_worker_that_was_full_is_picked_again_once_it_has_room() -> None:
    load = loads(a=1)
    assert take(load, 2) == ["a", None]
    load.shift("a", -1)
    assert load.pick() == "a"


def test_a_worker_that_was_taken_out_is_not_picked_and_its_end_counts_nothing() -> None:
    load = loads(a=2, b=2)
    take(load, 2)
    load.remove("a")
    load.shift("a", -1)
    load.remove("a")
    assert take(load, 2) == ["b", None]
    assert len(load) == 1


def test_a_worker_without_room_at_all_is_never_picked() -> None:
    assert loads(a=0).pick() is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "start", "end"]),
            st.sampled_from("abcd"),
            st.integers(0, 4),
        )
    )
)
@settings(max_examples=200)
def test_the_pick_is_always_one_with_room_and_the_fewest_calls(
    steps: list[tuple[str, str, int]],
) -> None:
    load = LeastLoaded()
    held: dict[str, int] = {}
    capacity: dict[str, int] = {}
    for what, worker, number in steps:
        if what == "add" and worker not in held:
            load.add(worker, number)
            held[worker], capacity[worker] = 0, number
        elif what == "remove":
            load.remove(worker)
            held.pop(worker, None)
        elif what == "start":
            picked = load.pick()
            if picked is not None:
                load.shift(picked, 1)
                held[picked] += 1
        elif what == "end" and held.get(worker):
            load.shift(worker, -1)
            held[worker] -= 1
        room = {name: count for name, count in held.items() if count < capacity[name]}
        best = load.pick()
        assert (best is None) == (not room)
        if best is not None:
            assert room[best] == min(room.values())
