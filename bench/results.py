"""What one section found, and the file it is kept in: bench/results/SECTION.json."""

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.measure import Series
from bench.report import cpu_model, versions
from bench.workload import ROOT

RESULTS: Final = ROOT / "bench" / "results"
MAX_REASON: Final = 160


@dataclass
class Measure:
    """One quantity of several contenders.

    Attributes:
        what: In words.
        unit: Of the values.
        less_is_better: Else more is.
        series: Contender → its values.
        cpu: Contender → shares of a core its client used, one for each round.
        failed: Contender → why there are no values.
    """

    what: str
    unit: str
    less_is_better: bool = False
    series: dict[str, Series] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, contender: str, value: float | list[float], cpu: float | None = None) -> None:
        """Add a round: one value, or the durations of its calls."""
        series = self.series.setdefault(contender, Series(self.unit))
        if isinstance(value, list):
            series.add_calls(value)
        else:
            series.add(value)
        if cpu is not None:
            self.cpu.setdefault(contender, []).append(cpu)

    def fail(self, contender: str, reason: str) -> None:
        """Note why a contender cannot be measured; it is not tried again."""
        self.failed[contender] = " ".join(reason.split())[:MAX_REASON]

    def to_json(self) -> dict[str, Any]:
        """Return all of it but the single calls."""
        found = {}
        for name, series in self.series.items():
            if name not in self.failed:
                found[name] = series.to_json()
                if name in self.cpu:
                    found[name]["cpu"] = statistics.median(self.cpu[name])
        return {
            "what": self.what,
            "unit": self.unit,
            "less_is_better": self.less_is_better,
            "values": found,
            "failed": self.failed,
        }


class Section:
    """Everything that one section found.

    Args:
        name: Of the section, and of its file.
        contenders: What takes part → how it is driven.
    """

    def __init__(self, name: str, contenders: dict[str, str]) -> None:
        self.name = name
        self.contenders = contenders
        self.measures: dict[str, Measure] = {}
        self.facts: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        self._begun = time.monotonic()
        self._load = os.getloadavg()

    def measure(self, name: str, what: str, unit: str, *, less_is_better: bool = False) -> Measure:
        """Return the measure of this name, made the first time."""
        found = self.measures.setdefault(name, Measure(what, unit, less_is_better))
        found.what, found.unit, found.less_is_better = what, unit, less_is_better
        return found

    def save(self, *, trial: bool = False) -> Path:
        """Write the file and return its path; one that is only a trial is not for the page."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}{'.trial' * trial}.json"
        found = {
            "section": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._begun, 1),
            "machine": {
                "cpu": cpu_model(),
                "cores": os.cpu_count(),
                "system": platform.system() + " " + platform.release().split("-")[0],
                "load_before": round(self._load[0], 2),
            },
            "python": platform.python_version(),
            "versions": versions(),
            "contenders": self.contenders,
            "absent": self.absent,
            "measures": {name: measure.to_json() for name, measure in self.measures.items()},
            "facts": self.facts,
        }
        path.write_text(json.dumps(_rounded(found), indent=1) + "\n")
        return path


def _rounded(value: Any) -> Any:
    """Keep four digits: the rest is noise, and makes the files large."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(found) for name, found in value.items()}
    if isinstance(value, list):
        return [_rounded(found) for found in value]
    return value
