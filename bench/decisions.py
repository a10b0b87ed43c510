"""What one decision of the supervisor costs, by how much there is to decide about.

No process, no socket, no clock: the real dispatcher, fleet and admission, told of up to ten
thousand workers and a million calls that wait. A cost that stays as it is, or grows as a logarithm
does, says that size is no matter; one that grows in proportion names a search over everything.
"""

import gc
import itertools
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from vllmport.bridge.codec import Packed
from vllmport.bridge.messages import Call, Result, decode_header, encode
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.actions import Serve, Spawn
from vllmport.pool.supervisor.admission import Admission, Grant, Needs
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker

WORKERS: Final = (10, 100, 1_000, 10_000)
QUEUED: Final = (1_000, 10_000, 100_000, 1_000_000)
BUSY_WORKERS: Final = 100
"""Workers that all are busy while calls wait."""
CAPACITY: Final = 4
TIMED: Final = 400
"""Decisions of one kind that are timed together."""
CHUNKS: Final = 5
"""How often that is done; the median counts."""
GROWS: Final = 0.3
"""What grows with this power of the size, or a higher one, is not flat."""

MODEL: Final = "echo"
CLIENT: Final = 1
ARGUMENTS: Final = Packed(b"\x80", [])
START: Final = 1000.0
MEMORY: Final = 10**15

Curve = dict[int, float]
"""Size → µs for one decision."""


