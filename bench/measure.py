"""Samples of one quantity over several rounds: median, spread, ratios. Pure but for the clock."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Series:
    """One quantity of one contender.

    Attributes:
        unit: Of the values.
        rounds: One value for each round.
        calls: Every single value, where rounds are medians of calls.
    """

    unit: str
    rounds: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def p99(self) -> float:
        """The 99th percentile of all calls of all rounds."""
        return percentile(self.calls, 0.99)

    def add(self, value: float) -> None:
        """Add the value of a round."""
        self.rounds.append(value)

    def add_calls(self, calls: list[float]) -> None:
        """Add a round by the durations of its calls."""
        self.rounds.append(percentile(calls, 0.5))
        self.calls.extend(calls)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single calls."""
        found: dict[str, Any] = {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.rounds),
            "max": max(self.rounds),
            "rounds": self.rounds,
        }
        if self.calls:
            found |= {"p50": percentile(self.calls, 0.5), "p99": self.p99, "calls": len(self.calls)}
        return found


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached.

    Attributes:
        name: What is compared with what.
        ratio: What was measured.
        limit: What is wanted.
        at_least: Whether the limit is the least that will do, else the most.
    """

    name: str
    ratio: float
    limit: float
    at_least: bool

    @property
    def passed(self) -> bool:
        """Whether it was reached."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        sign = ">=" if self.at_least else "<="
        return {
            "name": self.name,
            "ratio": self.ratio,
            "wanted": f"{sign} {self.limit}",
            "pass": self.passed,
        }


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def timed_calls(call: Callable[[], Any], count: int) -> list[float]:
    """Make a call again and again and return how long each took, in ms."""
    took = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1e3)
    return took


def rate(work: Callable[[], int]) -> float:
    """Do some work and return how many of what it counts there were each second."""
    start = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - start)
