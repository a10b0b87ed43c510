"""The worker's port over a real socket, with an engine that does what the test says."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import zmq

from vllmport.bridge.board import SIZE, Board, Held, OnRecord
from vllmport.bridge.codec import pack, unpack
from vllmport.bridge.errors import EngineDead, InvalidRequest
from vllmport.bridge.messages import (
    Bye,
    Call,
    Cancel,
    Credit,
    End,
    Error,
    Hello,
    Items,
    Message,
    Ping,
    Pong,
    Progress,
    Result,
    decode,
    encode,
)
from vllmport.worker.engine import Key, Partial, Port, Request
from vllmport.worker.port import MAX_BATCH, SocketPort


class Heard(NamedTuple):
    """One message that came out of the port."""

    message: Any
    value: Any


class Engine:
    """Notes what it is asked; `on_submit` may raise."""

    mode = "scripted"
    capacity = 8
    running_limit = 4
    steps = 0
    asleep = False
    info: dict[str, Any] = {}  # noqa: RUF012
    roots: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.aborted: list[Key] = []
        self.partial = Partial("decode", 3, {"outputs": []})
        self.on_submit: Callable[[Request], None] = self.requests.append

    def submit(self, request: Request) -> None:
        self.on_submit(request)

    def abort(self, key: Key) -> Partial:
        self.aborted.append(key)
        return self.partial

    def stats(self) -> dict[str, Any]:
        return {"unfinished": len(self.requests)}

    def run(self, port: Port) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Bench:
    """A port, its engine, and the supervisor's end of its socket."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.supervisor = context.socket(zmq.PAIR)
        self.supervisor.bind("inproc://back")
        self.worker = context.socket(zmq.PAIR)
        self.worker.connect("inproc://back")
        self.engine = Engine()
        buffer = bytearray(SIZE)
        self.board = Board(buffer)  # as the supervisor sees it
        self.port = SocketPort(self.worker, "m/0", Board(buffer))
        self.port.attach(self.engine)

    def tell(self, message: Message, value: Any = None) -> None:
        """Send something to the port and have it handled."""
        self.supervisor.send_multipart(encode(message, pack(value)))
        self.port.receive(1)

    def call(self, call_id: int, *, client: int = 1, window: int = 0, **fields: Any) -> Key:
        """Open a call; return its key."""
        budget = fields.pop("remaining_ms", None)
        args = fields.pop("args", {"prompt": "p"})
        fields = {"attempt": 1, **fields}
        self.tell(Call(call_id, "m", "generate", budget, window, client=client, **fields), args)
        return client, call_id

    def heard(self) -> list[Heard]:
        """Return all messages that came out since the last time."""
        messages = []
        while self.supervisor.poll(0):
            message, payload, buffers = decode(self.supervisor.recv_multipart())
            messages.append(Heard(message, unpack(payload, buffers)))
        return messages

    def only(self) -> Heard:
        """Return the one message that came out."""
        (heard,) = self.heard()
        return heard


@pytest.fixture
def bench() -> Iterator[Bench]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bench = Bench(context)
    yield bench
    context.destroy(linger=0)


