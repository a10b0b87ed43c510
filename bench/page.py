"""docs/performance.md: its tables are written between marks, from the files of the sections.

What is outside the marks is written by people. `<!-- bench:NAME -->` begins a part that is made
here, `<!-- /bench -->` ends it.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from bench import targets
from bench.environment import BENCH_PYTHON
from bench.results import RESULTS
from bench.workload import ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
CHARTS: Final = ROOT / "docs" / "performance"
PART: Final = re.compile(r"(<!-- bench:([a-z:]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
NAMES: Final = ("echo", "inference", "life", "deadlines", "growth")

Found = dict[str, dict[str, Any]]


def write() -> None:
    """Write the parts of the page and draw the charts, from what was measured last."""
    found = read()
    PAGE.write_text(rendered(PAGE.read_text(), found))
    drawn = subprocess.run([BENCH_PYTHON, str(ROOT / "bench" / "charts.py")], check=False)
    print(f"{PAGE.relative_to(ROOT)} is written" + (", without charts" * bool(drawn.returncode)))


def read() -> Found:
    """Return what each section found, as far as there are files."""
    paths = {name: RESULTS / f"{name}.json" for name in NAMES}
    return {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}


def rendered(text: str, found: Found) -> str:
    """Return a page with its parts made anew."""

    def part(match: re.Match[str]) -> str:
        name, _, detail = match[2].partition(":")
        lines = "\n".join(PARTS[name](found, detail))
        return f"{match[1]}\n{lines or 'Not measured yet.'}\n\n{match[3]}"

    return PART.sub(part, text)


def _machine(found: Found, _: str) -> Iterator[str]:
    if not found:
        return
    yield "| section | date | minutes | machine | load before | turns repeated, disturbed |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, section in found.items():
        machine, facts = section["machine"], section["facts"]
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"
        turns = f"{facts.get('repeated_turns', '')}, {facts.get('disturbed_turns', '')}"
        yield (
            f"| {name} | {section['date'][:16].replace('T', ' ')} | {section['seconds'] / 60:.1f} "
            f"| {where} | {machine['load_before']} | {turns.strip(', ')} |"
        )
    last = list(found.values())[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    yield ""
    yield f"Python {last['python']}; {versions}."


def _targets(found: Found, _: str) -> Iterator[str]:
    yield "| what | wanted | measured | |"
    yield "| --- | --- | --- | --- |"
    for row in targets.rows(found):
        measured = "" if row.ratio is None else f"{number(row.ratio)}{row.unit}"
        verdict = "not measured" if row.ratio is None else ("reached" if row.reached else "missed")
        yield f"| {row.what} | {row.wanted} | {measured} | {verdict} |"


def _table(found: Found, detail: str) -> Iterator[str]:
    """Write each measure of a section: contenders down, median, spread, p99, CPU of the client."""
    section = found.get(detail)
    if section is None:
        return
    for measure in section["measures"].values():
        yield from _measure(measure)
    if section["absent"]:
        yield "Took no part:"
        yield ""
        yield from (f"- {name}: {why}" for name, why in section["absent"].items())
        yield ""
    yield from (f"- **{name}**: {how}." for name, how in section["contenders"].items())


def _measure(measure: Mapping[str, Any]) -> Iterator[str]:
    values = measure["values"]
    p99 = any("p99" in value for value in values.values())
    cpu = any("cpu" in value for value in values.values())
    heads = [f"**{measure['what']}**, {measure['unit']}", "median", "min … max"]
    heads += ["p99"] * p99 + ["client's CPU"] * cpu
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for name, value in values.items():
        cells = [name, number(value["median"]), f"{number(value['min'])} … {number(value['max'])}"]
        cells += [number(value["p99"]) if "p99" in value else ""] * p99
        cells += [f"{value['cpu']:.0%}" if "cpu" in value else ""] * cpu
        yield f"| {' | '.join(cells)} |"
    for name, why in measure["failed"].items():
        yield f"| {name} | {why.replace('|', '/')} |{' |' * (len(heads) - 2)}"
    yield ""


def _growth(found: Found, _: str) -> Iterator[str]:
    """Write what grows with a size: sizes across."""
    section = found.get("growth")
    if section is None:
        return
    for measure in section["measures"].values():
        sizes = measure["values"]
        yield f"| {measure['what']}, {measure['unit']} | {' | '.join(sizes)} |"
        yield f"| --- |{' ---: |' * len(sizes)}"
        yield f"| median | {' | '.join(number(value['median']) for value in sizes.values())} |"
        yield ""
        yield from (f"- {size}: {why}" for size, why in measure["failed"].items())
        yield from [""] * bool(measure["failed"])


def _decisions(found: Found, detail: str) -> Iterator[str]:
    """Write what decisions cost, by one kind of size."""
    decisions = found.get("growth", {}).get("facts", {}).get("decisions", {})
    by = {"workers": "workers", "waiting": "waiting calls"}[detail]
    chosen = {name: curve for name, curve in decisions.items() if curve["by"] == by}
    if not chosen:
        return
    sizes = list(next(iter(chosen.values()))["us"])
    heads = " | ".join(f"{int(size):,}" for size in sizes)
    yield f"| µs for one decision, by {by} | {heads} | grows with the power | |"
    yield f"| --- |{' ---: |' * (len(sizes) + 1)} --- |"
    for name, curve in chosen.items():
        cells = " | ".join(number(curve["us"][size]) for size in sizes)
        verdict = "flat" if curve["flat"] else "grows"
        yield f"| {name} | {cells} | {curve['power']:.2f} | {verdict} |"


PARTS: Final[dict[str, Callable[[Found, str], Iterator[str]]]] = {
    "machine": _machine,
    "targets": _targets,
    "table": _table,
    "growth": _growth,
    "decisions": _decisions,
}


def number(value: float) -> str:
    """Write three digits of a number."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
