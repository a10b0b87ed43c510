"""Which workers there have to be, and what is done to each."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllmport.bridge.errors import (
    EngineDead,
    InvalidRequest,
    StartupFailed,
    VllmportError,
)
from vllmport.bridge.states import WorkerState
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.actions import (
    Action,
    Drain,
    Kill,
    Refuse,
    Removed,
    SayBye,
    Serve,
    Settled,
    Spawn,
)
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.places import ALIVE

NOW = 1000.0
POLICY = Policy(
    drain_timeout=30.0,
    stop_timeout=5.0,
    load_timeout=600.0,
    backoff_initial=0.5,
    backoff_max=4.0,
    max_restarts=3,
    restart_window=100.0,
)
LOAD_ERROR = StartupFailed("no such file", phase="load")


def spec(name: str = "m", replicas: int = 1, **engine_args: Any) -> ModelSpec:
    return ModelSpec(name, "echo", replicas=replicas, engine_args=engine_args)


class Bench:
    """A fleet at a time of the test's choosing."""

    def __init__(self, policy: Policy = POLICY, jitter: Callable[[], float] = lambda: 0.0) -> None:
        self.now = NOW
        nonces = iter(f"n{number}" for number in range(10**6))
        self.events = EventLog(lambda: self.now)
        self.fits = True
        self.it = Fleet(
            policy,
            self.events,
            lambda: next(nonces),
            has_room=lambda _: self.fits,
            jitter=jitter,
        )

    def load(self, client: int = 1, *, declared: bool = False, **of_spec: Any) -> None:
        self.it.load(spec(**of_spec), self.now, client, declared=declared)

    def up(self, *workers: str) -> None:
        for worker in workers or ("m/0",):
            self.it.registered(worker, self.now)
            self.it.ready(worker, 4, "echo", {"max_model_len": 8}, self.now)

    def die(self, worker: str = "m/0", cause: str = "killed by SIGKILL") -> None:
        self.it.exited(worker, cause, ["last words"], self.now)

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.it.tick(self.now)

    def did(self) -> list[Action]:
        actions = self.it.take_actions()
        for action in actions:
            if isinstance(action, Spawn):
                self.it.spawning(action.worker, self.now)
        return actions

    def happened(self) -> list[str]:
        return [event["event"] for event in self.events.take_new()]

    def state(self, worker: str = "m/0") -> WorkerState:
        return self.it.workers[worker].state


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def ready(bench: Bench) -> Bench:
    """A fleet with one worker that is READY."""
    bench.load()
    bench.up()
    bench.did()
    return bench


# Coming up.


def test_loading_spawns_each_replica_with_a_nonce_of_its_own(bench: Bench) -> None:
    bench.load(replicas=2)
    assert bench.did() == [Spawn("m/0", "n0"), Spawn("m/1", "n1")]


def test_a_model_settles_when_all_its_workers_are_ready(bench: Bench) -> None:
    bench.load(replicas=2)
    bench.did()
    bench.up("m/0")
    assert bench.did() == [Serve("m/0", "m", 4)]
    assert bench.it.models["m"].state is WorkerState.READY
    bench.up("m/1")
    assert bench.did() == [Serve("m/1", "m", 4), Settled("m", None)]
    assert bench.it.models["m"].info == {"max_model_len": 8}


def test_the_process_is_known_once_it_was_spawned(bench: Bench) -> None:
    bench.load()
    bench.it.spawned("m/0", 77)
    worker = bench.it.workers["m/0"]
    assert worker.pid == 77
    bench.die()
    assert worker.pid == 0


def test_a_worker_that_never_registers_is_killed_and_given_up(bench: Bench) -> None:
    bench.load()
    bench.did()
    assert bench.it.next_deadline() == NOW + 600
    bench.tick(600)
    assert bench.did() == [Kill("m/0")]
    bench.die()
    refuse, settled = bench.did()
    assert isinstance(refuse, Refuse)
    assert isinstance(settled, Settled)
    assert "did not register within 600 s" in refuse.error.message


def test_a_worker_that_loads_for_too_long_is_killed_and_given_up(bench: Bench) -> None:
    bench.load()
    bench.did()
    bench.now += 10
    bench.it.registered("m/0", bench.now)
    bench.tick(589)
    assert bench.did() == []
    bench.tick(1)
    assert bench.did() == [Kill("m/0")]
    bench.die()
    assert bench.state() is WorkerState.FAILED
    error = bench.it.workers["m/0"].error
    assert error is not None
    assert "was not ready within 600 s" in error.message
    assert error.details["stderr"] == ["last words"]


