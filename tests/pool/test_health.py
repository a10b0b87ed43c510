"""Who hangs, and who is only busy."""

import pytest

from vllmport.pool.supervisor.health import PING_EVERY, Health, Vitals, why_recycle

STALL = 8.0


class Watch:
    """One worker under watch; each look is an interval later."""

    def __init__(self) -> None:
        self.health = Health(STALL)
        self.now = 100.0
        self.seen = Vitals(0, 0, 0, 0.0)
        self.health.watch("w", self.seen, self.now)

    def look(
        self,
        *,
        in_flight: int = 0,
        turns: int = 0,
        steps: int = 0,
        cpu: float = 0.0,
        asleep: bool = False,
    ) -> str | None:
        """Look again; `turns`, `steps` and `cpu` are what was added since the last look."""
        self.now += self.health.interval
        before = self.seen
        self.seen = Vitals(
            in_flight, before.turns + turns, before.steps + steps, before.cpu + cpu, asleep
        )
        return self.health.look("w", self.seen, self.now)

    def verdict_after(self, seconds: float, **look: float) -> str | None:
        verdict = None
        for _ in range(round(seconds / self.health.interval)):
            verdict = verdict or self.look(**look)  # type: ignore[arg-type]
        return verdict


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_worker_that_steps_is_well(watch: Watch) -> None:
    assert watch.verdict_after(10 * STALL, in_flight=1, steps=1) is None


def test_calls_without_a_step_are_a_hang_after_the_stall_timeout(watch: Watch) -> None:
    assert watch.verdict_after(STALL, in_flight=2) is None, "counted from the first look with calls"
    verdict = watch.look(in_flight=2)
    assert verdict is not None
    assert "it holds 2 calls and made no step for 8.0 s" in verdict


def test_a_loop_that_turns_is_no_step(watch: Watch) -> None:
    """The front of an engine in another process goes on when that process is stopped."""
    assert watch.verdict_after(2 * STALL, in_flight=1, turns=2) is not None


def test_a_worker_that_computes_is_busy_however_long_it_takes(watch: Watch) -> None:
    computing = watch.health.interval * 0.5
    assert watch.verdict_after(10 * STALL, in_flight=1, cpu=computing) is None


def test_the_little_that_waiting_costs_is_no_computing(watch: Watch) -> None:
    waiting = watch.health.interval * 0.02
    assert watch.verdict_after(2 * STALL, in_flight=1, cpu=waiting) is not None


def test_time_without_calls_does_not_count(watch: Watch) -> None:
    assert watch.verdict_after(10 * STALL) is None
    assert watch.verdict_after(STALL, in_flight=1) is None


def test_time_in_which_the_whole_machine_stood_still_does_not_count(watch: Watch) -> None:
    watch.look(in_flight=1)
    watch.now += 100 * STALL
    assert watch.look(in_flight=1) is None


def test_an_idle_worker_is_asked_from_time_to_time(watch: Watch) -> None:
    assert watch.health.wants_ping("w", watch.now)
    assert not watch.health.wants_ping("w", watch.now + PING_EVERY / 2)
    assert watch.health.wants_ping("w", watch.now + PING_EVERY)


def test_an_idle_worker_that_does_not_answer_hangs(watch: Watch) -> None:
    assert watch.health.wants_ping("w", watch.now)
    verdict = watch.verdict_after(2 * STALL)
    assert verdict is not None
    assert "its loop does not answer" in verdict


def test_an_idle_worker_that_answers_is_well(watch: Watch) -> None:
    assert watch.health.wants_ping("w", watch.now)
    assert watch.look(turns=1) is None
    assert watch.verdict_after(10 * STALL) is None


def test_calls_that_wait_for_a_sleeping_engine_are_no_hang_until_it_is_woken(watch: Watch) -> None:
    assert watch.verdict_after(10 * STALL, in_flight=2, asleep=True) is None
    assert watch.verdict_after(STALL, in_flight=2) is None, "counted from the first look awake"
    assert watch.look(in_flight=2) is not None


def test_the_loop_of_a_sleeping_worker_has_to_answer(watch: Watch) -> None:
    watch.look(in_flight=2, asleep=True)
    assert watch.health.wants_ping("w", watch.now)
    verdict = watch.verdict_after(2 * STALL, in_flight=2, asleep=True)
    assert verdict is not None
    assert "its loop does not answer" in verdict


def test_who_is_forgotten_is_not_looked_at(watch: Watch) -> None:
    assert watch.health.take_due(watch.now) == ["w"]
    watch.health.forget("w")
    assert watch.health.take_due(watch.now) == []
    assert watch.health.next_deadline() == float("inf")


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_age": 59.0}, "60 s old"),
        ({"max_calls": 10}, "10 calls"),
        ({"max_rss": 2**20}, "1 MiB"),
        ({"max_gpu_memory": 2**30}, "1024 MiB of GPU memory"),
        (
            {"max_age": 61.0, "max_calls": 11, "max_rss": 2**21, "max_gpu_memory": 2**30 + 1},
            None,
        ),
        ({}, None),
    ],
)
def test_when_a_worker_is_due_to_be_replaced(limits: dict[str, float], why: str | None) -> None:
    given = {"max_age": 0, "max_calls": 0, "max_rss": 0, "max_gpu_memory": 0, **limits}
    found = why_recycle(60.0, 10, 2**20, 2**30, **given)  # type: ignore[arg-type]
    assert found is why is None or (why is not None and found is not None and why in found)
