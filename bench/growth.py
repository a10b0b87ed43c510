"""What one call and one token cost when there is more of everything.

Real: streams, echo workers and clients of one pool. Simulated: the decisions alone, up to ten
thousand workers and a million waiting calls (`decisions.py`).
"""

from typing import Final

from bench import decisions
from bench.contender import Contender, Failed
from bench.job import Job
from bench.progress import say
from bench.results import Section
from bench.turns import Turns
from bench.workload import ROOT

SECONDS: Final = 1.0
GROWS: Final[dict[str, tuple[int, ...]]] = {
    "streams": (1, 10, 100, 1_000),
    "workers": (1, 4, 16, 32),
    "clients": (1, 10, 100, 500),
}
PER: Final = {"streams": "token", "workers": "call", "clients": "call"}


def run(job: Job) -> Section:
    """Run this section."""
    section = Section(
        "growth", {"pool": "one echo pool; asyncio client, or a bare socket a client"}
    )
    command = [str(ROOT / "bench" / "engines" / "scale.py")]
    with Contender("scale", command, job.folder) as scale:
        for _ in range(job.rounds):
            for what, sizes in GROWS.items():
                if job.takes(what):
                    _grow(section, scale, job.turns, what, sizes)
    if job.takes("decisions"):
        say("simulating up to 10,000 workers and 1,000,000 calls …")
        section.facts["decisions"] = decisions.measure()
    return section


def _grow(
    section: Section, scale: Contender, turns: Turns, what: str, sizes: tuple[int, ...]
) -> None:
    for size in sizes:
        measures = {
            part: section.measure(
                f"{what}.{part}",
                f"{part}'s CPU for one {PER[what]}, by {what}",
                "µs",
                less_is_better=True,
            )
            for part in ("supervisor", "client")
        }
        measures["rate"] = section.measure(f"{what}.rate", f"rate by {what}", f"{PER[what]}s/s")
        try:
            turns.wait_for_quiet()  # processor time is hardly disturbed by others: no repeats
            found = scale.do(what, size, SECONDS).value
        except Failed as exc:
            measures["rate"].fail(str(size), str(exc))
            say(f"{size} {what}: {exc}")
            continue
        for part, measure in measures.items():
            measure.add(str(size), found[part])
    say(f"{what}: done")
