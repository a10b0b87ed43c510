"""Which call goes where, when it has waited too long, and who is told what."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deciders import Sent, ended_calls, unpacked
from vllmport.bridge.board import Held, OnRecord
from vllmport.bridge.codec import pack
from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineDead,
    PoolClosed,
    StartupFailed,
    VllmportError,
)
from vllmport.bridge.messages import (
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Holds,
    Items,
    Message,
    Result,
    encode,
    error_message,
)
from vllmport.bridge.states import CallState
from vllmport.bridge.universal import UNIVERSAL, Affinity
from vllmport.pool.supervisor.dispatch import GRACE, MAX_DEATHS, Dispatcher
from vllmport.pool.supervisor.events import EventLog

NOW = 1000.0


class Bench:
    """A dispatcher with one model, at a time of the test's choosing."""

    def __init__(self, max_queue: int = 100, max_queue_bytes: int = 100_000) -> None:
        self.now = NOW
        self.events = EventLog(lambda: 0.0)
        self.it = Dispatcher(max_queue, max_queue_bytes, 10.0, self.events)
        self.it.add_model("m")

    def worker(self, name: str = "m/0", capacity: int = 2) -> None:
        self.it.worker_ready(name, "m", capacity, self.now)

    def call(self, call_id: int, client: int = 1, *, size: int = 10, **fields: Any) -> None:
        budget = fields.pop("remaining_ms", None)
        model, verb = fields.pop("model", "m"), fields.pop("verb", "generate")
        header = Call(call_id, model, verb, budget, **fields)
        self.it.call(client, header, pack({"prompt": "x" * size}), self.now)

    def expire_at(self, now: float) -> None:
        self.now = now
        self.it.expire(now)

    def result(self, call_id: int, client: int = 1, worker: str = "m/0") -> None:
        message = Result(call_id, client, worker, 1)
        self.it.result(worker, client, call_id, encode(message, pack("done")), self.now)

    def error(
        self,
        call_id: int,
        client: int = 1,
        worker: str = "m/0",
        error: VllmportError | None = None,
    ) -> None:
        message = error_message(error or Cancelled("given up"), call_id, client)
        self.it.result(worker, client, call_id, encode(message), self.now, message)

    def items(
        self, *entries: list[int], client: int = 1, worker: str = "m/0", text: str = "a"
    ) -> None:
        message = Items(list(entries), client)
        values = [delta(text) for _ in entries]
        self.it.items(worker, message, encode(message, pack(values)))

    def end(self, *call_ids: int, client: int = 1, worker: str = "m/0") -> None:
        message = End([[call_id, 1] for call_id in call_ids], client, worker)
        frames = encode(message, pack([{}] * len(call_ids)))
        self.it.end(worker, message, frames, self.now)

    def dies(
        self,
        on_record: dict[tuple[int, int], int | Held] | None = None,
        worker: str = "m/0",
        cause: str = "killed",
        *,
        expected: bool = False,
    ) -> None:
        """End a worker; of its calls it has on record their tokens, or how far they came."""
        board = {
            key: OnRecord(state, 0) if isinstance(state, Held) else OnRecord(Held.STARTED, state)
            for key, state in (on_record or {}).items()
        }
        self.it.worker_gone(worker, cause, board, self.now, expected=expected)

    def happened(self) -> list[tuple[Any, ...]]:
        """Return the events since the last time: their names and fields."""
        return [
            tuple(event.values())[:1] + tuple(event.values())[3:] for event in self.new_events()
        ]

    def new_events(self) -> list[dict[str, Any]]:
        return self.events.take_new()

    def told(self) -> list[Sent]:
        return unpacked(self.it.take_outgoing())

    def messages(self) -> list[tuple[int | str, Message]]:
        return [(sent.to, sent.message) for sent in self.told()]

    def started(self) -> list[int]:
        """Return the ids of the calls that were given to workers just now."""
        return [message.id for _, message in self.messages() if isinstance(message, Call)]

    def only_error(self) -> tuple[int | str, Error, Any]:
        ((to, message, value),) = self.told()
        assert isinstance(message, Error)
        return to, message, value


