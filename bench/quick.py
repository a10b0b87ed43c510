"""`make bench-quick`: the pool beside `vllm.LLM`, vLLM's HTTP server and bare pyzmq, in one run.

All are loaded at once and take turns: A B C A B C …, so that a busy machine hits all of them alike.
Nobody's turn begins before the others are idle, and a turn in which strangers
used the machine is made again. Results also go to bench/results/quick.json.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.children import busy_seconds, cpu_seconds, family, resident_mb
from bench.inprocess import InProcess
from bench.measure import Series
from bench.pooled import Pooled
from bench.report import Report
from bench.server import Server
from bench.twohop import TwoHop
from bench.workload import BATCH_PASSES, ECHO_CALLS, ONE_CALLS, ROUNDS

from vllmport.pool import Pool

QUIET = 0.15
"""Cores that may be busy when a turn begins: idle engines take a little."""
FOREIGN = 0.15
"""Cores that others may have used during a turn that counts."""
TRIES = 3
"""How often a turn is made at the most; whether it counts depends on FOREIGN alone."""
LOOK = 0.2
LONG_LOOK = 3.0
PATIENCE = 90.0
"""Seconds to wait for a quiet machine, over the whole run."""

BEGUN = time.monotonic()


class Bench:
    """The contenders and what was measured of them.

    Args:
        stack: Ends everything that was started.
        folder: For sockets and logs.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.report = Report()
        runner = stack.enter_context(asyncio.Runner())
        say("starting vLLM's HTTP server, vllm.LLM in a process, a pool, and a bare zmq.proxy …")
        self.server = Server(folder, runner)
        stack.enter_context(self.server.child)
        stack.callback(self.server.close)
        self.inprocess = InProcess(folder)
        stack.enter_context(self.inprocess.child)
        self.pooled = Pooled(stack.enter_context(Pool()), runner)
        stack.callback(self.pooled.close)
        say("the pool is ready")
        self._patience = PATIENCE
        self._watched: dict[str, float] = {}
        first = {"pool": self.pooled.first_token(), "in-process": self.inprocess.wait()}
        say("vllm.LLM is ready")
        first["server"] = self.server.wait()
        say("the server is ready")
        if len(set(first.values())) != 1:
            raise SystemExit(f"the contenders do not say the same: {first}")
        self.twohop = stack.enter_context(TwoHop(folder))
        self._pids = {
            "pool": family(self.pooled.supervisor),
            "in-process": family(self.inprocess.child.pid),
            "server": family(self.server.child.pid),
            "two hops": [child.pid for child in self.twohop.children],
            "bench": [os.getpid()],
        }
        self._warm_up()

    def run(self) -> None:
        """Measure everything."""
        self._look_at_idle()
        for number in range(1, ROUNDS + 1):
            self._one_token()
            self._batches()
            self._echoes()
            say(f"round {number} of {ROUNDS} is done")

    def _warm_up(self) -> None:
        for work in (self.pooled.one_token, self.inprocess.one_token, self.server.one_token):
            work(10)
        for batches in (self.pooled.final, self.pooled.streamed, self.inprocess.final):
            batches(2)
        self.server.streamed()
        self.pooled.echo(200)
        self.twohop.echo(200)
        say("all are warm")

    def _look_at_idle(self) -> None:
        """See what the loaded contenders use while nobody asks them anything."""
        self._wait_for_quiet()
        before = {name: cpu_seconds(found) for name, found in self._pids.items()}
        time.sleep(LONG_LOOK)
        for name, found in self._pids.items():
            self.report.idle[name] = (cpu_seconds(found) - before[name]) / LONG_LOOK
        say("idle: " + ", ".join(f"{name} {share:.1%}" for name, share in self.report.idle.items()))

    def _wait_for_quiet(self) -> None:
        """Wait until nobody computes: vLLM's server spins for a second after a request."""
        while self._patience > 0:
            before = busy_seconds()
            time.sleep(LOOK)
            if busy_seconds() - before < QUIET * LOOK:
                return
            self._patience -= LOOK

    def _turn(self, name: str, work: Callable[[], list[float]]) -> list[float]:
        """Let one contender work; again if others on this machine got in its way."""
        ours = [pid for found in self._pids.values() for pid in found]
        for _ in range(TRIES):
            self._wait_for_quiet()
            busy, own, start = busy_seconds(), cpu_seconds(ours), time.perf_counter()
            found = work()
            took = time.perf_counter() - start
            foreign = (busy_seconds() - busy - cpu_seconds(ours) + own) / took
            if foreign <= FOREIGN:
                break
            self.report.repeated_turns += 1
        else:
            self.report.repeated_turns -= 1  # the last one counts, for want of a better
            self.report.disturbed_turns += 1
        self.report.foreign.setdefault(name, []).append(foreign)
        return found

    def _calls(self, name: str, unit: str, work: Callable[[int], list[float]], count: int) -> None:
        self._series(name, unit).add_calls(self._turn(name, lambda: work(count)))

    def _rates(self, name: str, unit: str, work: Callable[[int], list[float]], passes: int) -> None:
        found = self._turn(name, lambda: work(passes))
        self._series(name, unit).add(statistics.median(found))

    def _series(self, name: str, unit: str) -> Series:
        return self.report.series.setdefault(name, Series(unit))

    def _one_token(self) -> None:
        self._calls("one_token.pool", "ms", self.pooled.one_token, ONE_CALLS)
        self._calls("one_token.inprocess", "ms", self.inprocess.one_token, ONE_CALLS)
        self._calls("one_token.server", "ms", self.server.one_token, ONE_CALLS)

    def _batches(self) -> None:
        unit = "tok/s"
        self._rates("streamed.pool", unit, self._watched_streams, BATCH_PASSES)
        for name, share in self._watched.items():
            self._series(f"streamed_cpu.{name}", "share of a core").add(share)
        self._rates("streamed.server", unit, lambda _: [self.server.streamed()], 1)
        self._series("streamed_events.server", "events").add(self.server.events)
        self._rates("streamed.pool_threads", unit, self.pooled.streamed_by_threads, 1)
        self._rates("final.pool", unit, self.pooled.final, BATCH_PASSES)
        self._rates("final.inprocess", unit, self.inprocess.final, BATCH_PASSES)

    def _echoes(self) -> None:
        self._calls("echo.pool", "ms", self.pooled.echo, ECHO_CALLS)
        self._calls("echo.two_hop", "ms", self.twohop.echo, ECHO_CALLS)
        unit = "calls/s"
        self._rates("echo64.pool", unit, lambda _: [self.pooled.echo_in_flight()], 1)
        self._rates("echo64.two_hop", unit, lambda _: [self.twohop.echo_in_flight()], 1)
        self._rates(
            "echo64.pool_threads", unit, lambda _: [self.pooled.echo_in_flight_by_threads()], 1
        )

    def _watched_streams(self, passes: int) -> list[float]:
        """Stream, and see what the supervisor uses meanwhile."""
        supervisor, worker = [self.pooled.supervisor], [self.pooled.workers["tiny"]]
        cpu = (cpu_seconds(supervisor), cpu_seconds(worker), time.process_time())
        start = time.perf_counter()
        rates = self.pooled.streamed(passes)
        took = time.perf_counter() - start
        self._watched = {
            "supervisor": (cpu_seconds(supervisor) - cpu[0]) / took,
            "worker": (cpu_seconds(worker) - cpu[1]) / took,
            "client": (time.process_time() - cpu[2]) / took,
        }
        self._series("supervisor_rss", "MB").add(resident_mb(self.pooled.supervisor))
        return rates


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - BEGUN:5.1f} s] {text}", flush=True)


def main() -> None:
    """Run the benchmark and report."""

    def leave(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="vllmport-bench-") as folder, ExitStack() as stack:
        bench = Bench(stack, Path(folder))
        bench.run()
        say("stopping all of it …")
    report = bench.report
    report.seconds = time.monotonic() - BEGUN
    report.show()
    say(f"written to {report.save()}")


if __name__ == "__main__":
    main()