def test_a_worker_that_stalls_while_it_loads_is_killed_and_given_up(bench: Bench) -> None:
    bench.load()
    bench.did()
    bench.it.registered("m/0", bench.now)
    bench.it.workers["m/0"].stage = "loading shards"
    bench.it.stalled("m/0", "stalled for 40 s")
    assert bench.did() == [Kill("m/0")]
    assert not bench.it.ready("m/0", 4, "echo", {}, bench.now), "too late"
    bench.die()
    assert bench.state() is WorkerState.FAILED
    error = bench.it.workers["m/0"].error
    assert error is not None
    assert error.message == "worker m/0 stalled for 40 s (at: loading shards)"
    assert error.details == {"stage": "loading shards", "stderr": ["last words"]}


def test_a_worker_that_is_ready_or_leaves_cannot_stall(ready: Bench) -> None:
    ready.it.stalled("m/0", "stalled")
    ready.it.unload("m", ready.now)
    ready.did()
    ready.it.stalled("m/0", "stalled")
    assert ready.did() == []


def test_loading_has_no_limit_for_all_of_it_unless_one_is_given() -> None:
    bench = Bench(Policy())
    bench.load()
    bench.did()
    bench.it.registered("m/0", bench.now)
    assert bench.it.next_deadline() == math.inf


# Sharing.


def test_an_equal_specification_is_shared(ready: Bench) -> None:
    ready.load(client=2)
    assert ready.did() == []
    assert ready.it.models["m"].leases.total() == 2


def test_another_specification_under_the_same_name_is_refused(ready: Bench) -> None:
    with pytest.raises(InvalidRequest, match="differs in max_model_len") as caught:
        ready.load(client=2, max_model_len=5)
    assert caught.value.parameter == "name"
    assert ready.it.models["m"].leases.total() == 1


def test_what_differs_is_named(ready: Bench) -> None:
    with pytest.raises(InvalidRequest, match="differs in replicas"):
        ready.load(replicas=2)
    ready.load(name="k", a=1, b=2)
    with pytest.raises(InvalidRequest, match=r"differs in b, c\)"):
        ready.load(name="k", a=1, b=3, c=4)


def test_the_last_lease_stops_a_model(ready: Bench) -> None:
    ready.load(client=1)
    ready.load(client=2)
    ready.it.release("m", 1, ready.now)
    ready.it.release("m", 1, ready.now)
    assert ready.did() == []
    ready.it.release("m", 2, ready.now)
    assert ready.did() == [Drain("m/0")]


def test_a_lease_is_given_back_once(ready: Bench) -> None:
    ready.load(client=2)
    ready.it.release("m", 1, ready.now)
    ready.it.release("m", 1, ready.now)
    ready.it.release("m", 99, ready.now)
    ready.it.release("unknown", 1, ready.now)
    assert ready.did() == []
    assert ready.it.models["m"].leases == {2: 1}


def test_a_client_that_leaves_gives_back_all_its_leases(ready: Bench) -> None:
    ready.load(client=1)
    ready.load(client=1, name="k")
    ready.up("k/0")
    ready.did()
    ready.it.client_gone(1, ready.now)
    assert ready.did() == [Drain("m/0"), Drain("k/0")]


def test_a_declared_model_stays_without_leases(bench: Bench) -> None:
    bench.load(client=0, declared=True)
    bench.load(client=1)
    bench.up()
    bench.did()
    bench.it.release("m", 1, bench.now)
    bench.it.client_gone(1, bench.now)
    assert bench.did() == []


# Restarts.


def test_the_first_restart_is_immediate(ready: Bench) -> None:
    ready.die()
    assert ready.state() is WorkerState.BACKOFF
    assert ready.it.next_deadline() == ready.now
    ready.tick()
    assert ready.did() == [Spawn("m/0", "n1")]
    assert ready.it.workers["m/0"].restarts == 1


def pauses(policy: Policy, jitter: float, deaths: int) -> list[float]:
    bench = Bench(policy, lambda: jitter)
    bench.load()
    found = []
    for _ in range(deaths):
        bench.die()
        found.append(bench.it.next_deadline() - bench.now)
        bench.tick(found[-1])
    return found


