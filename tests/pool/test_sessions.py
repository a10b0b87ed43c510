"""Which worker a session is on, where its calls may go, and how long it lives."""

from typing import Any

import pytest

from deciders import Sent, unpacked
from vllmport.bridge.board import Held, OnRecord
from vllmport.bridge.codec import pack
from vllmport.bridge.errors import VllmportError
from vllmport.bridge.messages import Call, End, Error, Forget, Holds, Result, encode, error_from
from vllmport.bridge.universal import Verb
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog

NOW = 1000.0


class Bench:
    """A dispatcher with one model, and calls that belong to sessions."""

    def __init__(self) -> None:
        self.now = NOW
        self.it = Dispatcher(100, 100_000, 10.0, EventLog(lambda: 0.0))
        self.it.add_model("m")

    def worker(self, name: str, capacity: int = 2) -> None:
        self.it.worker_ready(name, "m", capacity, self.now)

    def call(self, call_id: int, verb: str = Verb.CALL, *, client: int = 1, **fields: Any) -> None:
        owner = fields.pop("owner", "")
        self.it.call(client, Call(call_id, "m", verb, None, **fields), pack({}), self.now, owner)

    def told(self) -> list[Sent]:
        return unpacked(self.it.take_outgoing())

    def started(self) -> list[tuple[int, str]]:
        """Return the calls that were given to workers just now, and to whom."""
        return [(s.message.id, str(s.to)) for s in self.told() if isinstance(s.message, Call)]

    def id_of(self, call_id: int, verb: str = Verb.CALL, **fields: Any) -> tuple[str, str]:
        """Make a call; return the worker it went to and the name of its session there."""
        self.call(call_id, verb, **fields)
        ((to, message, _),) = [s for s in self.told() if isinstance(s.message, Call)]
        assert isinstance(message, Call)
        return str(to), message.session

    def ends(self, call_id: int, worker: str, client: int = 1) -> None:
        message = End([[call_id, 1]], client, worker)
        self.it.end(worker, message, encode(message, pack([None])), self.now)

    def holds(self, worker: str, session: str, refs: int) -> None:
        self.it.holds(worker, Holds(session, refs))

    def dies(self, worker: str, *started: tuple[int, int]) -> None:
        board = {key: OnRecord(Held.STARTED, 0) for key in started}
        self.it.worker_gone(worker, "killed", board, self.now)

    def errors(self) -> list[tuple[int, VllmportError]]:
        return [
            (s.message.id, error_from(s.message, s.value))
            for s in self.told()
            if isinstance(s.message, Error)
        ]

    def forgotten(self) -> list[tuple[str, str]]:
        return [
            (str(s.to), s.message.session) for s in self.told() if isinstance(s.message, Forget)
        ]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.worker("m/0")
    bench.worker("m/1")
    return bench


def test_calls_of_a_session_go_to_one_worker_and_sessions_to_different_ones(bench: Bench) -> None:
    one, name = bench.id_of(1, session="a")
    other, other_name = bench.id_of(2, session="b")
    assert one != other
    assert name != other_name
    assert bench.id_of(3, session="a") == (one, name)
    assert bench.id_of(4, session="b") == (other, other_name)


def test_two_first_calls_at_once_bind_a_session_to_one_worker() -> None:
    bench = Bench()
    for call_id in (1, 2):
        bench.call(call_id, session="a", affinity="strict_queue")
    bench.worker("m/0", 1)
    bench.worker("m/1", 1)
    assert bench.started() == [(1, "m/0")]
    bench.ends(1, "m/0")
    assert bench.started() == [(2, "m/0")]


@pytest.mark.parametrize("affinity", ["", "hint"])
def test_hint_moves_a_session_that_holds_nothing_and_tells_its_old_worker(
    bench: Bench, affinity: str
) -> None:
    terms = {"session": "a", "affinity": affinity or "hint"}
    first, name = bench.id_of(1, "generate", **terms)
    bench.id_of(2, "generate", **terms)
    bench.call(3, session="a", affinity=affinity)
    told = bench.told()
    ((to, message, _),) = [s for s in told if isinstance(s.message, Call)]
    assert isinstance(message, Call)
    assert to != first
    assert message.session != name
    assert [s.to for s in told if isinstance(s.message, Forget)] == [first]


def test_hint_never_moves_a_session_that_holds_refs(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 3)
    bench.ends(1, worker)
    bench.told()
    for call_id in (2, 3):
        assert bench.id_of(call_id, session="a")[0] == worker
    bench.call(4, session="a")
    assert bench.started() == [], "the other worker has room, and is not taken"
    bench.call(5, "generate", session="a")
    assert [to for _, to in bench.started()] != [worker], "a plain call needs no refs"
    bench.ends(2, worker)
    assert bench.started() == [(4, worker)]


def test_hint_never_moves_a_session_whose_open_call_may_make_refs(bench: Bench) -> None:
    worker, _ = bench.id_of(1, session="a")
    bench.id_of(2, session="a")
    bench.call(3, session="a")
    assert bench.started() == []
    bench.ends(1, worker)
    assert bench.started() == [(3, worker)]


def test_a_session_that_released_everything_may_move_again(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 1)
    bench.holds(worker, name, 0)
    bench.ends(1, worker)
    bench.told()
    for call_id, client in ((2, 5), (3, 6), (4, 7), (5, 8)):
        bench.call(call_id, "generate", client=client)
    busy = bench.started()
    for call_id, to in busy:
        if to != worker:
            bench.ends(call_id, to, client=call_id + 3)
    bench.told()
    assert bench.id_of(9, session="a")[0] != worker


