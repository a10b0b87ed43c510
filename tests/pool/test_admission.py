"""Who may start now, and on which GPU."""

import importlib.util
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vllmport.bridge.errors import InvalidRequest, StartupFailed
from vllmport.pool.config import tiny_model_path
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.admission import (
    FRESH,
    Admission,
    Decision,
    Grant,
    Needs,
    Refusal,
)
from vllmport.pool.supervisor.devices import GIB, DeviceReading
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.needs import (
    DEFAULT_FRACTION,
    PROCESS_RAM,
    needs_of,
    weights_size,
)

TOTAL = 80 * GIB
POLICY = Policy(max_loads=2, memory_timeout=30.0)
HALF = Needs(devices=1, fraction=0.5)
MOST = Needs(devices=1, fraction=0.9)


@dataclass
class World:
    """An admission, and devices whose memory is what this says."""

    count: int = 1
    policy: Policy = POLICY
    ram: int = 64 * GIB
    now: float = 1000.0
    used: dict[int, float] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events = EventLog(lambda: 0.0)
        self.admission = Admission(self.policy, self.events, has_gpus=self.count > 0)
        self.used = dict.fromkeys(range(self.count), 0.0)

    def ask(self, **needs: Needs) -> list[Decision]:
        for worker, need in needs.items():
            self.admission.request(worker, need, self.now)
        return self.look()

    def look(self, seconds: float = 0.0) -> list[Decision]:
        """Let time pass, read the devices if that is wanted, and return what is decided."""
        self.now += seconds
        if self.admission.wants_readings and not self.admission.unreadable:
            self.admission.readings(
                [
                    DeviceReading(index, f"GPU-{index}ab", TOTAL, int(share * TOTAL), (4242,))
                    for index, share in self.used.items()
                ],
                self.now,
            )
        return self.decide()

    def decide(self) -> list[Decision]:
        decisions = self.admission.take_decisions(self.now, self.ram)
        self.decisions += decisions
        return decisions

    def happened(self) -> list[dict[str, Any]]:
        """Return what became of the devices since the last time."""
        found = self.events.take_new()
        return [{k: v for k, v in event.items() if k not in ("seq", "time")} for event in found]

    def release(self, worker: str) -> list[Decision]:
        self.admission.released(worker, self.now)
        return self.look()

    def ready(self, worker: str) -> list[Decision]:
        self.admission.ready(worker, self.now)
        return self.look()

    def why(self, worker: str) -> str:
        waiting = self.admission.describe()["waiting"]
        return str(next(entry["why"] for entry in waiting if entry["worker"] == worker))

    def state(self, device: int = 0) -> str:
        return str(self.admission.describe()["devices"][device]["state"])


def refused(decisions: list[Decision]) -> Refusal:
    (decision,) = decisions
    assert isinstance(decision, Refusal)
    return decision


# Without GPUs.


def test_without_gpus_only_the_number_of_loads_counts() -> None:
    world = World(count=0)
    assert world.ask(a=MOST, b=MOST, c=MOST) == [Grant("a"), Grant("b")]
    assert not world.admission.wants_readings
    assert "turn" in world.why("c")
    assert world.ready("a") == [Grant("c")]
    assert world.admission.next_deadline() == math.inf