def delta(text: str, index: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
    ids = list(map(ord, text))
    output = {"index": index, "text": text, "token_ids": ids, "finish_reason": finish_reason}
    return {"outputs": [output]}


def text_of(value: dict[str, Any]) -> str:
    return str(value["outputs"][0]["text"])


# Calls come in.


def test_call_is_handed_to_the_engine_with_its_options(bench: Bench) -> None:
    args = {"prompt": "p", "sampling_params": None}
    key = bench.call(7, client=3, window=4, priority=-2, request_id="mine", args=args)
    assert bench.engine.requests == [
        Request(key, "generate", args, stream=True, priority=-2, request_id="mine")
    ]
    assert bench.heard() == []


def test_request_that_the_engine_refuses_fails_at_once(bench: Bench) -> None:
    def refuse(_: Request) -> None:
        raise InvalidRequest.of("prompt", "p", "no such prompt")

    bench.engine.on_submit = refuse
    bench.call(7, attempt=2)
    message, details = bench.only()
    assert message == Error(
        7, "invalid_request", "no such prompt", worker="m/0", attempt=2, client=1
    )
    assert details == {"parameter": "prompt", "value": "p"}


def test_engine_that_raises_fails_the_call_and_the_port_goes_on(bench: Bench) -> None:
    def stumble(_: Request) -> None:
        raise ZeroDivisionError("oh")

    bench.engine.on_submit = stumble
    bench.call(7)
    message, details = bench.only()
    assert (message.id, message.code, message.message) == (
        7,
        "engine_error",
        "ZeroDivisionError: oh",
    )
    assert details == {"class": "builtins.ZeroDivisionError"}
    bench.engine.on_submit = bench.engine.requests.append
    assert bench.call(8) == bench.engine.requests[0].key


@pytest.mark.parametrize("args", [None, [1], "text", 3], ids=repr)
def test_payload_that_is_no_map_is_refused(bench: Bench, args: Any) -> None:
    bench.call(7, args=args)
    message, _ = bench.only()
    assert (message.id, message.code) == (7, "invalid_request")
    assert bench.engine.requests == []


def test_payload_that_is_no_value_is_refused(bench: Bench) -> None:
    header = encode(Call(7, "m", "generate", None, client=1))[0]
    bench.supervisor.send_multipart([header, b"\xc1"])
    bench.port.receive(1)
    message, _ = bench.only()
    assert (message.id, message.code) == (7, "protocol_error")


@pytest.mark.parametrize(
    "frames",
    [[b"\xc1", b"\xc0"], [b"alone"], encode(Hello([1], "x")), encode(Result(1))],
    ids=["no header", "one frame", "hello", "result"],
)
def test_message_that_no_worker_takes_is_dropped(bench: Bench, frames: list[bytes]) -> None:
    bench.supervisor.send_multipart(frames)
    bench.port.receive(1)
    assert bench.heard() == []
    assert bench.call(8) == bench.engine.requests[0].key


def test_receive_handles_everything_that_waits(bench: Bench) -> None:
    for call_id in range(1, 6):
        bench.supervisor.send_multipart(encode(Call(call_id, "m", "v", None), pack({})))
    bench.port.receive(0)
    assert [request.key[1] for request in bench.engine.requests] == [1, 2, 3, 4, 5]


def test_receive_returns_when_nothing_comes(bench: Bench) -> None:
    start = time.monotonic()
    bench.port.receive(0.05)
    assert 0.04 < time.monotonic() - start < 5


def test_ping_is_answered_with_what_the_engine_reports(bench: Bench) -> None:
    bench.call(1)
    bench.tell(Ping(5))
    assert bench.only() == (Pong(5), {"unfinished": 1})


def test_bye_closes_the_port(bench: Bench) -> None:
    assert not bench.port.closed
    bench.tell(Bye("stop"))
    assert bench.port.closed


def test_progress_goes_out_at_once(bench: Bench) -> None:
    bench.port.progress("loading", "half")
    assert bench.only().message == Progress("loading", "half")


# Results go out.


def test_results_of_one_step_go_out_together_with_worker_and_attempts(bench: Bench) -> None:
    for number, attempt in ((7, 2), (8, 1)):
        bench.port.finish(bench.call(number, client=3, attempt=attempt), {"text": number})
    bench.port.flush()
    assert bench.only() == (End([[7, 2], [8, 1]], 3, "m/0"), [{"text": 7}, {"text": 8}])


def test_one_flush_makes_one_message_for_each_client(bench: Bench) -> None:
    keys = [
        bench.call(n, client=client, window=8) for n, client in ((1, 1), (2, 1), (3, 2), (4, 1))
    ]
    for key in keys:
        bench.port.delta(key, delta(f"t{key[1]}"))
    assert bench.heard() == [], "nothing before the flush"
    bench.port.flush()
    first, second = bench.heard()
    assert first.message == Items([[1, 0], [2, 0], [4, 0]], 1)
    assert [text_of(value) for value in first.value] == ["t1", "t2", "t4"]
    assert second.message == Items([[3, 0]], 2)
    bench.port.flush()
    assert bench.heard() == []


def test_what_is_too_much_for_one_message_makes_as_few_as_it_can(bench: Bench) -> None:
    keys = [bench.call(number, window=4) for number in range(1, 301)]
    for key in keys:
        bench.port.delta(key, delta("x" * 1000))
    bench.port.flush()
    heard = bench.heard()
    size = 300 * len(pack([delta("x" * 1000)]).payload)
    assert size / MAX_BATCH <= len(heard) <= 2 * size / MAX_BATCH + 2
    told = [call_id for message, _ in heard for call_id, _ in message.entries]
    assert told == [call_id for _, call_id in keys]


def test_two_deltas_in_one_flush_are_one_item(bench: Bench) -> None:
    key = bench.call(1, window=8)
    bench.port.delta(key, delta("a"))
    bench.port.delta(key, delta("b"))
    bench.port.flush()
    message, (value,) = bench.only()
    assert message == Items([[1, 0]], 1)
    assert (text_of(value), value["outputs"][0]["token_ids"]) == ("ab", [97, 98])


def test_deltas_without_credit_wait_and_merge(bench: Bench) -> None:
    key = bench.call(1, window=2)
    for letter in "abcde":
        bench.port.delta(key, delta(letter))
        bench.port.flush()
    assert [text_of(heard.value[0]) for heard in bench.heard()] == ["a", "b"]
    bench.tell(Credit(1, 1, 1))
    bench.port.flush()
    message, (value,) = bench.only()
    assert (message, text_of(value)) == (Items([[1, 2]], 1), "cde")
    bench.tell(Credit(1, 1, 1))
    bench.port.flush()
    assert bench.heard() == [], "credit alone brings nothing"


def test_credit_of_one_stream_is_not_anothers(bench: Bench) -> None:
    poor, rich = bench.call(1, window=1), bench.call(2, window=8)
    for letter in "ab":
        bench.port.delta(poor, delta(letter))
        bench.port.delta(rich, delta(letter))
        bench.port.flush()
    assert [heard.message.entries for heard in bench.heard()] == [[[1, 0], [2, 0]], [[2, 1]]]


def test_end_comes_after_the_last_item_though_there_is_no_credit(bench: Bench) -> None:
    key = bench.call(1, window=1, attempt=2)
    for letter in "abc":
        bench.port.delta(key, delta(letter))
        bench.port.flush()
    bench.heard()
    bench.port.finish(key, {"usage": 3})
    bench.port.flush()
    items, end = bench.heard()
    assert (items.message, text_of(items.value[0])) == (Items([[1, 1]], 1), "bc")
    assert end == (End([[1, 2]], 1, "m/0"), [{"usage": 3}])


def test_streams_that_end_together_share_a_message(bench: Bench) -> None:
    keys = [bench.call(n, window=8) for n in (1, 2)]
    for key in keys:
        bench.port.finish(key, {"n": key[1]})
    bench.port.flush()
    assert bench.only() == (End([[1, 1], [2, 1]], 1, "m/0"), [{"n": 1}, {"n": 2}])


def test_output_after_the_end_is_dropped(bench: Bench) -> None:
    key = bench.call(1, window=8)
    bench.port.finish(key, {})
    bench.port.flush()
    bench.heard()
    bench.port.delta(key, delta("late"))
    bench.port.finish(key, {})
    bench.port.fail(key, RuntimeError("late"))
    bench.port.flush()
    assert bench.heard() == []


def test_failed_stream_sends_what_it_had_before_its_error(bench: Bench) -> None:
    key = bench.call(1, window=1)
    for letter in "abc":
        bench.port.delta(key, delta(letter))
        bench.port.flush()
    bench.heard()
    bench.port.fail(key, RuntimeError("oh"))
    items, error = bench.heard()
    assert text_of(items.value[0]) == "bc"
    assert (error.message.id, error.message.code) == (1, "engine_error")


def test_dead_engine_fails_every_call_once(bench: Bench) -> None:
    bench.call(1, client=1)
    bench.call(2, client=2, window=8)
    bench.port.fail_all(EngineDead("it died"))
    bench.port.flush()
    heard = [(h.message.id, h.message.client, h.message.code) for h in bench.heard()]
    assert heard == [(1, 1, "engine_dead"), (2, 2, "engine_dead")]


# What is on record.


def test_calls_up_to_what_the_engine_runs_are_started_and_the_others_wait(bench: Bench) -> None:
    keys = [bench.call(number) for number in range(1, 7)]
    assert [bench.board.calls()[key].held for key in keys] == [
        *[Held.STARTED] * 4,
        *[Held.WAITING] * 2,
    ]
    bench.port.finish(keys[1], None)
    bench.port.fail(keys[4], RuntimeError("it waited"))
    bench.port.flush()
    assert [bench.board.calls()[key].held for key in keys] == [
        Held.STARTED,
        Held.ENDED,
        Held.STARTED,
        Held.STARTED,
        Held.ENDED,
        Held.STARTED,
    ]


def test_a_call_is_started_while_the_engine_takes_it_in(bench: Bench) -> None:
    """What kills the worker there was caused by it, however many are before it."""
    seen: list[Held] = []
    bench.engine.on_submit = lambda request: seen.append(bench.board.calls()[request.key].held)
    for number in range(1, 7):
        bench.call(number)
    assert seen == [Held.STARTED] * 6


def test_a_call_that_says_something_has_started(bench: Bench) -> None:
    keys = [bench.call(number, window=8) for number in range(1, 7)]
    bench.port.delta(keys[5], delta("ab"))
    bench.port.delta(keys[5], delta("c"))
    assert bench.board.calls()[keys[5]] == OnRecord(Held.STARTED, 3)
    assert bench.board.calls()[keys[4]] == OnRecord(Held.WAITING, 0)


def test_a_refused_call_has_ended(bench: Bench) -> None:
    bench.call(7, args=None)
    assert bench.board.calls() == {(1, 7): OnRecord(Held.ENDED, 0)}


def test_each_turn_is_on_record_with_the_steps_of_the_engine(bench: Bench) -> None:
    bench.port.receive(0)
    bench.engine.steps = 5
    bench.port.receive(0)
    assert (bench.board.turns, bench.board.steps) == (2, 5)


def test_a_dead_engine_fails_what_it_had_started_and_leaves_the_rest_to_others(
    bench: Bench,
) -> None:
    keys = [bench.call(number) for number in range(1, 7)]
    for key in keys:
        bench.port.fail(key, EngineDead("it died"))
    bench.port.fail_all(EngineDead("it died"))
    assert [heard.message.id for heard in bench.heard()] == [1, 2, 3, 4]
    assert [bench.board.calls()[key].held for key in keys[4:]] == [Held.WAITING] * 2


# Streams that are run again.


def resumed(bench: Bench, *outputs: tuple[str, bool], room: int = 8, items: int = 2) -> Key:
    """Open a stream of which a worker before delivered the texts given."""
    delivered = {
        "exit": "killed",
        "items": items,
        "room": room,
        "outputs": [
            {
                "index": index,
                "token_ids": [ord(character) for character in text],
                "characters": len(text),
                "finished": finished,
            }
            for index, (text, finished) in enumerate(outputs)
        ],
    }
    return bench.call(1, window=8, attempt=2, retry="resume", args=[{"prompt": "p"}, delivered])


def test_a_resumed_stream_goes_on_where_it_was(bench: Bench) -> None:
    key = resumed(bench, ("abc", False))
    assert bench.engine.requests[0].args == {"prompt": "p"}
    for text in ("a", "bcd", "e"):
        bench.port.delta(key, delta(text))
        bench.port.flush()
    first, second = bench.heard()
    assert (first.message, text_of(first.value[0])) == (Items([[1, 2]], 1), "d")
    assert first.value[0]["outputs"][0]["token_ids"] == [ord("d")]
    assert (second.message, text_of(second.value[0])) == (Items([[1, 3]], 1), "e")
    bench.port.finish(key, {"usage": 5})
    bench.port.flush()
    assert bench.only() == (End([[1, 2]], 1, "m/0"), [{"usage": 5}])


def test_a_resumed_stream_has_the_credit_that_was_left(bench: Bench) -> None:
    key = resumed(bench, ("a", False), room=1)
    for letter in "abcd":
        bench.port.delta(key, delta(letter))
        bench.port.flush()
    assert text_of(bench.only().value[0]) == "b"
    bench.tell(Credit(1, 1, 1))
    bench.port.flush()
    assert text_of(bench.only().value[0]) == "cd"


def test_a_resumed_stream_that_had_all_but_its_end_ends(bench: Bench) -> None:
    key = resumed(bench, ("ab", True))
    bench.port.delta(key, delta("ab", finish_reason="stop"))
    bench.port.finish(key, {})
    bench.port.flush()
    assert bench.only().message == End([[1, 2]], 1, "m/0")


def test_a_finish_reason_that_had_not_come_comes_though_all_tokens_had(bench: Bench) -> None:
    key = resumed(bench, ("ab", False))
    bench.port.delta(key, delta("ab", finish_reason="length"))
    bench.port.flush()
    (output,) = bench.only().value[0]["outputs"]
    assert (output["text"], output["token_ids"], output["finish_reason"]) == ("", [], "length")


def test_each_output_of_a_resumed_stream_goes_on_by_itself(bench: Bench) -> None:
    key = resumed(bench, ("ab", True), ("x", False))
    bench.port.delta(key, delta("a", 0))
    bench.port.delta(key, delta("xy", 1))
    bench.port.delta(key, delta("b", 0, "stop"))
    bench.port.delta(key, delta("pq", 2))
    bench.port.flush()
    outputs = bench.only().value[0]["outputs"]
    assert [(output["index"], output["text"]) for output in outputs] == [(1, "y"), (2, "pq")]


def test_logprobs_are_cut_with_their_tokens_and_text_by_its_own_length(bench: Bench) -> None:
    """The engine may hand out a text later than its tokens, and then at another place."""
    key = resumed(bench, ("abc", False))
    rows = [{97: 1}, {98: 2}, {99: 3}, {100: 4}]
    output = {"index": 0, "text": "ab", "token_ids": [97, 98, 99, 100], "logprobs": rows}
    bench.port.delta(key, {"outputs": [{**output, "finish_reason": None}]})
    bench.port.delta(key, delta("cde"))
    bench.port.flush()
    (joined,) = bench.only().value[0]["outputs"]
    assert joined["text"] == "de"
    assert joined["token_ids"] == [100, ord("c"), ord("d"), ord("e")]
    assert joined["logprobs"] == [{100: 4}]


@pytest.mark.parametrize(
    ("before", "deltas", "why"),
    [
        (("abc", False), [delta("ab"), delta("x"), delta("y")], "token 3 of output 0 differs"),
        (("abc", False), [delta("ab", finish_reason="stop")], "output 0 ends after 2 tokens"),
        (("abc", False), [delta("ab")], "output 0 ends after 2 tokens"),
        (("ab", True), [delta("abc")], "output 0 goes on after its end"),
    ],
    ids=["another token", "a sooner end", "no more", "a later end"],
)
def test_a_stream_that_comes_out_different_fails(
    bench: Bench, before: tuple[str, bool], deltas: list[dict[str, Any]], why: str
) -> None:
    key = resumed(bench, before)
    for value in deltas:
        bench.port.delta(key, value)
    bench.port.finish(key, {})
    assert bench.engine.aborted == [], "not in the middle of a step"
    bench.port.flush()
    message, details = bench.only()
    assert (message.id, message.code, message.retryable) == (1, "worker_lost", True)
    assert why in message.message
    assert (message.attempt, details["exit"]) == (2, "killed")
    assert bench.engine.aborted == [key]
    bench.port.flush()
    assert bench.heard() == []


# What cannot travel.


def test_result_that_cannot_travel_is_an_error(bench: Bench) -> None:
    key = bench.call(1)
    bench.port.finish(key, object())
    bench.port.flush()
    message, _ = bench.only()
    assert (message.id, message.code, message.worker) == (1, "engine_error", "m/0")
    assert "cannot travel" in message.message


def test_delta_that_cannot_travel_fails_its_call_alone(bench: Bench) -> None:
    bad, good = bench.call(1, window=8), bench.call(2, window=8)
    bench.port.delta(bad, {"outputs": [{"index": 0, "text": object(), "token_ids": [1]}]})
    bench.port.delta(good, delta("fine"))
    bench.port.flush()
    by_kind = {type(heard.message): heard for heard in bench.heard()}
    assert by_kind[Error].message.id == 1
    assert by_kind[Items].message.entries == [[2, 0]]
    assert bench.engine.aborted == [bad]
    bench.port.finish(good, {})
    bench.port.flush()
    assert bench.only().message == End([[2, 1]], 1, "m/0")


def test_stream_whose_last_delta_cannot_travel_ends_once(bench: Bench) -> None:
    key = bench.call(1, window=8)
    bench.port.delta(key, {"outputs": [{"index": 0, "text": object(), "token_ids": [1]}]})
    bench.port.finish(key, {})
    bench.port.flush()
    message, _ = bench.only()
    assert (message.id, message.code) == (1, "engine_error")


def test_summary_that_cannot_travel_fails_its_call_alone(bench: Bench) -> None:
    bad, good = bench.call(1, window=8), bench.call(2, window=8)
    bench.port.finish(bad, {"bad": object()})
    bench.port.finish(good, {})
    bench.port.flush()
    by_kind = {type(heard.message): heard.message for heard in bench.heard()}
    assert by_kind[Error].id == 1
    assert by_kind[End].entries == [[2, 1]]


def test_error_whose_details_cannot_travel_still_says_what_went_wrong(bench: Bench) -> None:
    key = bench.call(1)
    bench.port.fail(key, InvalidRequest.of("prompt", object(), "no such prompt"))
    message, details = bench.only()
    assert message.message == "no such prompt"
    assert "object" in details["value"]


# Deadlines and cancels.


def test_passed_deadline_aborts_and_tells_how_far_it_came(bench: Bench) -> None:
    key = bench.call(1, remaining_ms=30, attempt=2)
    assert time.monotonic() < bench.port.next_deadline() <= time.monotonic() + 0.03
    assert bench.heard() == []
    time.sleep(max(0.0, bench.port.next_deadline() - time.monotonic()))  # a clock, not a condition
    bench.port.receive(0)
    message, details = bench.only()
    assert (message.code, message.phase, message.attempt) == ("deadline_exceeded", "decode", 2)
    assert details == {"tokens": 3, "partial": {"outputs": []}}
    assert bench.engine.aborted == [key]
    assert bench.port.next_deadline() == math.inf
    bench.port.finish(key, "too late")
    assert bench.heard() == []


def test_finished_call_has_no_deadline_any_more(bench: Bench) -> None:
    call, stream = bench.call(1, remaining_ms=60_000), bench.call(2, remaining_ms=60_000, window=8)
    bench.port.finish(call, None)
    bench.port.finish(stream, {})
    bench.port.flush()
    assert bench.port.next_deadline() == math.inf


def test_cancelled_call_is_aborted_and_answered(bench: Bench) -> None:
    key = bench.call(1, client=3)
    bench.engine.partial = Partial("waiting", 0, None)
    bench.tell(Cancel(1, 3))
    message, details = bench.only()
    assert (message.id, message.client, message.code) == (1, 3, "cancelled")
    assert (message.phase, details["tokens"]) == ("waiting", 0)
    assert bench.engine.aborted == [key]


def test_cancelled_stream_sends_what_it_had_first(bench: Bench) -> None:
    key = bench.call(1, window=8)
    bench.port.delta(key, delta("a"))
    bench.tell(Cancel(1, 1))
    assert [type(heard.message) for heard in bench.heard()] == [Items, Error]
    bench.port.flush()
    assert bench.heard() == []


@pytest.mark.parametrize("message", [Cancel(9, 1), Cancel(1, 9), Credit(9, 1, 1)], ids=str)
def test_word_about_a_call_that_is_not_open_changes_nothing(bench: Bench, message: Message) -> None:
    bench.call(1)
    bench.tell(message)
    assert bench.engine.aborted == []
    assert bench.heard() == []