class Calls:
    """A dispatcher whose workers only exist in the telling.

    Args:
        workers: How many.
        seed: For the budgets of the calls.
    """

    def __init__(self, workers: int, seed: int = 7) -> None:
        self.now = START
        self._events = EventLog(lambda: self.now)
        self._dispatcher = Dispatcher(10**9, 10**12, 10.0, self._events)
        self._dispatcher.add_model(MODEL)
        for number in range(workers):
            self._dispatcher.worker_ready(f"{MODEL}/{number}", MODEL, CAPACITY, self.now)
        self._places = workers * CAPACITY
        self._ids = itertools.count(1)
        self._random = random.Random(seed)  # noqa: S311  # budgets, not secrets
        self._given: deque[tuple[str, int]] = deque()

    def fill(self, calls: int) -> None:
        """Let so many calls come."""
        for _ in range(calls):
            self._come()
        self._take()

    def fill_half(self) -> None:
        """Give each worker half of what it can hold."""
        self.fill(self._places // 2)

    def fill_all(self, waiting: int) -> None:
        """Give each worker all it can hold, and let more wait."""
        self.fill(self._places + waiting)

    def pass_through(self) -> float:
        """Calls come, get a worker and end; return the seconds for each."""
        start = time.process_time()
        for _ in range(TIMED):
            self._come()
            self._end()
            self._take()
        return (time.process_time() - start) / TIMED

    def queue(self) -> float:
        """Calls come and have to wait; return the seconds for each."""
        start = time.process_time()
        for _ in range(TIMED):
            self._come()
        return (time.process_time() - start) / TIMED

    def next_one(self) -> float:
        """Calls end and others start in their place; return the seconds for each."""
        start = time.process_time()
        for _ in range(TIMED):
            self._end()
            self._take()
        return (time.process_time() - start) / TIMED

    def cancel(self) -> float:
        """Calls that wait are given up, at any place of the queue; return the seconds for each."""
        last = next(self._ids)
        waiting = range(last - self._dispatcher.queued(MODEL), last)
        chosen = self._random.sample(waiting, min(TIMED, len(waiting) // 4))
        start = time.process_time()
        for call_id in chosen:
            self._dispatcher.cancel(CLIENT, call_id, self.now)
        took = time.process_time() - start
        self._dispatcher.take_outgoing()
        return took / len(chosen)

    def turn(self) -> float:
        """The loop asks when something is due; return the seconds for each."""
        start = time.process_time()
        for _ in range(TIMED):
            self._dispatcher.next_deadline()
        return (time.process_time() - start) / TIMED

    def expire(self) -> float:
        """Time passes until some more calls are late; return the seconds for each."""
        before = self._dispatcher.queued(MODEL)
        wanted = min(TIMED, before // 8)
        gone, took = 0, 0.0
        while gone < wanted:
            self.now = self._dispatcher.next_deadline()
            start = time.process_time()
            self._dispatcher.expire(self.now)
            took += time.process_time() - start
            gone = before - self._dispatcher.queued(MODEL)
        self._dispatcher.take_outgoing()
        self._events.take_new()
        return took / gone

    def _come(self) -> None:
        budget = self._random.randrange(3_600_000, 36_000_000)
        header = Call(next(self._ids), MODEL, "echo", budget)
        self._dispatcher.call(CLIENT, header, ARGUMENTS, self.now)

    def _end(self) -> None:
        worker, call_id = self._given.popleft()
        frames = encode(Result(call_id, CLIENT, worker, 1))
        self._dispatcher.result(worker, CLIENT, call_id, frames, self.now)

    def _take(self) -> None:
        """See which worker was given which call."""
        for message in self._dispatcher.take_outgoing():
            if isinstance(message, ToWorker):
                header = decode_header(message.frames[0])
                if isinstance(header, Call):
                    self._given.append((message.worker, header.id))
            else:
                assert isinstance(message, ToClient), "there are no others"


class Workers:
    """A fleet whose processes only exist in the telling.

    Args:
        count: How many workers its one model has.
    """

    def __init__(self, count: int) -> None:
        self.now = START
        self._count = count
        self._up: list[str] = []
        self._events = EventLog(lambda: self.now)
        nonces = map(str, itertools.count())
        policy = Policy(max_loads=4)
        self._fleet = Fleet(policy, self._events, lambda: next(nonces), jitter=lambda: 0.5)
        self._admission = Admission(policy, self._events, has_gpus=False)
        self._dispatcher = Dispatcher(10**9, 10**12, 10.0, self._events)
        self._dispatcher.add_model(MODEL)

    def load(self) -> float:
        """All workers are asked for; return the seconds for each."""
        spec = ModelSpec(MODEL, MODEL, "echo", replicas=self._count)
        start = time.process_time()
        self._fleet.load(spec, self.now, declared=True)
        took = time.process_time() - start
        for action in self._fleet.take_actions():
            assert isinstance(action, Spawn), "nothing else is to be done yet"
            self._admission.request(action.worker, Needs(), self.now)
        return took / self._count

    def come_up(self) -> Iterator[float]:
        """The first get a turn to load, register and are ready; yield the seconds of each."""
        while len(self._up) < min(self._count, TIMED):
            start = time.process_time()
            granted = self._admission.take_decisions(self.now, MEMORY)
            took = (time.process_time() - start) / max(1, len(granted))
            for grant in granted:
                assert isinstance(grant, Grant), "there is room for all"
                start = time.process_time()
                self._start(grant.worker)
                self._admission.ready(grant.worker, self.now)
                yield took + time.process_time() - start
                self._up.append(grant.worker)
        self._events.take_new()

    def turn(self) -> float:
        """The loop asks when something is due; return the seconds for each."""
        start = time.process_time()
        for _ in range(TIMED):
            self._fleet.next_deadline()
        return (time.process_time() - start) / TIMED

    def replace(self) -> float:
        """Workers die and are started again; return the seconds for each."""
        some = min(self._count, TIMED // 10)
        victims = self._up[:some]
        start = time.process_time()
        for worker in victims:
            self._dispatcher.worker_gone(worker, "killed", {}, self.now)
            self._fleet.exited(worker, "killed", [], self.now)
            self.now = self._fleet.next_deadline()
            self._fleet.tick(self.now)
            self._start(worker)
        return (time.process_time() - start) / some

    def _start(self, worker: str) -> None:
        self._fleet.spawning(worker, self.now)
        self._fleet.spawned(worker, 1)
        self._fleet.registered(worker, self.now)
        self._fleet.ready(worker, CAPACITY, "echo", {}, self.now)
        for action in self._fleet.take_actions():
            if isinstance(action, Serve):
                self._dispatcher.worker_ready(action.worker, MODEL, CAPACITY, self.now)


def measure(
    workers: tuple[int, ...] = WORKERS, queued: tuple[int, ...] = QUEUED
) -> dict[str, dict[str, Any]]:
    """Return for each decision its curve, and the power of the size that it grows with."""
    by_workers: dict[str, Curve] = {}
    for size in workers:
        for name, micros in _with_workers(size):
            by_workers.setdefault(name, {})[size] = micros
    by_queue: dict[str, Curve] = {}
    for size in queued:
        for name, micros in _with_queue(size):
            by_queue.setdefault(name, {})[size] = micros
    found = {}
    for unit, curves in (("workers", by_workers), ("waiting calls", by_queue)):
        for name, curve in curves.items():
            power = growth(curve)
            found[name] = {"by": unit, "us": curve, "power": power, "flat": power < GROWS}
    return found


def growth(curve: Curve) -> float:
    """Return the power of the size that the upper half of a curve grows with."""
    sizes = sorted(curve)
    low, high = sizes[(len(sizes) - 1) // 2], sizes[-1]
    return math.log(curve[high] / curve[low]) / math.log(high / low)


def _with_workers(size: int) -> Iterator[tuple[str, float]]:
    calls = Calls(size)
    calls.fill_half()
    yield "a call finds a worker and ends", _micros(calls.pass_through)
    fleet = Workers(size)
    yield "a worker is asked for", fleet.load() * 1e6
    yield "a worker comes up", statistics.fmean(fleet.come_up()) * 1e6
    yield "asking the fleet what is due", _micros(fleet.turn)
    yield "a worker dies and is back", fleet.replace() * 1e6


def _with_queue(size: int) -> Iterator[tuple[str, float]]:
    calls = Calls(BUSY_WORKERS)
    calls.fill_all(size)
    gc.collect()
    yield "a call comes and waits", _micros(calls.queue)
    yield "a call ends, the next one starts", _micros(calls.next_one)
    yield "asking the dispatcher what is due", _micros(calls.turn)
    yield "a waiting call is cancelled", _micros(calls.cancel)
    yield "a waiting call expires", _micros(calls.expire)


def _micros(decide: Callable[[], float]) -> float:
    return statistics.median(decide() for _ in range(CHUNKS)) * 1e6


if __name__ == "__main__":
    for name, found in measure().items():
        curve = "  ".join(f"{size:,}: {micros:.2f}" for size, micros in found["us"].items())
        print(f"{found['power']:5.2f}  {name}: {curve}")