def test_then_the_pause_doubles_up_to_its_limit() -> None:
    patient = Policy(backoff_initial=0.5, backoff_max=4.0, max_restarts=99, restart_window=1e6)
    assert pauses(patient, 0.0, 7) == pytest.approx([0, 0.5, 1, 2, 4, 4, 4])


def test_jitter_adds_up_to_a_quarter() -> None:
    patient = Policy(backoff_initial=0.5, backoff_max=4.0, max_restarts=99, restart_window=1e6)
    assert pauses(patient, 1.0, 5) == pytest.approx([0, 0.625, 1.25, 2.5, 5])


def test_thousands_of_deaths_do_not_overflow_the_pause() -> None:
    patient = Policy(backoff_max=30.0, max_restarts=10**6, restart_window=1e9)
    assert pauses(patient, 0.0, 2000)[-1] == pytest.approx(30)


def test_a_worker_that_dies_too_often_is_given_up(bench: Bench) -> None:
    bench.load()
    for _ in range(3):
        bench.up()
        bench.die()
        assert bench.state() is WorkerState.BACKOFF
        bench.tick(10)
    bench.up()
    bench.did()
    bench.die()
    assert bench.state() is WorkerState.FAILED
    refuse, settled = bench.did()
    assert isinstance(refuse, Refuse)
    assert isinstance(settled, Settled)
    assert isinstance(refuse.error, StartupFailed)
    assert "killed by SIGKILL 4 times within 100 s" in refuse.error.message
    assert refuse.error.stderr == ["last words"]
    assert bench.it.next_deadline() == math.inf


def test_deaths_long_ago_do_not_count(ready: Bench) -> None:
    for _ in range(20):
        ready.die()
        ready.tick(0)
        ready.up()
        ready.now += 101
    assert ready.state() is WorkerState.READY
    assert len(ready.it.workers["m/0"].deaths) == 1


@pytest.mark.parametrize(
    "error", [LOAD_ERROR, InvalidRequest.of("dtype", "x", "no such dtype")], ids=["load", "request"]
)
def test_a_load_that_failed_with_a_reason_is_given_up_at_once(
    bench: Bench, error: VllmportError
) -> None:
    bench.load()
    bench.it.registered("m/0", bench.now)
    bench.it.failed("m/0", error)
    bench.did()
    bench.die(cause="exited with status 3")
    assert bench.did() == [Refuse("m", error), Settled("m", error)]
    assert bench.it.workers["m/0"].last_exit == "exited with status 3"


def test_an_engine_that_died_is_started_again(ready: Bench) -> None:
    ready.it.failed("m/0", EngineDead("out of memory"))
    ready.die()
    assert ready.state() is WorkerState.BACKOFF
    ready.tick()
    ready.up()
    assert ready.it.workers["m/0"].error is None


def test_calls_are_still_taken_while_another_replica_is_ready(bench: Bench) -> None:
    bench.load(replicas=2)
    bench.up("m/0")
    bench.did()
    bench.it.failed("m/1", LOAD_ERROR)
    bench.die("m/1")
    assert bench.did() == [Settled("m", LOAD_ERROR)], "no Refuse"


def test_a_failed_model_settles_only_when_nothing_of_it_loads_any_more(bench: Bench) -> None:
    bench.load(replicas=2)
    bench.did()
    bench.it.failed("m/1", LOAD_ERROR)
    bench.die("m/1")
    assert bench.did() == []
    bench.up("m/0")
    assert bench.did() == [Serve("m/0", "m", 4), Settled("m", LOAD_ERROR)]


def test_a_failed_model_is_started_anew_when_it_is_loaded_again(bench: Bench) -> None:
    bench.load(client=0, declared=True)
    bench.it.failed("m/0", LOAD_ERROR)
    bench.die()
    bench.did()
    bench.load(client=2)
    assert bench.did() == [Spawn("m/0", "n1")]
    bench.up()
    assert bench.did() == [Serve("m/0", "m", 4), Settled("m", None)]


