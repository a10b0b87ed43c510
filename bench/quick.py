"""`make bench-quick`: the pool beside `vllm.LLM`, vLLM's HTTP server and bare pyzmq, in one run.

All are loaded at once and take turns: A B C A B C …, so that a busy machine hits all of them alike.
Nobody's turn begins before the others are idle. Results also go to bench/results/quick.json.
"""

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.children import cpu_seconds, family, resident_mb
from bench.inprocess import InProcess
from bench.measure import Series
from bench.pooled import Pooled
from bench.report import Report
from bench.server import Server
from bench.twohop import TwoHop
from bench.workload import BATCH_PASSES, ECHO_CALLS, ONE_CALLS, ROUNDS
from vllmport.pool import Pool

IDLE_SHARE = 0.05
IDLE_LOOK = 0.2
IDLE_TIMEOUT = 10.0
LONG_LOOK = 3.0

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
        first = {"pool": self.pooled.first_token(), "in-process": self.inprocess.wait()}
        say("vllm.LLM is ready")
        first["server"] = self.server.wait()
        say("the server is ready")
        if len(set(first.values())) != 1:
            raise SystemExit(f"the contenders do not say the same: {first}")  # noqa: EM102
        self.twohop = stack.enter_context(TwoHop(folder))
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

    def _pids(self) -> dict[str, list[int]]:
        return {
            "pool": family(self.pooled.supervisor),
            "in-process": family(self.inprocess.child.pid),
            "server": family(self.server.child.pid),
        }

    def _look_at_idle(self) -> None:
        """See what the loaded contenders use while nobody asks them anything."""
        self._quiet()
        pids = self._pids()
        before = {name: cpu_seconds(found) for name, found in pids.items()}
        time.sleep(LONG_LOOK)
        for name, found in pids.items():
            share = (cpu_seconds(found) - before[name]) / LONG_LOOK
            self.report.idle[name] = share
        say("idle: " + ", ".join(f"{name} {share:.1%}" for name, share in self.report.idle.items()))

    def _quiet(self) -> None:
        """Wait until no contender computes: vLLM's server spins for a second after a request."""
        pids = [pid for found in self._pids().values() for pid in found]
        end = time.monotonic() + IDLE_TIMEOUT
        while time.monotonic() < end:
            before = cpu_seconds(pids)
            time.sleep(IDLE_LOOK)
            if cpu_seconds(pids) - before < IDLE_SHARE * IDLE_LOOK:
                return
        self.report.noisy_turns += 1

    def _calls(self, name: str, unit: str, work: Callable[[int], list[float]], count: int) -> None:
        self._quiet()
        self._series(name, unit).add_calls(work(count))

    def _rates(self, name: str, unit: str, work: Callable[[int], list[float]], passes: int) -> None:
        self._quiet()
        series = Series(unit, work(passes))
        self._series(name, unit).add(series.median)

    def _series(self, name: str, unit: str) -> Series:
        return self.report.series.setdefault(name, Series(unit))

    def _one_token(self) -> None:
        self._calls("one_token.pool", "ms", self.pooled.one_token, ONE_CALLS)
        self._calls("one_token.inprocess", "ms", self.inprocess.one_token, ONE_CALLS)
        self._calls("one_token.server", "ms", self.server.one_token, ONE_CALLS)

    def _batches(self) -> None:
        unit = "tok/s"
        self._rates("streamed.pool", unit, self._watched_streams, BATCH_PASSES)
        self._rates("streamed.server", unit, lambda _: [self.server.streamed()], 1)
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
        used: dict[str, float] = {
            "supervisor": cpu_seconds(supervisor) - cpu[0],
            "worker": cpu_seconds(worker) - cpu[1],
            "client": time.process_time() - cpu[2],
        }
        for name, seconds in used.items():
            self._series(f"streamed_cpu.{name}", "share of a core").add(seconds / took)
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
