"""The worker's port over a real socket, with an engine that does what the test says."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import zmq

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
from vllmport.worker.port import SocketPort


class Heard(NamedTuple):
    """One message that came out of the port."""

    message: Any
    value: Any


class Engine:
    """Notes what it is asked; `on_submit` may raise."""

    mode = "scripted"
    capacity = 8
    info: dict[str, Any] = {}  # noqa: RUF012

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
        self.port = SocketPort(self.worker, "m/0")
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


def delta(text: str) -> dict[str, Any]:
    ids = list(map(ord, text))
    return {"outputs": [{"index": 0, "text": text, "token_ids": ids, "finish_reason": None}]}


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
    bench.port.delta(bad, {"outputs": [{"index": 0, "text": object()}]})
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
    bench.port.delta(key, {"outputs": [{"index": 0, "text": object()}]})
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