@pytest.mark.parametrize("window", [0, 8])
def test_strict_fail_fast_is_refused_at_once_also_as_a_stream(bench: Bench, window: int) -> None:
    terms: dict[str, Any] = {"session": "a", "affinity": "strict_fail_fast", "window": window}
    bench.id_of(1, **terms)
    bench.id_of(2, **terms)
    bench.call(3, **terms)
    ((call_id, error),) = bench.errors()
    assert (call_id, error.code) == (3, "overloaded")
    bench.call(4, "generate", client=2)
    assert len(bench.started()) == 1


def test_pinned_calls_stand_in_nobodys_way(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 1)
    bench.id_of(2, session="a")
    bench.call(3, session="a")
    bench.call(4, "generate", client=2)
    ((call_id, to),) = bench.started()
    assert call_id == 4
    assert to != worker


def test_a_pinned_call_that_is_cancelled_or_expires_is_answered(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 1)
    bench.id_of(2, session="a")
    bench.call(3, session="a")
    bench.it.call(1, Call(4, "m", Verb.CALL, 50, session="a"), pack({}), bench.now)
    bench.it.cancel(1, 3, bench.now)
    bench.it.expire(bench.now + 0.05)
    assert [(n, e.code) for n, e in bench.errors()] == [
        (3, "cancelled"),
        (4, "deadline_exceeded"),
    ]
    bench.ends(1, worker)
    assert bench.started() == []


def test_a_lost_worker_loses_the_sessions_that_hold_refs_there(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 1)
    bench.id_of(2, session="a")
    bench.call(3, session="a")
    bench.told()
    bench.dies(worker, (1, 1), (1, 2))
    errors = bench.errors()
    assert sorted(number for number, _ in errors) == [1, 2, 3]
    assert {error.code for _, error in errors} == {"session_lost"}
    assert {error.details["exit"] for _, error in errors} == {"killed"}
    bench.call(4, session="a")
    assert [e.code for _, e in bench.errors()] == ["session_lost"]
    bench.call(5, Verb.END, session="a")
    assert [type(s.message) for s in bench.told()] == [Result]
    assert bench.id_of(6, session="a")[1] != name


def test_a_session_without_refs_goes_on_with_another_worker(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.ends(1, worker)
    bench.told()
    bench.dies(worker)
    other, new = bench.id_of(2, session="a")
    assert other != worker
    assert new != name


def test_draining_loses_what_sessions_hold_at_once(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="a")
    bench.holds(worker, name, 1)
    bench.ends(1, worker)
    bench.told()
    bench.it.worker_draining(worker, bench.now)
    bench.call(2, session="a")
    ((_, error),) = bench.errors()
    assert error.code == "session_lost"


def test_a_connection_takes_its_own_sessions_along_and_leaves_those_with_a_life(
    bench: Bench,
) -> None:
    worker, name = bench.id_of(1, session="mine")
    shared, long = bench.id_of(2, session="shared", ttl_ms=1000)
    bench.ends(1, worker)
    bench.ends(2, shared)
    bench.told()
    bench.it.client_gone(1, bench.now)
    assert bench.forgotten() == [(worker, name)]
    assert bench.id_of(3, client=2, session="shared", ttl_ms=1000) == (shared, long)
    bench.ends(3, shared, client=2)
    bench.told()
    bench.it.expire(bench.now + 0.9)
    assert bench.forgotten() == []
    assert bench.it.next_deadline() == bench.now + 1
    bench.it.expire(bench.now + 1)
    assert bench.forgotten() == [(shared, long)]


def test_a_session_with_an_open_call_outlives_its_time(bench: Bench) -> None:
    worker, name = bench.id_of(1, session="s", ttl_ms=1000)
    bench.it.expire(bench.now + 1)
    assert bench.forgotten() == []
    bench.ends(1, worker)
    bench.it.expire(bench.now + 2)
    assert bench.forgotten() == [(worker, name)]


def test_names_are_apart_for_connections_owners_and_models(bench: Bench) -> None:
    bench.it.add_model("n")
    seen = {
        bench.id_of(1, session="a")[1],
        bench.id_of(2, client=2, session="a")[1],
        bench.id_of(3, client=3, session="a", ttl_ms=1000)[1],
        bench.id_of(4, client=4, session="a", ttl_ms=1000, owner="guest")[1],
    }
    assert len(seen) == 4


def test_calls_without_a_session_name_none(bench: Bench) -> None:
    bench.call(1, "generate")
    (sent,) = bench.told()
    assert isinstance(sent.message, Call)
    assert sent.message.session == ""
    bench.call(2, "generate", affinity="sticky")
    ((_, error),) = bench.errors()
    assert error.code == "invalid_request"


def test_a_universal_call_that_does_not_let_go_has_its_worker_replaced(bench: Bench) -> None:
    worker, _ = bench.id_of(1, session="a")
    bench.it.cancel(1, 1, bench.now)
    bench.told()
    bench.it.expire(bench.now + 10)
    assert [e.code for _, e in bench.errors()] == ["cancelled"]
    assert bench.it.take_outstayed() == [worker]
    assert bench.it.take_stuck() == []
    assert bench.it.in_flight(worker) == 0