def test_one_failed_replica_is_started_anew_and_the_others_go_on(bench: Bench) -> None:
    """Else a load would wait forever for a replica that nobody starts."""
    bench.load(replicas=2)
    bench.up("m/0")
    bench.it.failed("m/1", LOAD_ERROR)
    bench.die("m/1")
    bench.did()
    bench.load(client=2, replicas=2)
    assert bench.did() == [Spawn("m/1", "n2")]
    assert bench.state("m/0") is WorkerState.READY
    bench.up("m/1")
    assert bench.did() == [Serve("m/1", "m", 4), Settled("m", None)]


def test_who_attaches_while_a_worker_restarts_hears_when_it_is_ready(ready: Bench) -> None:
    ready.die()
    ready.load(client=2)
    ready.tick()
    ready.up()
    assert Settled("m", None) in ready.did()


def test_a_load_that_may_heal_is_tried_again(bench: Bench) -> None:
    bench.load()
    bench.it.registered("m/0", bench.now)
    bench.it.failed("m/0", StartupFailed("no memory yet", phase="load", retryable=True))
    bench.die()
    assert bench.state() is WorkerState.BACKOFF


def test_a_model_that_dies_after_loading_for_long_is_given_up_as_well(bench: Bench) -> None:
    bench.load()
    for _ in range(POLICY.max_restarts + 1):
        bench.did()
        bench.it.registered("m/0", bench.now)
        bench.tick(POLICY.restart_window)
        bench.die()
        bench.tick(POLICY.backoff_max * 2)
    assert bench.state() is WorkerState.FAILED


def test_recycling_that_cannot_succeed_pauses(ready: Bench) -> None:
    """The old worker goes on, and is not replaced again and again."""
    ready.it.recycle("m/0", "it is old", ready.now)
    assert ready.did() == [Spawn("m/1", "n1")]
    ready.die("m/1")
    assert isinstance(ready.did()[0], Settled)
    ready.it.recycle("m/0", "it is old", ready.now)
    assert ready.did() == []
    ready.tick(POLICY.backoff_max * 2)
    ready.it.recycle("m/0", "it is old", ready.now)
    assert ready.did() == [Spawn("m/1", "n2")]
    ready.up("m/1")
    assert ready.state("m/0") is WorkerState.DRAINING


# Stopping.


def test_stopping_goes_from_bye_to_term_to_kill(ready: Bench) -> None:
    ready.it.unload("m", ready.now)
    assert ready.did() == [Drain("m/0")]
    assert ready.it.next_deadline() == ready.now + 30
    ready.tick(30)
    assert ready.did() == [SayBye("m/0")]
    ready.tick(2.5)
    assert ready.did() == [Kill("m/0", "leader", gently=True)]
    ready.tick(1.25)
    assert ready.did() == [Kill("m/0", "group", gently=True)]
    ready.tick(1.25)
    assert ready.did() == [Kill("m/0")]
    for _ in range(3):
        ready.tick(5)
        assert ready.did() == [Kill("m/0")]
    ready.die()
    assert ready.did() == [Removed("m")]
    assert (ready.it.models, ready.it.workers) == ({}, {})


def test_an_idle_worker_need_not_wait_to_stop(ready: Bench) -> None:
    ready.it.drained("m/0", ready.now)
    ready.it.drained("unknown", ready.now)
    assert ready.did() == [], "it is not stopping"
    ready.it.unload("m", ready.now)
    ready.it.drained("m/0", ready.now)
    ready.it.drained("m/0", ready.now)
    assert ready.did() == [Drain("m/0"), SayBye("m/0")]


def test_a_worker_that_still_loads_is_not_asked_but_told_to_stop(bench: Bench) -> None:
    """It reads no messages while it loads."""
    bench.load()
    bench.did()
    bench.it.unload("m", bench.now)
    assert bench.did() == [Kill("m/0", "leader", gently=True)]
    bench.tick(1.25)
    assert bench.did() == [Kill("m/0", "group", gently=True)]
    bench.tick(1.25)
    assert bench.did() == [Kill("m/0")]
    bench.die()
    assert bench.did() == [Removed("m")]


def test_hurry_kills_what_has_not_stopped(ready: Bench) -> None:
    ready.it.hurry(ready.now)
    assert ready.did() == []
    ready.it.stop(ready.now)
    ready.it.hurry(ready.now)
    assert ready.did() == [Drain("m/0"), Kill("m/0")]


