"""Which processes wait at hand, and for whom."""

from typing import Any

import pytest

from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.actions import Kill, Spawn
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Spare
from vllmport.pool.supervisor.places import Model
from vllmport.pool.supervisor.standby import MAX_DEATHS, RETRY, Standbys

POLICY = Policy(standby_delay=5.0, standby_memory=1000)
PLENTY = 1000


def model(name: str = "m", *, settled: bool = True, **of_spec: Any) -> Model:
    found = Model(ModelSpec(name, "some/model", **of_spec), declared=True)
    found.info = {"max_model_len": 8} if settled else {}
    return found


class Bench:
    def __init__(self, policy: Policy = POLICY) -> None:
        self.now = 100.0
        nonces = iter(f"n{number}" for number in range(1000))
        self.it = Standbys(policy, EventLog(lambda: 0.0), lambda: next(nonces))

    def tick(self, seconds: float, free: int = PLENTY) -> list[Any]:
        self.now += seconds
        self.it.tick(self.now, free)
        return list(self.it.take_actions())

    def up(self, standby: str = "standby/0") -> None:
        self.it.spawned(standby, 7, self.now)
        self.it.waits(standby, self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def waiting(bench: Bench) -> Bench:
    """One standby that waits."""
    bench.it.want([model()], bench.now)
    bench.tick(5)
    bench.up()
    return bench


def test_a_standby_is_started_some_time_after_its_model_is_ready(bench: Bench) -> None:
    bench.it.want([model()], bench.now)
    assert bench.it.next_deadline() == bench.now + 5
    assert bench.tick(4.9) == []
    assert bench.tick(0.1) == [Spawn("standby/0", "n0")]
    assert "standby/0" in bench.it
    assert bench.tick(100) == [], "one is enough"


@pytest.mark.parametrize(
    "other", [model(settled=False), model(engine="echo")], ids=["still loads", "needs no import"]
)
def test_no_standby_for_what_needs_none(bench: Bench, other: Model) -> None:
    bench.it.want([other], bench.now)
    assert bench.tick(1000) == []


def test_no_standby_where_it_is_switched_off() -> None:
    bench = Bench(Policy(standby=False))
    bench.it.want([model()], bench.now)
    assert bench.tick(1000) == []


def test_no_standby_while_memory_is_short(bench: Bench) -> None:
    bench.it.want([model()], bench.now)
    assert bench.tick(5, free=999) == []
    assert bench.tick(RETRY, free=1000) == [Spawn("standby/0", "n0")]


def test_a_worker_takes_the_standby_that_waits_and_another_follows(waiting: Bench) -> None:
    assert waiting.it.take(model().spec) == Spare("standby/0", "n0")
    assert waiting.it.take(model().spec) is None
    assert "standby/0" not in waiting.it
    waiting.it.want([model()], waiting.now)
    assert waiting.tick(5) == [Spawn("standby/0", "n1")]


def test_one_that_still_imports_is_not_taken(bench: Bench) -> None:
    bench.it.want([model()], bench.now)
    bench.tick(5)
    assert bench.it.take(model().spec) is None


def test_models_with_one_environment_share_a_standby_others_do_not(bench: Bench) -> None:
    bench.it.want([model("a"), model("b"), model("c", env={"X": "1"})], bench.now)
    assert len(bench.tick(5)) == 2
    bench.up("standby/0")
    bench.up("standby/1")
    taken = bench.it.take(model("c", env={"X": "1"}).spec)
    assert taken is not None
    assert bench.it.take(model("d", env={"X": "2"}).spec) is None
    assert bench.it.take(model("b").spec) not in (None, taken)


def test_a_standby_that_no_model_could_use_is_ended(waiting: Bench) -> None:
    waiting.it.want([], waiting.now)
    assert waiting.it.take_actions() == [Kill("standby/0")]
    assert "standby/0" in waiting.it, "until it is gone"
    waiting.it.exited("standby/0", "was killed", waiting.now)
    assert "standby/0" not in waiting.it
    assert waiting.tick(1000) == []


def test_a_standby_that_died_is_tried_again_but_not_for_ever(waiting: Bench) -> None:
    for death in range(1, MAX_DEATHS):
        waiting.it.exited("standby/0", "died", waiting.now)
        assert waiting.tick(RETRY * 2 ** (death - 1) - 1) == []
        assert waiting.tick(1) == [Spawn("standby/0", f"n{death}")]
    waiting.it.exited("standby/0", "died", waiting.now)
    assert waiting.tick(10_000) == []


def test_one_that_has_ended_is_not_taken_though_something_of_it_is_left(waiting: Bench) -> None:
    waiting.it.ended("standby/0")
    assert waiting.it.take(model().spec) is None
    waiting.it.waits("standby/0", waiting.now)  # its last word, read late
    assert waiting.it.take(model().spec) is None
    waiting.it.exited("standby/0", "died", waiting.now)
    assert waiting.tick(RETRY) == [Spawn("standby/0", "n1")]


def test_one_that_nobody_wants_may_go_before_it_is_there(bench: Bench) -> None:
    bench.it.want([model()], bench.now)
    bench.tick(5)
    bench.it.want([], bench.now)
    assert bench.it.take_actions() == [Kill("standby/0")]
    bench.it.exited("standby/0", "was killed", bench.now)
    assert "standby/0" not in bench.it


def test_one_that_stalls_while_it_imports_is_replaced(bench: Bench) -> None:
    bench.it.want([model()], bench.now)
    bench.tick(5)
    bench.it.spawned("standby/0", 7, bench.now)
    assert bench.tick(100_000) == [], "it may take its time"
    bench.it.stalled("standby/0")
    assert bench.it.take_actions() == [Kill("standby/0")]
    bench.it.exited("standby/0", "was killed", bench.now)
    assert bench.tick(RETRY) == [Spawn("standby/0", "n1")]


def test_a_standby_registers_with_its_nonce(waiting: Bench) -> None:
    assert waiting.it.expects("n0") == "standby/0"
    assert waiting.it.expects("n1") is None
    assert waiting.it.spec_of("standby/0").name == "m"
    assert waiting.it.describe() == [{"id": "standby/0", "pid": 7, "waiting": True}]
