"""The verbs of the pool itself."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from deciders import Deciders, Sent, ended_calls
from vllmport.bridge.codec import Array, Bytes, Packed, pack
from vllmport.bridge.errors import InvalidRequest, StartupFailed
from vllmport.bridge.limits import MAX_CONTROL
from vllmport.bridge.messages import Call, Cancel, End, Error, Items, Ping, Result
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.control import (
    MAX_NESTED,
    PONG_WAIT,
)
from vllmport.pool.supervisor.specification import MAX_ENV, MAX_MODEL_NAME, spec_from
from wire_strategies import values

POLICY = Policy(max_queue=3, max_restarts=2, backoff_initial=0.5)
ALIASES = {"tiny": "/models/tiny", "echo": "echo", "nick": "org/model"}
ECHO: dict[str, Any] = {"model": "echo", "name": "m"}


class Bench(Deciders):
    """The deciders, with shorter words for calls to the pool."""

    def __init__(self) -> None:
        super().__init__(POLICY)
        self._ids = iter(range(1, 10**6))

    def ask(self, verb: str, args: Any = None, client: int = 1, **fields: Any) -> int:
        """Call a verb; return the id of the call."""
        call_id = next(self._ids)
        budget = fields.pop("remaining_ms", None)
        self.call(client, Call(call_id, "", verb, budget, **fields), args)
        return call_id

    def answer(self) -> Any:
        """Return the value of the one RESULT that was sent."""
        (sent,) = self.take()
        assert isinstance(sent.message, Result), sent
        return sent.value

    def error(self) -> Error:
        """Return the one ERROR that was sent."""
        (sent,) = self.take()
        assert isinstance(sent.message, Error), sent
        return sent.message


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def loaded(bench: Bench) -> Bench:
    """A pool with one READY worker of model m, loaded by client 1."""
    bench.ask("load", ECHO)
    bench.bring_up("m")
    bench.take()
    return bench


# What is refused.


@pytest.mark.parametrize(
    ("verb", "args", "complaint"),
    [
        ("explode", {}, "known: engine_config, events, load"),
        ("load", [1], "map of arguments"),
        ("release", {}, "name must be text"),
        ("unload", {"name": 7}, "name must be text, not 7"),
        ("unload", {"name": "other"}, "no model 'other'"),
        ("engine_config", {"name": "other"}, "no model 'other'"),
        ("engine_config", {"name": ["x" * 1000] * 1000}, "name must be text"),
    ],
)
def test_what_cannot_be_done_is_an_invalid_request(
    bench: Bench, verb: str, args: Any, complaint: str
) -> None:
    call_id = bench.ask(verb, args)
    error = bench.error()
    assert (error.id, error.code) == (call_id, "invalid_request")
    assert complaint in error.message
    assert len(error.message) < 500


def test_arguments_that_are_no_value_are_a_protocol_error(bench: Bench) -> None:
    bench.control.call(1, Call(1, "", "status", None), Packed(b"\xc1", []), bench.now)
    bench.act()
    assert bench.error().code == "protocol_error"


def test_arguments_are_bounded_in_size_and_depth(bench: Bench) -> None:
    """The supervisor reads them itself, and has to show and compare them."""
    bench.ask("load", {"engine_args": {"a": "x" * MAX_CONTROL}})
    assert "the limit is" in bench.error().message
    deep: Any = 1
    for _ in range(MAX_NESTED):
        deep = [deep]
    bench.ask("load", {"engine_args": deep})
    assert "levels deep" in bench.error().message


def test_an_id_that_is_open_is_refused_and_the_first_call_goes_on(bench: Bench) -> None:
    bench.call(1, Call(7, "", "load", None), ECHO)
    bench.call(1, Call(7, "", "status", None))
    assert bench.error().code == "protocol_error"
    bench.bring_up("m")
    assert bench.answer()["state"] == "READY"


@given(
    st.sampled_from(["load", "release", "unload", "status", "engine_config", "shutdown"]),
    st.one_of(
        values,
        st.fixed_dictionaries({}, optional=dict.fromkeys(["name", "wait", "drain"], values)),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ["model", "name", "env", "replicas", "engine_args", "v1_multiprocessing"], values
            ),
        ),
    ),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_client_sends_it_gets_an_answer_and_nothing_breaks(verb: str, args: Any) -> None:
    bench = Bench()
    call_id = bench.ask(verb, args, remaining_ms=1000)
    bench.advance(2)
    assert [ended for sent in bench.take() for ended in ended_calls(sent)] == [call_id]
    bench.ask("status")
    assert bench.answer()


# load


def test_load_is_answered_when_all_replicas_are_ready(bench: Bench) -> None:
    bench.ask("load", {**ECHO, "replicas": 2})
    bench.register("m/0")
    bench.ready("m/0")
    assert bench.take() == []
    bench.register("m/1")
    bench.ready("m/1")
    model = bench.answer()
    assert (model["name"], model["state"], model["replicas"], model["leases"]) == (
        "m",
        "READY",
        2,
        1,
    )


def test_load_without_waiting_is_answered_at_once(bench: Bench) -> None:
    bench.ask("load", {**ECHO, "wait": False})
    assert bench.answer()["state"] == "STARTING"


def test_load_of_what_is_ready_is_answered_at_once(loaded: Bench) -> None:
    loaded.ask("load", ECHO, client=2)
    assert loaded.answer()["leases"] == 2


def test_load_as_a_stream_tells_how_it_goes(bench: Bench) -> None:
    call_id = bench.ask("load", ECHO, window=8)
    bench.register("m/0")
    for stage in ("weights", "warm-up"):
        bench.now += 1
        bench.fleet.workers["m/0"].stage = stage
        bench.control.progress("m/0", bench.now)
    bench.control.progress("unknown", bench.now)
    bench.act()
    bench.ready("m/0")
    first, second, end = bench.take()
    assert isinstance(first.message, Items)
    assert isinstance(second.message, Items)
    assert isinstance(end.message, End)
    assert [first.message.entries, second.message.entries] == [[[call_id, 0]], [[call_id, 1]]]
    assert first.value == [
        {"worker": "m/0", "state": "LOADING", "stage": "weights", "elapsed": 1.0}
    ]
    assert end.message.entries == [[call_id, 1]]
    assert end.value[0]["state"] == "READY"


def test_a_load_that_fails_gives_the_reason_and_takes_the_lease_back(bench: Bench) -> None:
    bench.ask("load", ECHO)
    bench.register("m/0")
    bench.fleet.failed("m/0", StartupFailed("no such file", phase="load"))
    bench.die("m/0")
    error = bench.error()
    assert (error.code, error.message) == ("startup_failed", "no such file")
    assert bench.fleet.models == {}, "nobody wants it any more"


def test_all_who_wait_for_a_load_that_fails_are_told(bench: Bench) -> None:
    for client in (1, 2, 2):
        bench.ask("load", ECHO, client=client)
    bench.fleet.failed("m/0", StartupFailed("no such file", phase="load"))
    bench.die("m/0")
    assert [(sent.to, type(sent.message)) for sent in bench.take()] == [
        (1, Error),
        (2, Error),
        (2, Error),
    ]
    assert bench.removed == ["m"]


def test_a_load_waits_for_a_replica_that_was_given_up_and_is_started_anew(bench: Bench) -> None:
    bench.ask("load", {**ECHO, "replicas": 2, "wait": False})
    bench.register("m/0")
    bench.ready("m/0")
    bench.fleet.failed("m/1", StartupFailed("unlucky", phase="load"))
    bench.die("m/1")
    bench.take()
    bench.ask("load", {**ECHO, "replicas": 2}, client=2)
    assert "m/1" in bench.processes
    bench.bring_up("m")
    assert bench.answer()["state"] == "READY"


def test_who_waits_for_a_load_is_told_when_the_model_is_unloaded(bench: Bench) -> None:
    bench.ask("load", ECHO, client=1)
    bench.ask("unload", {"name": "m"}, client=2)
    bench.die("m/0")
    told = {sent.to: sent.message for sent in bench.take()}
    assert isinstance(told[2], Result)
    assert isinstance(told[1], Error)
    assert told[1].code == "pool_closed"


def test_cancelling_a_load_gives_its_lease_back(bench: Bench) -> None:
    """Nobody has a handle to release it by; without another lease the model goes."""
    call_id = bench.ask("load", ECHO)
    bench.control.cancel(2, call_id, bench.now)
    bench.control.cancel(1, call_id, bench.now)
    bench.control.cancel(1, call_id, bench.now)
    bench.act()
    assert bench.error().code == "cancelled"
    assert bench.fleet.models["m"].leaving


def test_a_load_whose_deadline_passes_gives_its_lease_back(bench: Bench) -> None:
    bench.ask("load", ECHO, remaining_ms=1000)
    bench.advance(2)
    assert bench.error().code == "deadline_exceeded"
    assert bench.fleet.models["m"].leaving


def test_a_client_that_leaves_while_it_waits_is_forgotten(bench: Bench) -> None:
    bench.ask("load", ECHO, remaining_ms=1000)
    bench.client_gone(1)
    bench.die("m/0")
    bench.advance(5)
    assert bench.take() == []
    assert bench.removed == ["m"]


# release, unload, shutdown, engine_config


def test_release_of_the_last_lease_stops_the_model(loaded: Bench) -> None:
    loaded.ask("release", {"name": "m"})
    assert loaded.answer() is None
    assert "m/0" in loaded.said_bye


def test_unload_is_answered_when_the_model_is_gone(loaded: Bench) -> None:
    loaded.ask("unload", {"name": "m"}, client=2)
    assert loaded.take() == []
    loaded.die("m/0")
    assert loaded.answer() is None
    loaded.ask("unload", {"name": "m"})
    assert loaded.error().code == "invalid_request"


def test_unload_waits_for_running_calls_and_fails_waiting_ones(loaded: Bench) -> None:
    for call_id in (101, 102, 103):
        loaded.call(2, Call(call_id, "m", "generate", None))
    loaded.take()
    loaded.ask("unload", {"name": "m"})
    assert "m/0" not in loaded.said_bye
    for call_id in (101, 102):
        loaded.dispatcher.result("m/0", 2, call_id, [b"\x92\x0d\x01", b"\xc0"], loaded.now)
        loaded.act()
    assert "m/0" in loaded.said_bye
    loaded.take()
    loaded.die("m/0")
    told = {sent.to: sent.message for sent in loaded.take()}
    assert isinstance(told[2], Error)
    assert (told[2].id, told[2].code) == (103, "pool_closed")
    assert isinstance(told[1], Result)


def test_shutdown_is_answered_before_the_pool_stops(bench: Bench) -> None:
    bench.ask("shutdown")
    bench.ask("shutdown", {"drain": False})
    assert [type(sent.message) for sent in bench.take()] == [Result, Result]
    assert bench.shut_down == [True, False]


def test_engine_config_is_what_the_engine_said(loaded: Bench) -> None:
    loaded.ask("engine_config", {"name": "m"})
    assert loaded.answer() == {"max_model_len": 8}


# status


def test_status_of_an_empty_pool(bench: Bench) -> None:
    bench.ask("status")
    status = bench.answer()
    assert (status["models"], status["workers"]) == ([], [])
    assert status["counters"]["calls"] == 0


def test_status_asks_the_engines_and_waits_for_their_answer(loaded: Bench) -> None:
    loaded.fleet.spawned("m/0", 77)
    loaded.ask("status")
    ((to, message, _),) = loaded.take()
    assert to == "m/0"
    assert isinstance(message, Ping)
    loaded.control.pong("m/0", message.token + 1, {})
    loaded.act()
    assert loaded.take() == []
    loaded.control.pong("m/0", message.token, {"unfinished": 3, "steps": 9})
    loaded.act()
    (worker,) = loaded.answer()["workers"]
    expected = {"id": "m/0", "state": "READY", "pid": 77, "unfinished": 3, "steps": 9}
    assert worker | expected == worker


def test_status_does_not_wait_for_an_engine_that_says_nothing(loaded: Bench) -> None:
    loaded.ask("status")
    loaded.take()
    assert loaded.next_deadline() == loaded.now + PONG_WAIT
    loaded.advance(PONG_WAIT)
    assert loaded.answer()["workers"][0]["unfinished"] == 0


def test_status_keeps_to_a_deadline_that_is_shorter(loaded: Bench) -> None:
    loaded.ask("status", remaining_ms=10)
    loaded.take()
    loaded.advance(0.01)
    assert loaded.answer()


def test_status_names_environment_variables_but_not_their_values(bench: Bench) -> None:
    bench.ask("load", {**ECHO, "env": {"HF_TOKEN": "secret"}, "wait": False})
    assert bench.answer()["env"] == ["HF_TOKEN"]
    bench.ask("status")
    assert "secret" not in repr(bench.answer())


def test_status_shows_queues_and_reasons(bench: Bench) -> None:
    bench.ask("load", {**ECHO, "wait": False})
    bench.call(2, Call(101, "m", "generate", None))
    bench.fleet.failed("m/0", InvalidRequest("no such dtype"))
    bench.take()
    bench.ask("status")
    status = bench.answer()
    assert status["models"][0]["queued"] == 1
    assert status["workers"][0]["error"] == "no such dtype"


def test_a_status_that_cannot_travel_is_an_error_and_no_more(bench: Bench) -> None:
    big = {"a": Array("int8", (2**19,), bytes(2**19)), "b": "x" * 2**19}
    for number in range(40):
        bench.ask(
            "load", {"model": "echo", "name": f"m{number}", "engine_args": big, "wait": False}
        )
    bench.take()
    bench.ask("status")
    error = bench.error()
    assert error.code == "engine_error"
    assert "cannot travel" in error.message


# Specifications.

EAGER = {"enforce_eager": True}
"""What the bundled model is given unless it was asked otherwise."""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, ModelSpec("tiny", "/models/tiny", v1_multiprocessing="off", engine_args=EAGER)),
        (
            {"model": "tiny", "v1_multiprocessing": "on"},
            ModelSpec("tiny", "/models/tiny", v1_multiprocessing="on", engine_args=EAGER),
        ),
        ({"model": "echo", "name": "m"}, ModelSpec("m", "echo", "echo")),
        ({"model": "nick", "replicas": 2}, ModelSpec("nick", "org/model", replicas=2)),
        (
            {"model": "a/b", "name": None, "env": None, "engine_args": {"dtype": "auto"}},
            ModelSpec("a/b", "a/b", engine_args={"dtype": "auto"}),
        ),
        (
            {"model": "a/b", "engine_args": {"tokenizer": "nick"}},
            ModelSpec("a/b", "a/b", engine_args={"tokenizer": "org/model"}),
        ),
    ],
    ids=["nothing", "tiny on", "echo", "alias", "nils", "alias of a tokenizer"],
)
def test_what_callers_write_becomes_a_specification(
    args: dict[str, Any], expected: ModelSpec
) -> None:
    assert spec_from(args, ALIASES) == expected


@pytest.mark.parametrize(
    ("args", "parameter"),
    [
        ({"model": 7}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "a\0b"}, "model"),
        ({"name": ["m"]}, "name"),
        ({"name": "x" * (MAX_MODEL_NAME + 1)}, "name"),
        ({"name": "ü" * (MAX_MODEL_NAME // 2 + 1)}, "name"),
        ({"v1_multiprocessing": "maybe"}, "v1_multiprocessing"),
        ({"v1_multiprocessing": ["on"]}, "v1_multiprocessing"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"replicas": 10**9}, "replicas"),
        ({"replicas": "2"}, "replicas"),
        ({"env": ["A=1"]}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"env": {"A": "a\0b"}}, "env"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"": "c"}}, "env"),
        ({"env": {"A": "x" * MAX_ENV}}, "env"),
        ({"engine_args": [1]}, "engine_args"),
        ({"engine_args": {1: 2}}, "engine_args"),
    ],
)
def test_a_bad_specification_is_refused_by_the_name_of_the_argument(
    args: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        spec_from(args, ALIASES)
    assert caught.value.parameter == parameter


# Any order of events.

SELDOM = st.integers(0, 4).map(lambda number: number == 4)


class AnyOrder(RuleBasedStateMachine):
    """Everything that the supervisor decides, together: each call ends once, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.client_numbers = iter(range(1, 10**6))
        self.clients = [next(self.client_numbers), next(self.client_numbers)]
        self.open: set[tuple[int, int]] = set()
        self.held: dict[str, set[tuple[int, int]]] = {}

    def collect(self) -> None:
        for sent in self.bench.take():
            if isinstance(sent.to, int):
                self.to_client(sent)
            elif isinstance(sent.message, Call):
                assert sent.to in self.bench.processes
                key = (sent.message.client, sent.message.id)
                assert key in self.open
                self.held.setdefault(sent.to, set()).add(key)
            else:
                assert isinstance(sent.message, Cancel | Ping)

    def to_client(self, sent: Sent) -> None:
        assert sent.to in self.clients
        for call_id in ended_calls(sent):
            assert (sent.to, call_id) in self.open, "ended twice"
            self.open.remove((int(sent.to), call_id))

    def ask(self, verb: str, args: Any, pick: int, **fields: Any) -> None:
        client = self.clients[pick % 2]
        call_id = next(self.bench._ids)
        self.open.add((client, call_id))
        header = Call(
            call_id, fields.pop("model", ""), verb, fields.pop("remaining_ms", None), **fields
        )
        self.bench.call(client, header, args)
        self.collect()

    @initialize()
    def one_model_is_there(self) -> None:
        self.load("a", 1, 0, wait=False, window=0, budget=None)
        self.process_goes_on(0, ready=True)

    @rule(
        name=st.sampled_from("ab"),
        replicas=st.sampled_from([1, 1, 2]),
        pick=st.integers(0, 1),
        wait=st.booleans(),
        window=st.sampled_from([0, 8]),
        budget=st.sampled_from([None, 500]),
    )
    def load(
        self, name: str, replicas: int, pick: int, *, wait: bool, window: int, budget: int | None
    ) -> None:
        args = {"model": "echo", "name": name, "replicas": replicas, "wait": wait}
        self.ask("load", args, pick, window=window, remaining_ms=budget)

    @rule(
        count=st.integers(1, 3),
        pick=st.integers(0, 1),
        model=st.sampled_from("aab"),
        budget=st.sampled_from([None, 500, 5000]),
    )
    def generate(self, count: int, pick: int, model: str, budget: int | None) -> None:
        for _ in range(count):
            self.ask("generate", {"prompt": "x"}, pick, model=model, remaining_ms=budget)

    @rule(
        verb=st.sampled_from(["release", "engine_config", "status", "status", "unknown"]),
        name=st.sampled_from("ab"),
        pick=st.integers(0, 1),
    )
    def other_verb(self, verb: str, name: str, pick: int) -> None:
        self.ask(verb, {"name": name}, pick)

    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 1), really=SELDOM)
    def unload(self, name: str, pick: int, *, really: bool) -> None:
        if really:
            self.ask("unload", {"name": name}, pick)

    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        if self.open:
            client, call_id = sorted(self.open)[number % len(self.open)]
            self.bench.dispatcher.cancel(client, call_id, self.bench.now)
            self.bench.control.cancel(client, call_id, self.bench.now)
            self.bench.act()
            self.collect()

    @rule(pick=st.integers(0, 1), really=SELDOM)
    def client_leaves(self, pick: int, *, really: bool) -> None:
        if really:
            gone = self.clients.pop(pick)
            self.clients.append(next(self.client_numbers))
            self.open = {key for key in self.open if key[0] != gone}
            self.bench.client_gone(gone)
            self.collect()

    @precondition(lambda self: self.bench.processes)
    @rule(number=st.integers(0, 9), ready=st.booleans())
    def process_goes_on(self, number: int, *, ready: bool) -> None:
        worker = sorted(self.bench.processes)[number % len(self.bench.processes)]
        self.bench.register(worker)
        if ready:
            self.bench.ready(worker)
        self.collect()

    @precondition(lambda self: self.bench.processes)
    @rule(
        number=st.integers(0, 9),
        reason=st.sampled_from([None, None, "no such file"]),
        really=SELDOM,
    )
    def process_dies(self, number: int, reason: str | None, *, really: bool) -> None:
        if not really:
            return
        worker = sorted(self.bench.processes)[number % len(self.bench.processes)]
        if reason is not None:
            self.bench.fleet.failed(worker, StartupFailed(reason, phase="load"))
        self.die(worker)

    def die(self, worker: str) -> None:
        waiting = self.held.pop(worker, set()) & self.open
        self.bench.die(worker)
        self.collect()
        assert not waiting & self.open, "calls on a lost worker fail at once"

    @precondition(lambda self: self.bench.killed | self.bench.said_bye)
    @rule()
    def processes_obey(self) -> None:
        for worker in sorted(self.bench.killed | self.bench.said_bye):
            self.die(worker)

    @precondition(lambda self: any(self.held.values()))
    @rule(number=st.integers(0, 9))
    def call_ends(self, number: int) -> None:
        running = sorted((worker, key) for worker, held in self.held.items() for key in held)
        worker, (client, call_id) = running[number % len(running)]
        self.held[worker].remove((client, call_id))
        frames: list[Bytes] = [pack([13, call_id, client]).payload, b"\xc0"]
        self.bench.dispatcher.result(worker, client, call_id, frames, self.bench.now)
        self.bench.act()
        self.collect()

    @precondition(lambda self: self.bench.processes)
    @rule(number=st.integers(0, 9), token=st.integers(1, 9))
    def worker_tells(self, number: int, token: int) -> None:
        worker = sorted(self.bench.processes)[number % len(self.bench.processes)]
        self.bench.control.progress(worker, self.bench.now)
        self.bench.control.pong(worker, token, {"unfinished": 1})
        self.bench.act()
        self.collect()

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 7.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.advance(seconds)
        self.collect()

    @invariant()
    def dispatcher_and_fleet_agree_on_the_models(self) -> None:
        assert self.bench.dispatcher._models.keys() == self.bench.fleet.models.keys()

    @invariant()
    def only_processes_that_live_have_places(self) -> None:
        busy = {worker for worker, held in self.held.items() if held}
        assert busy <= self.bench.processes.keys()
        assert self.bench.processes.keys() <= self.bench.fleet.workers.keys()

    @invariant()
    def status_can_always_be_told(self) -> None:
        assert pack(self.bench.control.status())

    def teardown(self) -> None:
        """All models are unloaded, all processes end: no call is left without its end."""
        for name in list(self.bench.fleet.models):
            self.bench.fleet.unload(name, self.bench.now)
        self.bench.act()
        for worker in sorted(self.bench.processes):
            self.die(worker)
        self.bench.advance(PONG_WAIT)
        self.collect()
        assert not self.open, "calls without an end"
        assert (self.bench.fleet.models, self.bench.processes) == ({}, {})
        assert self.bench.dispatcher.open_calls == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