def test_a_worker_that_was_told_to_leave_does_not_become_ready(bench: Bench) -> None:
    bench.load()
    bench.it.registered("m/0", bench.now)
    bench.it.unload("m", bench.now)
    bench.did()
    bench.it.ready("m/0", 4, "echo", {}, bench.now)
    assert bench.did() == []
    assert bench.state() is WorkerState.DRAINING


def test_a_worker_that_was_told_to_leave_before_it_registered_stays_so(bench: Bench) -> None:
    bench.load()
    bench.it.unload("m", bench.now)
    bench.it.registered("m/0", bench.now)
    assert bench.state() is WorkerState.DRAINING


def test_what_waits_for_a_restart_stops_at_once(ready: Bench) -> None:
    ready.die()
    ready.it.unload("m", ready.now)
    assert ready.did() == [Removed("m")]
    assert ready.it.next_deadline() == math.inf


def test_a_worker_that_dies_while_it_stops_is_not_started_again(ready: Bench) -> None:
    ready.it.unload("m", ready.now)
    ready.did()
    ready.die()
    assert ready.did() == [Removed("m")]


def test_unloading_twice_changes_nothing(ready: Bench) -> None:
    ready.it.unload("m", ready.now)
    ready.did()
    ready.it.unload("m", ready.now)
    ready.it.release("m", 1, ready.now)
    assert ready.did() == []


def test_a_model_that_is_leaving_cannot_be_loaded_yet(ready: Bench) -> None:
    ready.it.unload("m", ready.now)
    with pytest.raises(InvalidRequest, match="being unloaded") as caught:
        ready.load()
    assert caught.value.retryable


def test_an_unknown_model_cannot_be_unloaded(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="known: none is loaded"):
        bench.it.unload("m", bench.now)


# Any order of events.

SELDOM = st.integers(0, 4).map(lambda number: number == 4)