def delta(text: str, index: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
    """Return what a stream brings: a token for each character."""
    ids = [ord(character) for character in text]
    output = {"index": index, "text": text, "token_ids": ids, "finish_reason": finish_reason}
    return {"outputs": [output]}


@pytest.fixture
def bench() -> Bench:
    return Bench()


# The way of a call.


def test_a_call_goes_to_a_worker_with_its_client_attempt_and_budget(bench: Bench) -> None:
    bench.worker()
    bench.call(7, client=3, remaining_ms=1500, window=8, request_id="r")
    ((to, message, value),) = bench.told()
    assert to == "m/0"
    assert message == Call(7, "m", "generate", 1500, 8, 0, "r", client=3, attempt=1)
    assert value == {"prompt": "x" * 10}


def test_waiting_eats_the_budget(bench: Bench) -> None:
    bench.call(1, remaining_ms=1500)
    bench.now += 1
    bench.worker()
    ((_, message),) = bench.messages()
    assert isinstance(message, Call)
    assert message.remaining_ms == 500


def test_results_go_to_the_client_untouched(bench: Bench) -> None:
    bench.worker()
    bench.call(7, client=3)
    bench.told()
    frames = [*encode(Result(7, 3)), b"a buffer"]
    bench.it.result("m/0", 3, 7, frames, bench.now)
    assert bench.it.take_outgoing() == [(3, frames)]
    assert (bench.it.open_calls, bench.it.in_flight("m/0")) == (0, 0)


def test_a_worker_never_holds_more_than_its_capacity(bench: Bench) -> None:
    bench.worker(capacity=2)
    for call_id in (1, 2, 3):
        bench.call(call_id)
    assert bench.started() == [1, 2]
    assert (bench.it.in_flight("m/0"), bench.it.queued("m")) == (2, 1)
    bench.result(1)
    assert bench.started() == [3]


def test_the_worker_with_the_fewest_calls_gets_the_next(bench: Bench) -> None:
    bench.worker("m/0", 9)
    bench.worker("m/1", 9)
    for call_id in range(1, 5):
        bench.call(call_id)
    assert bench.it.in_flight("m/0") == bench.it.in_flight("m/1") == 2
    bench.result(2, worker="m/1")
    bench.told()
    bench.call(9)
    assert [to for to, _ in bench.messages()] == ["m/1"]


def test_lower_priority_numbers_run_first_and_equals_in_order(bench: Bench) -> None:
    for call_id, priority in ((1, 5), (2, 0), (3, -1), (4, 0)):
        bench.call(call_id, priority=priority)
    bench.worker(capacity=9)
    assert bench.started() == [3, 2, 4, 1]


def test_calls_wait_until_a_worker_is_ready(bench: Bench) -> None:
    bench.call(1)
    assert bench.told() == []
    bench.worker()
    assert bench.started() == [1]


def test_a_draining_worker_gets_nothing_new_but_finishes_what_it_has(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.told()
    bench.it.worker_draining("m/0", bench.now)
    bench.call(2)
    assert bench.told() == []
    bench.result(1)
    assert [to for to, _ in bench.messages()] == [1]
    assert bench.it.in_flight("m/0") == 0


# Refusals.


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    bench = Bench(max_queue=2)
    for call_id in (1, 2, 3):
        bench.call(call_id)
    to, error, details = bench.only_error()
    assert (to, error.id, error.code, error.retryable, error.phase) == (
        1,
        3,
        "overloaded",
        True,
        "queue",
    )
    assert 0 < details["retry_after"] <= 30
    assert details["queued"] == 2
    assert bench.it.queued("m") == 2


def test_the_queue_is_bounded_in_bytes_too() -> None:
    bench = Bench(max_queue_bytes=1000)
    bench.call(1, size=600)
    bench.call(2, size=600)
    assert bench.only_error()[1].code == "overloaded"
    bench.call(3, size=100)
    assert bench.told() == []


def test_room_comes_back_when_calls_leave_the_queue() -> None:
    bench = Bench(max_queue=1)
    bench.call(1)
    bench.it.cancel(1, 1, bench.now)
    bench.call(2, remaining_ms=10)
    bench.expire_at(NOW + 1)
    bench.call(3, client=2)
    bench.it.client_gone(2, bench.now)
    bench.told()
    bench.call(4)
    assert bench.told() == []


def test_what_need_not_wait_is_not_refused_for_a_full_queue() -> None:
    bench = Bench(max_queue=0, max_queue_bytes=10)
    bench.worker(capacity=1)
    bench.call(1, size=500)
    assert bench.started() == [1]
    bench.call(2)
    assert bench.only_error()[1].code == "overloaded"


def test_the_slower_calls_end_the_later_one_should_come_back() -> None:
    def retry_after(seconds: float) -> float:
        bench = Bench(max_queue=10)
        bench.worker(capacity=1)
        for call_id in range(1, 12):
            bench.call(call_id)
        for call_id in range(1, 10):
            bench.now += seconds
            bench.result(call_id)
            bench.call(call_id + 11)
        bench.told()
        bench.call(99)
        return float(bench.only_error()[2]["retry_after"])

    assert retry_after(0.01) < retry_after(1.0) <= 30


def test_an_unknown_model_is_refused_with_the_known_ones(bench: Bench) -> None:
    bench.call(1, model="other")
    _, error, details = bench.only_error()
    assert (error.code, error.retryable) == ("invalid_request", False)
    assert "known: m" in error.message
    assert details == {"parameter": "model", "value": "other"}


def test_an_id_that_is_open_is_refused_and_the_first_call_goes_on(bench: Bench) -> None:
    bench.worker()
    bench.call(7)
    bench.told()
    bench.call(7)
    _, error, _ = bench.only_error()
    assert (error.id, error.code) == (7, "protocol_error")
    bench.result(7)
    assert [to for to, _ in bench.messages()] == [1]


def test_clients_may_use_the_same_ids(bench: Bench) -> None:
    bench.worker()
    bench.call(7, client=1)
    bench.call(7, client=2)
    assert bench.started() == [7, 7]


def test_a_refused_model_fails_what_waits_and_what_comes(bench: Bench) -> None:
    bench.call(1)
    bench.it.refuse("m", StartupFailed("no such file"))
    assert bench.only_error()[1].code == "startup_failed"
    bench.call(2)
    assert bench.only_error()[1].code == "startup_failed"
    bench.it.add_model("m")
    bench.call(3)
    assert bench.told() == []


def test_a_removed_model_fails_what_waits_and_is_unknown_then(bench: Bench) -> None:
    bench.call(1)
    bench.it.remove_model("m", PoolClosed("unloaded"))
    assert bench.only_error()[1].code == "pool_closed"
    bench.call(2)
    assert bench.only_error()[1].code == "invalid_request"
    bench.it.remove_model("m", PoolClosed("again"))


# Deadlines.


def test_what_expires_in_the_queue_is_never_started(bench: Bench) -> None:
    bench.call(1, remaining_ms=100)
    assert bench.it.next_deadline() == NOW + 0.1
    bench.expire_at(NOW + 0.1)
    _, error, details = bench.only_error()
    assert (error.code, error.phase, error.attempt) == ("deadline_exceeded", "queue", 0)
    assert details == {"tokens": 0, "partial": None}
    bench.worker()
    assert bench.told() == []


def test_an_expired_call_is_not_started_even_before_its_expiry_was_noticed(bench: Bench) -> None:
    bench.call(1, remaining_ms=100)
    bench.call(2)
    bench.now += 5
    bench.worker(capacity=1)
    told = bench.told()
    assert [(sent.to, sent.message.id) for sent in told] == [(1, 1), ("m/0", 2)]  # type: ignore[union-attr]
    assert bench.it.next_deadline() == math.inf


def test_a_call_without_budget_on_arrival_is_refused(bench: Bench) -> None:
    bench.worker()
    bench.call(1, remaining_ms=0)
    assert bench.only_error()[1].code == "deadline_exceeded"


def test_a_running_call_is_left_to_its_worker_for_the_grace(bench: Bench) -> None:
    bench.worker()
    bench.call(1, remaining_ms=100)
    bench.told()
    bench.expire_at(NOW + 0.1)
    assert bench.told() == []
    assert bench.it.next_deadline() == NOW + 0.1 + GRACE
    bench.error(1, error=DeadlineExceeded("time is up", phase="decode"))
    assert [to for to, _ in bench.messages()] == [1]
    assert bench.it.next_deadline() == math.inf
    assert bench.happened() == [("call.expired", "", "m/0", "decode")]


def test_after_the_grace_the_call_is_answered_from_here_and_its_place_stays_taken(
    bench: Bench,
) -> None:
    bench.worker(capacity=1)
    bench.call(1, client=3, remaining_ms=100)
    bench.call(2, client=3)
    bench.told()
    bench.expire_at(NOW + 0.1)
    bench.expire_at(NOW + 0.1 + GRACE)
    cancel, error = bench.told()
    assert (cancel.to, cancel.message) == ("m/0", Cancel(1, 3))
    assert isinstance(error.message, Error)
    assert (error.message.code, error.message.phase) == ("deadline_exceeded", "worker")
    assert (error.message.worker, error.message.attempt) == ("m/0", 1)
    assert (bench.it.in_flight("m/0"), bench.it.open_calls) == (1, 2)

    bench.error(1, client=3)
    assert bench.started() == [2], "the late answer is dropped, the place is free"


def test_no_limit_means_no_deadline(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    assert bench.it.next_deadline() == math.inf


# Giving up.


def test_cancelling_a_call_that_waits_answers_it(bench: Bench) -> None:
    bench.call(1)
    bench.it.cancel(1, 1, bench.now)
    _, error, details = bench.only_error()
    assert (error.code, error.phase, details) == ("cancelled", "queue", {"tokens": 0})
    bench.worker()
    assert bench.told() == []


def test_cancelling_a_call_that_runs_asks_its_worker_who_answers(bench: Bench) -> None:
    bench.worker()
    bench.call(1, client=3)
    bench.told()
    bench.it.cancel(3, 1, bench.now)
    assert bench.messages() == [("m/0", Cancel(1, 3))]
    bench.error(1, client=3)
    assert [to for to, _ in bench.messages()] == [3]
    assert bench.it.counters.errors == {"cancelled": 1}


def test_cancelling_what_has_ended_or_never_was_does_nothing(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.result(1)
    bench.told()
    bench.it.cancel(1, 1, bench.now)
    bench.it.cancel(1, 99, bench.now)
    bench.it.cancel(99, 1, bench.now)
    assert bench.told() == []


def test_a_client_that_leaves_takes_its_calls_along(bench: Bench) -> None:
    bench.worker(capacity=1)
    bench.call(1, client=3)
    bench.call(2, client=3)
    bench.call(1, client=4)
    bench.told()
    bench.it.client_gone(3, bench.now)
    assert bench.messages() == [("m/0", Cancel(1, 3))]
    assert (bench.it.queued("m"), bench.it.open_calls) == (1, 2)
    bench.error(1, client=3)
    assert bench.messages() == [("m/0", Call(1, "m", "generate", None, client=4, attempt=1))]
    bench.it.client_gone(3, bench.now)
    bench.it.client_gone(99, bench.now)
    assert bench.told() == []


# Lost workers, late messages.


def test_a_lost_worker_fails_what_it_had_started_at_once(bench: Bench) -> None:
    bench.worker("m/0", 1)
    bench.worker("m/1", 1)
    bench.call(1, request_id="r")
    bench.call(2)
    bench.call(3)
    bench.told()
    bench.dies({(1, 1): 5}, cause="killed by SIGKILL")
    _, error, details = bench.only_error()
    assert (error.id, error.code, error.retryable) == (1, "worker_lost", True)
    assert (error.worker, error.attempt) == ("m/0", 1)
    assert details == {"exit": "killed by SIGKILL", "tokens": 5, "request_id": "r"}
    assert (bench.it.in_flight("m/0"), bench.it.in_flight("m/1")) == (0, 1)
    assert bench.it.queued("m") == 1
    assert bench.happened() == [("call.lost", "r", "m/0", 5, 1)]


def test_a_call_that_ended_but_whose_end_never_came_counts_as_started(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.told()
    bench.dies({(1, 1): Held.ENDED})
    assert bench.only_error()[1].code == "worker_lost"


@pytest.mark.parametrize("held", [{}, {(3, 1): Held.WAITING}], ids=["never came", "waited"])
def test_a_call_that_was_not_started_goes_to_another_worker_unseen(
    bench: Bench, held: dict[tuple[int, int], int | Held]
) -> None:
    bench.worker("m/0", 1)
    bench.call(1, client=3, remaining_ms=1500, window=8, request_id="r")
    bench.told()
    bench.now += 1
    bench.worker("m/1", 1)
    bench.dies(held)
    ((to, message, value),) = bench.told()
    assert to == "m/1"
    assert message == Call(1, "m", "generate", 500, 8, 0, "r", client=3, attempt=2)
    assert value == {"prompt": "x" * 10}
    assert bench.happened() == [("call.retried", "r", "m/0", 0, 1)]
    bench.items([1, 0], client=3)
    assert bench.told() == [], "what the lost one still says is dropped"
    bench.result(1, client=3, worker="m/1")
    assert [to for to, _ in bench.messages()] == [3]


def test_calls_that_come_back_stand_where_they_stood(bench: Bench) -> None:
    bench.worker(capacity=3)
    for call_id, priority in ((1, 0), (2, 0), (3, 1), (4, 0), (5, 2)):
        bench.call(call_id, priority=priority)
    assert bench.started() == [1, 2, 3]
    bench.dies()
    bench.worker("m/1", capacity=9)
    assert bench.started() == [1, 2, 4, 3, 5]


def test_a_call_that_was_not_started_is_never_poison(bench: Bench) -> None:
    bench.call(1)
    for number in range(5):
        bench.worker(f"m/{number}", 1)
        assert bench.started() == [1]
        bench.dies({(1, 1): Held.WAITING}, worker=f"m/{number}")
    bench.worker()
    ((_, message),) = bench.messages()
    assert isinstance(message, Call)
    assert message.attempt == 6


def test_the_deadline_goes_on_while_a_call_waits_again(bench: Bench) -> None:
    bench.worker()
    bench.call(1, remaining_ms=100)
    bench.call(2, remaining_ms=200)
    bench.told()
    bench.expire_at(NOW + 0.1)  # from here on its worker has the grace to answer
    bench.dies()
    told = bench.told()
    assert [sent.message.id for sent in told] == [1]  # type: ignore[union-attr]
    assert bench.it.next_deadline() == NOW + 0.2
    bench.expire_at(NOW + 0.2)
    _, error, _ = bench.only_error()
    assert (error.code, error.phase, error.attempt) == ("deadline_exceeded", "queue", 1)
    assert [event["event"] for event in bench.new_events()] == [
        *["call.retried"] * 2,
        *["call.expired"] * 2,
    ]


def test_a_call_that_was_cancelled_does_not_come_back(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.told()
    bench.it.cancel(1, 1, bench.now)
    bench.told()
    bench.dies()
    _, error, details = bench.only_error()
    assert (error.code, details) == ("cancelled", {"tokens": 0})


def test_calls_of_a_model_that_is_refused_do_not_come_back(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.told()
    bench.it.refuse("m", StartupFailed("broken"))
    bench.dies()
    assert bench.only_error()[1].code == "worker_lost"


def test_arguments_of_running_calls_are_kept_up_to_a_limit() -> None:
    bench = Bench(max_queue_bytes=250)
    bench.worker(capacity=9)
    for call_id in (1, 2, 3):
        bench.call(call_id, size=100)
    queue = bench.it._models["m"]
    assert 200 < queue.kept <= 250
    bench.result(1)
    assert 100 < queue.kept <= 125
    bench.told()
    bench.dies()
    assert bench.only_error()[1].id == 3, "nothing of it was kept"
    assert (queue.kept, bench.it.queued("m")) == (0, 1)
    bench.worker("m/1")
    assert bench.started() == [2]


def test_a_call_that_left_its_worker_holds_no_arguments(bench: Bench) -> None:
    bench.worker(capacity=2)
    bench.call(1, client=3)
    bench.call(2, client=4, remaining_ms=10)
    bench.it.client_gone(3, bench.now)
    bench.expire_at(NOW + 1)
    bench.expire_at(NOW + 1 + GRACE)
    assert [len(call.packed.payload) for call in bench.it._calls.by_key.values()] == [0, 0]
    assert bench.it._models["m"].kept == 0


# Resuming.


def resume(bench: Bench, *texts: str, window: int = 8, **fields: Any) -> None:
    """Start a stream that may be resumed, and let it bring something."""
    bench.worker("m/0", 1)
    bench.call(7, client=3, window=window, retry="resume", request_id="r", **fields)
    bench.told()
    for number, text in enumerate(texts):
        bench.items([7, number], client=3, text=text)


def test_a_stream_is_resumed_with_what_was_delivered(bench: Bench) -> None:
    resume(bench, "ab", "c")
    bench.it.credit(3, 7, 2)
    bench.told()
    bench.worker("m/1", 1)
    bench.dies({(3, 7): 4}, cause="killed by SIGKILL")
    bench.it.credit(3, 7, 1)
    (call, credit) = bench.told()
    assert call.to == "m/1"
    assert call.message == Call(
        7, "m", "generate", None, 8, 0, "r", client=3, attempt=2, retry="resume"
    )
    assert call.value == [
        {"prompt": "x" * 10},
        {
            "exit": "killed by SIGKILL",
            "items": 2,
            "room": 8,
            "outputs": [
                {"index": 0, "token_ids": [97, 98, 99], "characters": 3, "finished": False}
            ],
        },
    ]
    assert (credit.to, credit.message) == ("m/1", Credit(7, 1, 3))
    assert bench.happened() == [("call.retried", "r", "m/0", 4, 1)]
    bench.items([7, 2], client=3, worker="m/1", text="d")
    bench.end(7, client=3, worker="m/1")
    assert [type(message) for _, message in bench.messages()] == [Items, End]
    assert bench.it._calls.resumable == {}


def test_credit_that_comes_while_a_stream_waits_is_not_lost(bench: Bench) -> None:
    resume(bench, "a", window=1)
    bench.told()
    bench.dies({(3, 7): 1})
    bench.it.credit(3, 7, 5)
    assert bench.told() == []
    bench.worker("m/1", 1)
    assert bench.told()[0].value[1]["room"] == 5


def test_what_brought_nothing_yet_is_simply_run_again(bench: Bench) -> None:
    resume(bench)
    bench.it.credit(3, 7, 2)
    bench.told()
    bench.dies({(3, 7): 0})
    bench.worker("m/1", 1)
    ((_, message, value),) = bench.told()
    assert message == Call(7, "m", "generate", None, 10, 0, "r", client=3, attempt=2)
    assert value == {"prompt": "x" * 10}


def test_a_call_without_stream_is_run_again(bench: Bench) -> None:
    bench.worker("m/0", 1)
    bench.call(1, retry="resume")
    bench.told()
    bench.dies({(1, 1): 0})
    bench.worker("m/1", 1)
    ((_, message, value),) = bench.told()
    assert message == Call(1, "m", "generate", None, client=1, attempt=2)
    assert value == {"prompt": "x" * 10}


def test_a_call_that_two_workers_died_of_is_poison(bench: Bench) -> None:
    resume(bench, "ab")
    bench.told()
    bench.dies({(3, 7): 2}, cause="exited with status 9")
    bench.worker("m/1", 1)
    bench.told()
    bench.dies({(3, 7): 1}, worker="m/1", cause="killed by SIGSEGV")
    bench.worker("m/2", 1)
    _, error, details = bench.only_error()
    assert (error.code, error.retryable, error.attempt) == ("poison_request", False, 2)
    exits = ["exited with status 9", "killed by SIGSEGV"]
    assert details == {"exits": exits, "request_id": "r"}
    assert [event["event"] for event in bench.new_events()] == ["call.retried", "call.poisoned"]


def test_workers_that_were_told_to_end_are_not_held_against_a_call(bench: Bench) -> None:
    resume(bench, "ab")
    for number in range(3):
        bench.dies({(3, 7): 2}, worker=f"m/{number}", cause="drained", expected=True)
        bench.worker(f"m/{number + 1}", 1)
    *_, (to, message, value) = bench.told()
    assert (to, message.attempt) == ("m/3", 4)  # type: ignore[union-attr]
    assert value[1]["exit"] == "drained"


def test_a_dead_engine_resumes_its_calls_and_fails_the_others(bench: Bench) -> None:
    bench.worker("m/0", 2)
    bench.call(1, retry="resume")
    bench.call(2)
    bench.told()
    died = EngineDead("the engine process died")
    bench.error(1, error=died)
    bench.error(2, error=died)
    assert bench.only_error()[1].code == "engine_dead"
    assert (bench.it.queued("m"), bench.it.in_flight("m/0")) == (1, 0)
    bench.worker("m/1", 1)
    assert bench.started() == [1], "and not before: nothing goes to a dead engine"
    bench.dies({(1, 1): Held.ENDED}, worker="m/0")
    bench.error(1, worker="m/1", error=died)
    _, error, details = bench.only_error()
    assert (error.code, details["exits"]) == ("poison_request", ["the engine process died"] * 2)


def test_there_is_one_way_to_retry(bench: Bench) -> None:
    bench.call(1, retry="often")
    _, error, details = bench.only_error()
    assert (error.code, details) == ("invalid_request", {"parameter": "retry", "value": "often"})


def test_what_is_delivered_is_noted_for_streams_that_may_be_resumed_alone(bench: Bench) -> None:
    bench.worker(capacity=3)
    bench.call(1, window=8, retry="resume")
    bench.call(2, window=8)
    bench.told()
    message = Items([[1, 0], [2, 0]], 1)
    bench.it.items("m/0", message, encode(message, pack([delta("ab", 1, "stop"), {"any": 1}])))
    assert bench.it._calls.by_key[1, 2].delivered is None
    delivered = bench.it._calls.by_key[1, 1].delivered
    assert delivered is not None
    assert delivered.to_wire("")["outputs"] == [
        {"index": 1, "token_ids": [97, 98], "characters": 2, "finished": True}
    ]


def test_a_lost_worker_does_not_answer_again_what_was_answered(bench: Bench) -> None:
    bench.worker()
    bench.call(1, remaining_ms=100)
    bench.expire_at(NOW + 0.1)
    bench.expire_at(NOW + 0.1 + GRACE)
    bench.told()
    bench.dies({(1, 1): 0})
    assert bench.told() == []
    assert bench.it.open_calls == 0


def test_late_messages_of_workers_are_dropped_and_counted(bench: Bench) -> None:
    bench.worker()
    bench.call(1)
    bench.result(1)
    bench.told()
    bench.result(1)
    bench.error(1)
    bench.items([1, 0])
    bench.end(1)
    assert bench.told() == []
    assert bench.it.counters.late == 4
    assert bench.it.in_flight("m/0") == 0


def test_a_worker_cannot_end_what_runs_on_another(bench: Bench) -> None:
    bench.worker("m/0", 1)
    bench.worker("m/1", 1)
    bench.call(1)
    bench.told()
    bench.result(1, worker="m/1")
    assert bench.told() == []
    assert (bench.it.in_flight("m/0"), bench.it.counters.late) == (1, 1)


def test_a_worker_may_come_back_under_its_name(bench: Bench) -> None:
    bench.worker(capacity=1)
    bench.call(1)
    bench.dies({(1, 1): 0})
    bench.worker(capacity=1)
    bench.told()
    bench.call(2)
    assert bench.started() == [2]


# Streams.


def test_batches_are_passed_on_whole_while_one_call_wants_them(bench: Bench) -> None:
    bench.worker(capacity=3)
    for call_id in (1, 2):
        bench.call(call_id, window=8)
    bench.told()
    bench.items([1, 0], [2, 0])
    bench.end(1)
    bench.items([1, 1], [2, 1])
    kinds = [(type(m).__name__, getattr(m, "entries", None)) for _, m in bench.messages()]
    assert kinds == [
        ("Items", [[1, 0], [2, 0]]),
        ("End", [[1, 1]]),
        ("Items", [[1, 1], [2, 1]]),
    ]
    assert bench.it.counters.items == 4
    bench.end(2)
    bench.told()
    bench.items([1, 2], [2, 2])
    assert bench.told() == []


def test_one_end_may_close_several_streams(bench: Bench) -> None:
    bench.worker(capacity=3)
    for call_id in (1, 2, 3):
        bench.call(call_id, window=8)
    bench.told()
    bench.end(1, 2, 3)
    assert len(bench.told()) == 1
    assert bench.it.open_calls == 0


def test_credit_goes_to_the_worker_that_runs_the_stream(bench: Bench) -> None:
    bench.worker(capacity=1)
    bench.call(1, client=3, window=8)
    bench.call(2, client=3, window=8)
    bench.told()
    bench.it.credit(3, 1, 5)
    assert bench.messages() == [("m/0", Credit(1, 5, 3))]
    bench.it.credit(3, 2, 5)  # still waits: its window is whole
    bench.it.credit(3, 1, 0)
    bench.it.credit(3, 1, -1)
    bench.it.credit(3, 9, 5)
    assert bench.told() == []


# Memory.


def test_a_call_that_left_the_queue_holds_no_arguments() -> None:
    bench = Bench(max_queue=10)
    bench.call(1)
    bench.call(2, remaining_ms=10)
    queue = bench.it._models["m"]
    bench.expire_at(NOW + 1)
    assert [len(call.packed.payload) for *_, call in queue.heap if call.header.id == 2] in ([], [0])


def test_calls_that_left_the_queue_do_not_pile_up_behind_one_that_stays() -> None:
    bench = Bench(max_queue=10)
    bench.call(1, priority=-1)
    for call_id in range(2, 2000):
        bench.call(call_id)
        bench.it.cancel(1, call_id, bench.now)
    assert len(bench.it._models["m"].heap) < 200
    bench.worker()
    assert 1 in bench.started()


# Any order of events.

BLAMED = (Held.STARTED, Held.ENDED)

SELDOM = st.integers(0, 5).map(lambda number: number == 5)
"""Whether a rule that destroys a lot does anything this time."""


class AnyOrder(RuleBasedStateMachine):
    """Clients, workers and time do what they like; the promises hold all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(max_queue=4, max_queue_bytes=400)
        self.bench.it.add_model("n")
        self.ids = iter(range(1, 10**6))
        self.client_numbers = iter(range(1, 10**6))
        self.clients = {next(self.client_numbers), next(self.client_numbers)}
        self.open: set[tuple[int, int]] = set()
        self.held: dict[str, set[tuple[int, int]]] = {}
        self.capacity: dict[str, int] = {}
        self.draining: set[str] = set()
        self.ended: Counter[tuple[int, int]] = Counter()
        self.resumable: set[tuple[int, int]] = set()
        self.cancelled: set[tuple[int, int]] = set()
        self.blamed: Counter[tuple[int, int]] = Counter()  # workers that died of a call
        self.came: Counter[tuple[int, int]] = Counter()  # items of a stream
        self.session_of: dict[tuple[int, int], tuple[int, str, str]] = {}
        self.holding: dict[
            tuple[int, str, str], tuple[str, str]
        ] = {}  # session → where its refs are

    # What is sent.

    def collect(self) -> None:
        for sent in self.bench.told():
            if isinstance(sent.to, str):
                self.to_worker(sent.to, sent.message)
            else:
                self.to_client(sent.to, sent)

    def to_worker(self, worker: str, message: Message) -> None:
        assert worker in self.held, "sent to a worker that is gone"
        if isinstance(message, Call):
            assert worker not in self.draining
            assert message.remaining_ms is None or message.remaining_ms > 0
            assert (message.client, message.id) in self.open, "started although it is over"
            key = (message.client, message.id)
            assert not any(key in held for held in self.held.values()), "on two workers"
            assert key not in self.cancelled, "given up, and started again"
            assert self.blamed[key] < MAX_DEATHS, "poison"
            assert (message.retry == "resume") == (self.came[key] > 0)
            self.held[worker].add(key)
            if message.verb in UNIVERSAL:
                where = (worker, message.session)
                assert self.holding.get(self.session_of[key], where) == where, "away from its refs"

    def to_client(self, client: int, sent: Sent) -> None:
        assert client in self.clients, "sent to a client that is gone"
        for call_id in ended_calls(sent):
            key = (client, call_id)
            if isinstance(sent.message, End) and key not in self.open:
                continue  # others in the batch are still wanted
            assert key in self.open, "ended twice"
            self.open.remove(key)
            self.ended[key] += 1

    # What happens.

    @initialize(capacity=st.integers(1, 2))
    def one_worker_is_there(self, capacity: int) -> None:
        self.worker_comes("m/0", capacity)

    @rule(
        count=st.integers(1, 4),
        model=st.sampled_from(["m", "m", "m", "n", "unknown"]),
        budget=st.sampled_from([None, 50, 5000, 5000, 0]),
        priority=st.integers(-1, 1),
        window=st.sampled_from([0, 4]),
        size=st.sampled_from([1, 150, 500]),
        retry=st.sampled_from(["", "", "resume"]),
        session=st.sampled_from(["", "a"]),
        affinity=st.sampled_from(["", "", *Affinity]),
        verb=st.sampled_from(["generate", "ffi.call"]),
    )
    def calls_come(
        self,
        *,
        count: int,
        model: str,
        budget: int | None,
        priority: int,
        window: int,
        size: int,
        retry: str,
        session: str,
        affinity: str,
        verb: str,
    ) -> None:
        for call_id in (next(self.ids) for _ in range(count)):
            client = sorted(self.clients)[call_id % len(self.clients)]
            self.open.add((client, call_id))
            self.session_of[client, call_id] = (client, model, session)
            if retry:
                self.resumable.add((client, call_id))
            self.bench.call(
                call_id,
                client,
                model=model,
                remaining_ms=budget,
                priority=priority,
                window=window,
                size=size,
                retry=retry,
                session=session,
                affinity=affinity,
                verb=verb,
            )
            self.collect()

    @precondition(lambda self: self.bench.it._sessions._by_id)
    @rule(pick=st.integers(0, 9), refs=st.sampled_from([1, 1, 1, 0]))
    def session_holds(self, pick: int, refs: int) -> None:
        """A worker says so while it has a universal call of the session, and not else."""
        sessions = self.bench.it._sessions._by_id
        identity = sorted(sessions)[pick % len(sessions)]
        session = sessions[identity]
        client = session.key[1]  # type: ignore[index]
        if session.open and session.worker not in self.draining:
            self.bench.it.holds(session.worker, Holds(identity, refs))
            label = (client, session.model, session.key[2])  # type: ignore[index]
            self.holding.pop(label, None)
            if refs:
                self.holding[label] = (session.worker, identity)

    @rule(pick=st.integers(0, 9), session=st.sampled_from(["", "a"]), really=SELDOM)
    def session_ends(self, pick: int, session: str, *, really: bool) -> None:
        if not really:
            return
        client = sorted(self.clients)[pick % len(self.clients)]
        call_id = next(self.ids)
        self.open.add((client, call_id))
        self.holding.pop((client, "m", session), None)
        self.bench.call(call_id, client, verb="ffi.end", session=session)
        self.collect()

    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        if self.open:
            key = sorted(self.open)[pick % len(self.open)]
            self.cancelled.add(key)
            self.bench.it.cancel(*key, self.bench.now)
            self.collect()

    @rule(pick=st.integers(0, 99), count=st.integers(-1, 3))
    def credit(self, pick: int, count: int) -> None:
        if self.open:
            client, call_id = sorted(self.open)[pick % len(self.open)]
            self.bench.it.credit(client, call_id, count)
            self.collect()

    @rule(pick=st.integers(0, 9), really=SELDOM)
    def client_leaves(self, pick: int, *, really: bool) -> None:
        if not really:
            return
        client = sorted(self.clients)[pick % len(self.clients)]
        self.clients.remove(client)
        self.clients.add(next(self.client_numbers))
        self.open = {key for key in self.open if key[0] != client}
        self.bench.it.client_gone(client, self.bench.now)
        self.collect()

    @rule(
        name=st.sampled_from(["m/0", "m/1", "n/0"]),
        capacity=st.integers(1, 3),
    )
    def worker_comes(self, name: str, capacity: int) -> None:
        if name not in self.held:
            self.held[name] = set()
            self.capacity[name] = capacity
            self.bench.it.worker_ready(name, name[0], capacity, self.bench.now)
            self.collect()

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 9), really=SELDOM)
    def worker_drains(self, pick: int, *, really: bool) -> None:
        if not really:
            return
        worker = sorted(self.held)[pick % len(self.held)]
        self.draining.add(worker)
        self.lose(worker)
        self.bench.it.worker_draining(worker, self.bench.now)
        self.collect()

    @precondition(lambda self: self.held)
    @rule(
        pick=st.integers(0, 9),
        states=st.lists(st.sampled_from([None, *Held]), min_size=3, max_size=3),
        expected=st.booleans(),
        really=SELDOM,
    )
    def worker_dies(
        self, pick: int, states: list[Held | None], *, expected: bool, really: bool
    ) -> None:
        if really:
            worker = sorted(self.held)[pick % len(self.held)]
            self.worker_is_gone(worker, states, expected=expected)

    def lose(self, worker: str) -> None:
        """Sessions are lost with their worker: their universal calls start nowhere then."""
        for label, (where, _) in list(self.holding.items()):
            if where == worker:
                self.holding[label] = ("", "")

    def worker_is_gone(
        self, worker: str, states: list[Held | None], *, expected: bool = False
    ) -> None:
        held = self.held.pop(worker)
        self.draining.discard(worker)
        self.lose(worker)
        waiting = held & self.open
        board = {}
        for key, state in zip(sorted(held), states, strict=False):
            recorded = Held.STARTED if self.came[key] else state
            if recorded is not None:
                board[key] = OnRecord(recorded, 1)
        started = {key for key, (state, _) in board.items() if state in BLAMED}
        if not expected:
            self.blamed.update(started)
        self.bench.it.worker_gone(
            worker, "killed by SIGKILL", board, self.bench.now, expected=expected
        )
        self.collect()
        over = waiting & (self.cancelled | (started - self.resumable))
        assert not over & self.open, "what was started or given up fails at once"

    @precondition(lambda self: any(self.held.values()))
    @rule(
        pick=st.integers(0, 9),
        which=st.integers(0, 99),
        how=st.sampled_from(["result", "error", "end", "items", "late", "engine dead"]),
    )
    def worker_speaks(self, pick: int, which: int, how: str) -> None:
        busy = sorted(worker for worker, held in self.held.items() if held)
        worker = busy[pick % len(busy)]
        if how == "late":
            self.bench.result(10**7, 1, worker)
        else:
            client, call_id = sorted(self.held[worker])[which % len(self.held[worker])]
            mine = [key[1] for key in sorted(self.held[worker]) if key[0] == client]
            self.worker_says(how, worker, client, call_id, mine)
        self.collect()

    def worker_says(
        self, how: str, worker: str, client: int, call_id: int, mine: list[int]
    ) -> None:
        match how:
            case "items":
                entries = [[other, self.came[client, other]] for other in mine]
                self.came.update((client, other) for other in mine)
                self.bench.items(*entries, client=client, worker=worker)
            case "engine dead":
                self.held[worker].remove((client, call_id))
                self.draining.add(worker)
                self.lose(worker)
                if (client, call_id) in self.resumable & self.open:
                    self.blamed[client, call_id] += 1
                self.bench.error(call_id, client, worker, EngineDead("the engine died"))
            case "end":
                self.held[worker] -= {(client, other) for other in mine}
                self.bench.end(*mine, client=client, worker=worker)
            case "result":
                self.held[worker].remove((client, call_id))
                self.bench.result(call_id, client, worker)
            case "error":
                self.held[worker].remove((client, call_id))
                self.bench.error(call_id, client, worker)

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0, 10.0]), noticed=st.booleans())
    def time_passes(self, seconds: float, *, noticed: bool) -> None:
        self.bench.now += seconds
        if not noticed:
            return
        self.bench.it.expire(self.bench.now)
        for worker in self.bench.it.take_outstayed():  # it has to be replaced
            self.held[worker] &= self.bench.it._calls.by_key.keys()
            self.draining.add(worker)
            self.lose(worker)
            self.bench.it.worker_draining(worker, self.bench.now)
        self.collect()
        assert self.bench.it.next_deadline() > self.bench.now

    @rule(model=st.sampled_from("mn"), really=SELDOM)
    def model_is_refused_and_taken_back(self, model: str, *, really: bool) -> None:
        if not really:
            return
        self.bench.it.refuse(model, StartupFailed("broken"))
        self.collect()
        assert self.bench.it.queued(model) == 0
        self.bench.it.add_model(model)

    # What always holds.

    @invariant()
    def queues_count_what_is_in_them(self) -> None:
        for queue in self.bench.it._models.values():
            waiting = [
                call
                for call in self.bench.it._calls.by_key.values()
                if call.state is CallState.QUEUED and call.header.model == queue.name
            ]
            assert queue.waiting == len(waiting)
            assert queue.bytes == sum(call.size for call in waiting)
            running = [
                call
                for call in self.bench.it._calls.by_key.values()
                if call.state is CallState.RUNNING and call.header.model == queue.name
            ]
            assert queue.kept == sum(call.size for call in running if call.kept) <= 400
            entries = [entry for heap in queue.heaps() for entry in heap]
            assert {id(call) for call in waiting} <= {id(entry[2]) for entry in entries}
            came_back = [call for call in waiting if call.attempt]
            assert 0 <= queue.waiting - len(came_back) <= 4
            assert 0 <= queue.bytes - sum(call.size for call in came_back) <= 400

    @invariant()
    def workers_hold_what_was_given_to_them(self) -> None:
        for worker, held in self.held.items():
            assert self.bench.it.in_flight(worker) == len(held) <= self.capacity[worker]

    @invariant()
    def nothing_waits_while_a_worker_has_room(self) -> None:
        for worker, held in self.held.items():
            if worker not in self.draining and len(held) < self.capacity[worker]:
                queue = self.bench.it._models[worker[0]]
                pinned = [entry[2] for heap in queue.pinned.values() for entry in heap]
                for_others = [
                    c for c in pinned if c.pinned != worker and c.state is CallState.QUEUED
                ]
                assert queue.waiting == len(for_others)

    @invariant()
    def nothing_is_remembered_in_vain(self) -> None:
        held = set().union(*self.held.values())
        assert self.bench.it._calls.by_key.keys() == self.open | held
        assert self.bench.it._calls.resumable.keys() <= self.resumable & (self.open | held)
        assert sum(self.ended.values()) == len(self.ended), "ended once each"

    def teardown(self) -> None:
        for worker in list(self.held):
            self.worker_is_gone(worker, [Held.STARTED] * 3)
        for model in "mn":
            self.bench.it.remove_model(model, PoolClosed("over"))
        self.collect()
        assert not self.open, "calls without an end"
        assert self.bench.it.open_calls == 0
        assert self.bench.it._calls.resumable == {}
        assert self.bench.it.next_deadline() == math.inf


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
