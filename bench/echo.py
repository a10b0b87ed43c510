"""The bridge alone: one call, many calls, large values and streams, without any engine.

Each contender is a client process with one worker behind it, on the same machine. All are up
throughout and take turns, but for Ray, whose processes are never idle: it is started for its turns.
"""

from typing import Any, Final, NamedTuple

from bench.contender import Contender, Done, Failed, Stuck
from bench.environment import BENCH_PYTHON
from bench.job import Job
from bench.progress import say
from bench.results import Measure, Section
from bench.workload import ROOT

PEERS: Final = ROOT / "bench" / "peers"
SECONDS: Final = 0.7
"""How long calls are kept in flight, and streams read."""
LONGEST: Final = 2.0
"""Seconds that one call may take to be measured at all."""
LARGE: Final = 64 << 20


class Peer(NamedTuple):
    """How a contender is started and what its client is."""

    script: str
    how: str
    arguments: tuple[str, ...] = ()
    ours: bool = False
    resident: bool = True


CONTENDERS: Final[dict[str, Peer]] = {
    "pool": Peer("pool.py", "blocking client for one call, asyncio client for many", ours=True),
    "pyzmq, two hops": Peer(
        "two_hops.py", "DEALER, zmq.proxy, DEALER over ipc; msgpack: the limit"
    ),
    "Pipe": Peer("pipe.py", "multiprocessing.Pipe, one hop, pickle"),
    "ProcessPoolExecutor": Peer("process_pools.py", "submit, one worker", ("executor",)),
    "loky": Peer("process_pools.py", "reusable executor, one worker", ("loky",)),
    "pebble": Peer("process_pools.py", "ProcessPool with a time-out, one worker", ("pebble",)),
    "RPyC": Peer("rpyc_peer.py", "unix socket, msgpack bytes, async_ for many"),
    "gRPC": Peer("grpc_peer.py", "unix socket, asyncio server, generic handlers, msgpack"),
    "mosec": Peer("mosec_peer.py", "HTTP, kept connections, msgpack, one worker"),
    "LitServe": Peer("litserve_peer.py", "HTTP, kept connections, JSON, fast_queue, one worker"),
    "zerorpc": Peer("zerorpc_peer.py", "ipc, gevent client"),
    "Ray actor": Peer("ray_peer.py", "local Ray, no dashboard", resident=False),
}

ORDERS: Final[tuple[tuple[str, str, str, tuple[Any, ...]], ...]] = (
    ("call", "one call of 150 B, after the other", "ms", ("calls", 1000, 0)),
    ("flight1", "calls of 150 B, 1 in flight", "calls/s", ("flight", 1, SECONDS)),
    ("flight16", "calls of 150 B, 16 in flight", "calls/s", ("flight", 16, SECONDS)),
    ("flight256", "calls of 150 B, 256 in flight", "calls/s", ("flight", 256, SECONDS)),
    ("64KiB", "one call of 64 KiB there and back", "ms", ("calls", 100, 64 << 10)),
    ("1MiB", "one call of 1 MiB there and back", "ms", ("calls", 20, 1 << 20)),
    ("64MiB", "one call of 64 MiB there and back", "ms", ("calls", 2, LARGE)),
    ("stream1", "one stream, one item a message", "items/s", ("stream", 1, SECONDS)),
    ("stream64", "64 items a message", "items/s", ("stream", 64, SECONDS)),
)


class EchoBench:
    """The contenders of this section.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._peers = {name: peer for name, peer in CONTENDERS.items() if job.takes(name)}
        self.section = job.section("echo", {n: peer.how for n, peer in self._peers.items()})
        self._up: dict[str, Contender] = {}

    def run(self) -> Section:
        """Measure everything so many times."""
        try:
            for name, peer in self._peers.items():
                if peer.resident:
                    self._start(name, peer)
            for _ in range(self._job.rounds):
                self._round()
        finally:
            for contender in self._up.values():
                contender.close()
        return self.section

    def _round(self) -> None:
        for order in ORDERS:
            for contender in list(self._up.values()):
                self._turn(contender, *order)
            say(f"{order[1]}: done")
        for name, peer in self._peers.items():
            if not peer.resident and name not in self.section.absent:
                self._start(name, peer)
                for order in ORDERS:
                    if name in self._up:
                        self._turn(self._up[name], *order)
                if name in self._up:
                    self._up.pop(name).close()

    def _start(self, name: str, peer: Peer) -> None:
        python = None if peer.ours else BENCH_PYTHON
        command = [str(PEERS / peer.script), *peer.arguments]
        try:
            contender = Contender(name, command, self._job.folder, python)
            contender.do("calls", 50, 0)
            contender.look()
        except Failed as exc:
            self.section.absent[name] = str(exc)
            say(f"{name} takes no part: {exc}")
        else:
            self._up[name] = contender

    def _turn(
        self, contender: Contender, key: str, what: str, unit: str, order: tuple[Any, ...]
    ) -> None:
        measure = self.section.measure(key, what, unit, less_is_better=unit == "ms")
        name = contender.name
        if name in measure.failed:
            return
        try:
            if order[-1] == LARGE:
                self._refuse_the_slow(name)
            limit = 8 * LONGEST
            found: Done = self._job.turns.take(
                lambda: contender.do(*order, timeout=limit), self._pids
            )
        except Failed as exc:
            measure.fail(name, str(exc))
            if isinstance(exc, Stuck):
                self._start_again(name)
        else:
            measure.add(name, found.value, found.cpu)

    def _start_again(self, name: str) -> None:
        self._up.pop(name).close()
        self._start(name, self._peers[name])

    def _pids(self) -> list[int]:
        return [pid for contender in self._up.values() for pid in contender.pids]

    def _refuse_the_slow(self, name: str) -> None:
        smaller: Measure = self.section.measures["1MiB"]
        if name in smaller.failed:
            raise Failed(smaller.failed[name])
        expected = smaller.series[name].median * 64 / 1e3
        if expected > LONGEST:
            raise Failed(f"not tried: it would take about {expected:.0f} s")


def run(job: Job) -> Section:
    """Run this section."""
    return EchoBench(job).run()