class AnyOrder(RuleBasedStateMachine):
    """Callers, processes and time do what they like; each place has the process it should."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(jitter=lambda: 0.5)
        self.processes: dict[str, str] = {}  # worker → nonce of the process that lives
        self.killed: set[str] = set()
        self.served: dict[str, str] = {}
        self.settled: dict[str, VllmportError | None] = {}

    def collect(self) -> None:
        for action in self.bench.did():
            match action:
                case Spawn(worker, nonce):
                    assert worker not in self.processes, "two processes for one place"
                    assert nonce not in self.processes.values()
                    self.processes[worker] = nonce
                case Serve(worker, model, _):
                    assert worker in self.processes
                    self.served[worker] = model
                case Drain(worker):
                    assert worker in self.processes
                    self.served.pop(worker, None)
                case Kill(worker, _, gently):
                    assert worker in self.processes, "killed what is gone"
                    self.killed |= set() if gently else {worker}
                case Settled(model, error):
                    self.settled[model] = error
                case Removed(model):
                    self.settled.pop(model, None)
                    assert not any(worker.startswith(f"{model}/") for worker in self.processes)

    def pick(self, number: int) -> str:
        return sorted(self.processes)[number % len(self.processes)]

    @rule(
        name=st.sampled_from("ab"),
        replicas=st.sampled_from([1, 2, 2]),
        client=st.integers(0, 3),
    )
    def load(self, name: str, replicas: int, client: int) -> None:
        known = self.bench.it.models.get(name)
        try:
            self.bench.load(client, name=name, replicas=replicas, declared=client == 0)
        except InvalidRequest:
            assert known is not None
            assert known.leaving or known.spec.replicas != replicas
        self.collect()

    @rule(name=st.sampled_from("ab"), client=st.integers(1, 3))
    def release(self, name: str, client: int) -> None:
        self.bench.it.release(name, client, self.bench.now)
        self.collect()

    @rule(client=st.integers(1, 3), really=SELDOM)
    def client_leaves(self, client: int, *, really: bool) -> None:
        if really:
            self.bench.it.client_gone(client, self.bench.now)
            self.collect()

    @rule(name=st.sampled_from("ab"), really=SELDOM)
    def unload(self, name: str, *, really: bool) -> None:
        if really and name in self.bench.it.models:
            self.bench.it.unload(name, self.bench.now)
            self.collect()

    @rule(name=st.sampled_from("ab"))
    def restart(self, name: str) -> None:
        model = self.bench.it.models.get(name)
        if model is not None and not model.leaving:
            self.bench.it.restart(name, self.bench.now)
            self.collect()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 9))
    def worker_is_old(self, number: int) -> None:
        self.bench.it.recycle(self.pick(number), "it is old", self.bench.now)
        self.collect()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 9))
    def worker_hangs(self, number: int) -> None:
        self.bench.it.hung(self.pick(number), "it hangs", self.bench.now)
        self.collect()

    @rule(fits=st.booleans())
    def memory_changes(self, *, fits: bool) -> None:
        self.bench.fits = fits

    @rule(really=SELDOM)
    def hurry(self, *, really: bool) -> None:
        if really:
            self.bench.it.hurry(self.bench.now)
            self.collect()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 9), ready=st.booleans())
    def process_goes_on(self, number: int, *, ready: bool) -> None:
        worker = self.pick(number)
        self.bench.it.registered(worker, self.bench.now)
        if ready:
            self.bench.it.ready(worker, 4, "echo", {}, self.bench.now)
        self.collect()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 9), why=st.sampled_from([None, None, None, LOAD_ERROR]))
    def process_dies(self, number: int, why: VllmportError | None) -> None:
        worker = self.pick(number)
        self.end(worker, why)

    def end(self, worker: str, why: VllmportError | None = None) -> None:
        if why is not None:
            self.bench.it.failed(worker, why)
        del self.processes[worker]
        self.killed.discard(worker)
        self.served.pop(worker, None)
        self.bench.die(worker)
        self.collect()

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 9))
    def worker_is_idle(self, number: int) -> None:
        self.bench.it.drained(self.pick(number), self.bench.now)
        self.collect()

    @rule(seconds=st.sampled_from([0.0, 0.3, 5.0, 30.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.tick(seconds)
        self.collect()
        assert self.bench.it.next_deadline() > self.bench.now

    @invariant()
    def every_process_has_a_place_and_every_place_its_process(self) -> None:
        alive = {name: w for name, w in self.bench.it.workers.items() if w.state in ALIVE}
        assert alive.keys() == self.processes.keys()
        assert {name: worker.nonce for name, worker in alive.items()} == self.processes

    @invariant()
    def every_model_has_its_replicas(self) -> None:
        for model in self.bench.it.models.values():
            assert model.workers
            if not model.leaving:
                lasting = [w for w in model.workers.values() if w.state is not WorkerState.DRAINING]
                replacing = sum(bool(worker.replaces) for worker in lasting)
                assert replacing <= 1
                leaving_first = len(lasting) < len(model.workers)  # there was no memory for two
                assert len(lasting) - replacing in (
                    model.spec.replicas,
                    model.spec.replicas - leaving_first,
                )
                assert model.declared or model.leases or not model.settled
            assert all(self.bench.it.workers[name] is w for name, w in model.workers.items())
        assert len(self.bench.it.workers) == sum(
            len(m.workers) for m in self.bench.it.models.values()
        )

    @invariant()
    def only_ready_workers_serve(self) -> None:
        ready = {n for n, w in self.bench.it.workers.items() if w.state is WorkerState.READY}
        assert self.served.keys() == ready

    @invariant()
    def nothing_waits_without_a_time(self) -> None:
        settled = {WorkerState.READY, WorkerState.FAILED}
        for worker in self.bench.it.workers.values():
            was_killed = worker.id in self.killed
            assert worker.state in settled or was_killed or worker.due < math.inf, worker

    def teardown(self) -> None:
        """From now on all goes well: what is wanted comes up, what is not goes away."""
        for _ in range(20):
            for worker in sorted(self.killed):
                self.end(worker)
            for worker in sorted(self.processes):
                self.bench.it.registered(worker, self.bench.now)
                self.bench.it.ready(worker, 4, "echo", {}, self.bench.now)
                self.collect()
            due = self.bench.it.next_deadline()
            if due == math.inf:
                break
            self.bench.tick(max(0.0, due - self.bench.now))
            self.collect()
        for model in self.bench.it.models.values():
            states = {worker.state for worker in model.workers.values()}
            assert not model.leaving
            assert len(model.workers) == model.spec.replicas
            assert states <= {WorkerState.READY, WorkerState.FAILED}
            error = self.settled[model.spec.name]
            assert error is not None or states == {WorkerState.READY}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