def test_who_only_waits_for_its_turn_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a thousand is looked at when it asks and when its turn comes, not at each turn."""
    looks: list[str] = []
    consider = Admission._decide

    def counted(self: Admission, worker: str, *rest: Any) -> Decision | None:
        looks.append(worker)
        return consider(self, worker, *rest)

    monkeypatch.setattr(Admission, "_decide", counted)
    world = World(count=0)
    names = [f"w{number}" for number in range(1000)]
    world.ask(**dict.fromkeys(names, Needs()))
    for name in names:
        world.ready(name)
    assert world.decisions == [Grant(name) for name in names]
    assert len(looks) <= 2 * len(names)


def test_who_lacks_ram_has_its_time_begin_again_while_others_load() -> None:
    world = World(count=0)
    world.ask(small=Needs())
    world.ready("small")
    assert world.ask(large=Needs(ram=world.ram + 1)) == []
    assert "RAM" in world.why("large")
    assert world.ask(a=Needs(), b=Needs()) == [Grant("a"), Grant("b")]
    assert world.look() == []
    assert "turn" in world.why("large")
    assert world.look(1000) == [], "others load: that may bring what it lacks"
    world.ready("a")
    world.ready("b")
    assert "RAM" in world.why("large")
    assert isinstance(refused(world.look(1000)), Refusal)


def test_a_load_that_ends_in_death_gives_its_turn_away() -> None:
    world = World(count=0)
    world.ask(a=Needs(), b=Needs(), c=Needs())
    assert world.release("b") == [Grant("c")]


def test_a_worker_that_is_no_longer_wanted_is_not_granted() -> None:
    world = World(count=0)
    world.ask(a=Needs(), b=Needs(), c=Needs())
    assert world.admission.withdraw("c", world.now)
    assert world.ready("a") == []
    assert not world.admission.withdraw("a", world.now), "it was granted"


def test_a_ready_worker_is_no_load_and_may_be_asked_for_again_after_its_end() -> None:
    world = World(count=0)
    world.ask(a=Needs())
    world.ready("a")
    world.release("a")
    assert world.ask(a=Needs()) == [Grant("a")]


def test_ram_that_a_running_load_will_take_is_not_given_twice() -> None:
    world = World(count=0, ram=10 * GIB)
    assert world.ask(a=Needs(ram=6 * GIB), b=Needs(ram=6 * GIB)) == [Grant("a")]
    assert "RAM" in world.why("b")
    assert world.admission.next_deadline() == world.now + 1
    world.ram = 7 * GIB
    assert world.ready("a") == [Grant("b")]


def test_ram_that_does_not_suffice_is_an_error_after_a_while() -> None:
    world = World(count=0, ram=GIB)
    assert world.ask(a=Needs(ram=6 * GIB)) == []
    assert world.look(29) == []
    refusal = refused(world.look(1))
    assert isinstance(refusal.error, StartupFailed)
    assert refusal.error.retryable
    assert refusal.error.worker == "a"
    assert "6.0 GiB of RAM, and 1.0 are free" in refusal.error.message


def test_a_start_without_enough_ram_holds_up_nobody_else() -> None:
    world = World(count=0, ram=GIB)
    assert world.ask(a=Needs(ram=6 * GIB), b=Needs()) == [Grant("b")]


# Placement.


def test_a_gpu_worker_waits_for_a_reading() -> None:
    world = World()
    world.admission.request("a", MOST, world.now)
    assert world.decide() == []
    assert world.admission.wants_readings
    assert world.look() == [Grant("a", (0,))]
    assert not world.admission.wants_readings


def test_an_old_reading_says_nothing() -> None:
    world = World(count=2)
    world.ask(a=MOST)
    world.now += FRESH + 1
    world.admission.request("b", MOST, world.now)
    assert world.decide() == []
    assert world.look() == [Grant("b", (1,))]


def test_a_grant_says_it_in_the_environment() -> None:
    assert Grant("a", (2, 5)).env == {
        "CUDA_VISIBLE_DEVICES": "2,5",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert Grant("a").env == {}


def test_the_device_with_the_most_room_is_taken() -> None:
    world = World(count=3)
    world.used |= {0: 0.4, 1: 0.1, 2: 0.2}
    assert world.ask(a=HALF) == [Grant("a", (1,))]


def test_the_claims_of_workers_count_before_they_use_them() -> None:
    world = World(count=2)
    assert world.ask(a=HALF) == [Grant("a", (0,))]
    assert world.ask(b=HALF) == [Grant("b", (1,))]


def test_a_device_loads_one_worker_at_a_time() -> None:
    world = World()
    assert world.ask(a=HALF, b=HALF) == [Grant("a", (0,))]
    assert "waits for a load" in world.why("b")
    world.used[0] = 0.5
    assert world.ready("a") == [Grant("b", (0,))]


def test_what_was_read_before_a_load_ended_does_not_count() -> None:
    world = World()
    world.ask(a=HALF, b=HALF)
    world.admission.ready("a", world.now)
    assert world.decide() == []
    assert world.look() == [Grant("b", (0,))]


def test_several_devices_are_had_together() -> None:
    world = World(count=4)
    world.used[0] = 0.3
    assert world.ask(a=Needs(devices=2, fraction=0.6)) == [Grant("a", (1, 2))]


def test_only_visible_devices_are_taken() -> None:
    world = World(count=4)
    assert world.ask(a=MOST._replace(visible=("2",))) == [Grant("a", (2,))]
    assert world.ask(b=MOST._replace(visible=("GPU-3",))) == [Grant("b", (3,))]


def test_slices_of_a_gpu_are_left_to_their_owner() -> None:
    world = World()
    assert world.ask(a=MOST._replace(visible=("MIG-7f",))) == [Grant("a")]


def test_more_devices_than_there_are_are_refused_at_once() -> None:
    world = World(count=2)
    error = refused(world.ask(a=Needs(devices=3, fraction=0.9))).error
    assert isinstance(error, InvalidRequest)
    assert error.parameter == "tensor_parallel_size"
    assert "takes 3 GPUs, and there are 2" in error.message


def test_devices_that_are_not_there_are_named() -> None:
    world = World(count=2)
    error = refused(world.ask(a=MOST._replace(visible=("7",)))).error
    assert "CUDA_VISIBLE_DEVICES=7" in error.message
    assert "0 (GPU-0ab), 1 (GPU-1ab)" in error.message


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.2, float("nan")])
def test_an_impossible_fraction_is_refused_at_once(fraction: float) -> None:
    error = refused(World().ask(a=Needs(devices=1, fraction=fraction))).error
    assert isinstance(error, InvalidRequest)
    assert error.parameter == "gpu_memory_utilization"


def test_two_models_share_a_device_only_if_their_fractions_fit() -> None:
    world = World()
    world.ask(a=HALF)
    world.used[0] = 0.3
    world.ready("a")
    assert world.ask(b=MOST) == []
    assert world.why("b") == "needs 0.9 of the memory of 1 GPUs, but GPU 0: a has 0.5"
    assert world.ask(c=HALF) == [Grant("c", (0,))]


def test_who_finds_no_room_for_long_is_refused_with_advice() -> None:
    world = World()
    world.ask(a=MOST)
    world.ready("a")
    world.ask(b=MOST)
    assert world.admission.next_deadline() == world.now + 30
    error = refused(world.look(30)).error
    assert isinstance(error, StartupFailed)
    assert error.retryable
    assert "a has 0.9" in error.message
    assert "lower gpu_memory_utilization" in error.message


def test_room_that_comes_in_time_is_used() -> None:
    world = World()
    world.ask(a=MOST)
    world.ready("a")
    world.ask(b=MOST)
    assert world.look(29) == []
    assert world.release("a") == []
    assert world.look(0.5) == [Grant("b", (0,))]


def test_memory_that_others_use_is_an_error_after_a_while() -> None:
    world = World()
    world.used[0] = 0.5
    assert world.ask(a=MOST) == []
    assert "GPU 0 has 40.0 of 80.0 GiB free, and 72.0 are needed" in world.why("a")
    assert "pid 4242" in world.why("a")
    assert isinstance(refused(world.look(30)).error, StartupFailed)


def test_memory_that_the_driver_does_not_tell_is_not_waited_for() -> None:
    world = World()
    world.admission.request("a", MOST, world.now)
    world.admission.readings([DeviceReading(0, "GPU-0", 0, 0)], world.now)
    assert world.decide() == [Grant("a", (0,))]


def test_who_waits_for_two_devices_is_not_overtaken_for_ever() -> None:
    world = World(count=2, policy=Policy(max_loads=9))
    world.ask(a=HALF)
    pair = Needs(devices=2, fraction=0.5)
    assert world.ask(pair=pair, b=HALF) == []
    world.used[0] = 0.5
    assert world.ready("a") == [Grant("pair", (0, 1))]


def test_has_room_looks_at_claims_and_ram() -> None:
    world = World()
    assert world.admission.has_room(MOST, world.ram)
    world.ask(a=HALF)
    assert world.admission.has_room(HALF, world.ram)
    assert not world.admission.has_room(MOST, world.ram)
    assert not world.admission.has_room(HALF._replace(ram=world.ram + 1), world.ram)


# After a death.


def dead(world: World, left: float) -> None:
    """Let a worker come, take nearly all, and die; `left` is what is still used then."""
    world.ask(a=MOST)
    world.used[0] += 0.9
    world.ready("a")
    world.used[0] = left
    world.release("a")
    world.admission.request("b", MOST, world.now)


def test_the_next_start_waits_for_two_readings_that_show_the_memory_back() -> None:
    world = World()
    dead(world, left=0.9)
    assert world.look() == []
    assert world.state() == "settling"
    world.used[0] = 0.01
    assert world.look(0.5) == []
    assert world.look(0.5) == [Grant("b", (0,))]
    assert [event["event"] for event in world.happened()] == ["device.waiting", "device.free"]


def test_memory_that_still_moves_is_not_back() -> None:
    world = World()
    world.used[0] = 0.05
    dead(world, left=0.9)
    for used in (0.07, 0.9, 0.02, 0.055):
        world.used[0] = used
        assert world.look(0.5) == []
    assert world.look(0.5) == [Grant("b", (0,))]


def test_what_was_in_use_before_need_not_come_back() -> None:
    world = World()
    world.used[0] = 0.1
    dead(world, left=0.1)  # which reads once
    assert world.look(0.5) == [Grant("b", (0,))]


def test_what_a_living_neighbour_may_use_need_not_come_back() -> None:
    world = World()
    world.ask(a=HALF, b=HALF)
    world.used[0] = 0.5
    world.ready("a")
    world.used[0] = 0.98
    world.ready("b")
    world.used[0] = 0.49
    world.release("b")
    assert world.ask(c=HALF) == [Grant("c", (0,))]


def test_another_device_is_taken_while_one_settles() -> None:
    world = World(count=2)
    world.ask(a=MOST)
    world.ready("a")
    world.used[0] = 0.9
    world.release("a")
    assert world.ask(b=MOST) == [Grant("b", (1,))]


def test_memory_that_stays_away_puts_its_device_in_quarantine_and_says_so() -> None:
    world = World()
    dead(world, left=0.9)
    assert world.look(29) == []
    assert world.look(1) == []
    debt = {"device": 0, "used": int(0.9 * TOTAL), "expected": 0}
    assert world.happened() == [
        {"event": "device.waiting", **debt},
        {"event": "device.quarantined", **debt},
    ]
    note = world.admission.describe()["devices"][0]["note"]
    assert "GPU 0 holds 72.0 GiB more" in note
    assert "pid 4242" in note
    assert world.state() == "quarantined"
    assert world.why("b").endswith("GPU 0: quarantined")
    assert world.look(100) == []  # it waits: this device is all there is
    world.used[0] = 0.0
    assert world.look(0.5) == []
    assert world.look(0.5) == [Grant("b", (0,))]
    assert world.happened() == [{"event": "device.free", "device": 0, "used": 0}]


def test_a_quarantined_device_is_read_although_nobody_waits() -> None:
    world = World()
    dead(world, left=0.9)
    world.look(31)
    assert world.admission.withdraw("b", world.now)
    assert world.admission.wants_readings
    assert world.decide() == []
    world.used[0] = 0.0
    world.look(0.5)
    world.look(0.5)
    assert world.happened()[-1]["event"] == "device.free"
    assert not world.admission.wants_readings


def test_nobody_is_placed_on_a_quarantined_device_while_there_is_another() -> None:
    world = World(count=2)
    dead(world, left=0.9)
    assert world.look(31)[-1] == Grant("b", (1,))
    assert world.ask(c=HALF) == []
    assert "quarantined" in world.why("c")


def test_what_somebody_else_took_meanwhile_ends_no_device_that_still_has_room() -> None:
    world = World()
    dead(world, left=0.08)
    for _ in range(10):
        assert world.look(2.9) == []
    world.look(2.9)
    assert world.look(0.5) == [Grant("b", (0,))]
    assert world.state() == "loading"


# Devices that cannot be read.


def test_without_any_reading_gpu_workers_load_one_after_the_other() -> None:
    world = World()
    world.admission.request("a", MOST, world.now)
    world.admission.unread("the driver did not answer", world.now)
    assert world.look() == [Grant("a")]
    assert world.ask(b=MOST, c=Needs()) == [Grant("c")]
    assert world.ready("a") == [Grant("b")]
    assert world.admission.describe()["unreadable"] == "the driver did not answer"


def test_devices_that_were_read_once_are_used_blindly_after_the_time_is_up() -> None:
    world = World()
    dead(world, left=0.9)
    world.admission.unread("the driver did not answer", world.now)
    assert world.look(29) == []
    assert world.admission.next_deadline() == world.now + 1
    assert world.look(1) == [Grant("b", (0,))]


def test_a_reading_ends_the_blindness() -> None:
    world = World()
    world.admission.unread("the driver did not answer", world.now)
    world.admission.readings([DeviceReading(0, "GPU-0", TOTAL, 0)], world.now)
    assert world.admission.describe()["unreadable"] == ""


# Whatever happens.


class AnyOrder(RuleBasedStateMachine):
    """Workers come, load, die and leak as they like; what is promised holds after each step."""

    names = st.sampled_from([f"w{number}" for number in range(8)])

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        self.world = World(count, Policy(max_loads=2, memory_timeout=10.0))
        self.needs: dict[str, Needs] = {}
        self.asked: set[str] = set()
        self.loading: set[str] = set()
        self.running: dict[str, Grant] = {}

    def see(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Grant(worker):
                    self.granted(worker, decision)
                case Refusal(worker):
                    self.asked.remove(worker)

    def granted(self, worker: str, grant: Grant) -> None:
        self.asked.remove(worker)
        need = self.needs[worker]
        assert len(grant.devices) in (0, need.devices)
        for other in self.loading:
            assert not set(grant.devices) & set(self.running[other].devices), "one load on each"
        for device in grant.devices:
            assert self.world.state(device) == "loading"
            if not self.world.admission.unreadable:
                assert self.world.used[device] + need.fraction <= 1.001
            self.world.used[device] += need.fraction
        self.running[worker] = grant
        self.loading.add(worker)

    def end(self, worker: str, *, leaking: bool) -> None:
        grant = self.running.pop(worker)
        self.loading.discard(worker)
        for device in grant.devices if not leaking else ():
            self.world.used[device] -= self.needs[worker].fraction
        self.see(self.world.release(worker))

    @rule(worker=names, devices=st.integers(1, 2), fraction=st.sampled_from([0.2, 0.34, 0.5, 0.9]))
    def ask(self, worker: str, devices: int, fraction: float) -> None:
        if worker not in self.running and worker not in self.asked:
            self.needs[worker] = Needs(devices, fraction)
            self.asked.add(worker)
            self.see(self.world.ask(**{worker: self.needs[worker]}))

    @rule(worker=names)
    def ready(self, worker: str) -> None:
        if worker in self.loading:
            self.loading.remove(worker)
            self.see(self.world.ready(worker))

    @rule(worker=names, leaking=st.booleans())
    def die(self, worker: str, leaking: bool) -> None:  # noqa: FBT001
        if worker in self.running:
            self.end(worker, leaking=leaking)

    @rule(worker=names)
    def unwanted(self, worker: str) -> None:
        if worker in self.asked:
            self.asked.remove(worker)
            assert self.world.admission.withdraw(worker, self.world.now)

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.see(self.world.look(seconds))

    @rule()
    def blind(self) -> None:
        self.world.admission.unread("the driver did not answer", self.world.now)

    @rule()
    def give_back(self) -> None:
        """What was leaked is free again, and the driver answers."""
        self.world.admission.unreadable = ""
        self.world.used = dict.fromkeys(self.world.used, 0.0)
        for worker, grant in self.running.items():
            for device in grant.devices:
                self.world.used[device] += self.needs[worker].fraction

    @invariant()
    def nothing_is_given_twice(self) -> None:
        assert len(self.loading) <= 2
        for device in self.world.admission.devices.values():
            on_it = [w for w, grant in self.running.items() if device.index in grant.devices]
            assert sum(self.needs[worker].fraction for worker in on_it) <= 1.001
            assert set(device.claims) == set(on_it)

    def teardown(self) -> None:
        """Once all that run end in turn, nobody is left waiting."""
        if not hasattr(self, "world"):
            return
        for _ in range(100):
            self.give_back()
            self.see(self.world.look(0.5))
            for worker in list(self.running):
                self.end(worker, leaking=False)
        assert not self.asked, self.world.admission.describe()
        assert self.world.admission.describe()["waiting"] == []
        assert not self.world.admission.wants_readings


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# What a worker needs.


def spec(engine: str = "vllm", env: dict[str, str] | None = None, **args: Any) -> ModelSpec:
    return ModelSpec("m", tiny_model_path(), engine=engine, env=env or {}, engine_args=args)


def test_the_echo_engine_needs_nothing() -> None:
    assert needs_of(spec("echo"), {}, has_gpus=True) == Needs()


def test_a_model_on_the_cpu_needs_ram_for_its_weights() -> None:
    weights = weights_size(tiny_model_path())
    assert weights > 100_000
    cache = 32 * 2**20
    found = needs_of(spec(kv_cache_memory_bytes=cache), {}, has_gpus=False)
    assert found == Needs(ram=weights + PROCESS_RAM + cache)


def test_a_model_that_is_not_on_this_disk_needs_an_unknown_amount(tmp_path: Path) -> None:
    assert weights_size(str(tmp_path)) == weights_size("nobody/nothing") == 0
    unknown = ModelSpec("m", "nobody/nothing")
    assert needs_of(unknown, {}, has_gpus=False) == Needs(ram=0)


def test_a_model_on_gpus_needs_as_many_as_its_parallel_sizes_say() -> None:
    found = needs_of(spec(tensor_parallel_size=4, pipeline_parallel_size=2), {}, has_gpus=True)
    assert found == Needs(8, DEFAULT_FRACTION, None, PROCESS_RAM)
    assert needs_of(spec(gpu_memory_utilization=0.4), {}, has_gpus=True).fraction == 0.4


def test_the_models_own_list_of_devices_goes_before_the_supervisors() -> None:
    base = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert needs_of(spec(), base, has_gpus=True).visible == ("0", "1")
    own = spec(env={"CUDA_VISIBLE_DEVICES": "2, GPU-77"})
    assert needs_of(own, base, has_gpus=True).visible == ("2", "GPU-77")


@pytest.mark.parametrize(
    "own",
    [
        spec(env={"CUDA_VISIBLE_DEVICES": ""}),
        spec(distributed_executor_backend="ray"),
        spec(device_ids=[1]),
    ],
)
def test_who_places_itself_is_left_alone(own: ModelSpec) -> None:
    assert needs_of(own, {}, has_gpus=True).devices == 0


def test_arguments_of_a_wrong_kind_are_the_workers_to_refuse() -> None:
    odd = spec(tensor_parallel_size="two", gpu_memory_utilization="most")
    assert needs_of(odd, {}, has_gpus=True)[:2] == (1, DEFAULT_FRACTION)


@pytest.mark.vllm
def test_the_default_fraction_is_vllms_own() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(found.origin).with_name("config") / "cache.py"  # to import it takes 20 s
    (default,) = re.findall(r"gpu_memory_utilization: float = .*?([\d.]+)", source.read_text())
    assert float(default) == DEFAULT_FRACTION
