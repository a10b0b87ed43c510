"""What happens when the time of a call is over: to its caller, and in the engine.

Only vllmport takes part: neither `vllm.LLM` nor vLLM's server knows a deadline for a call.
"""

from typing import Final

from bench.contender import Contender, Failed
from bench.job import Job
from bench.measure import percentile
from bench.progress import say
from bench.results import Section
from bench.turns import Turns
from bench.workload import ROOT

ALONE: Final = 60
MANY: Final = 1000
HOW: Final = {
    "echo": "echo engine, 2 ms a step",
    "off": "vLLM, engine in the worker",
    "on": "vLLM, engine in a process of its own",
}


def run(job: Job) -> Section:
    """Run this section."""
    section = job.section("deadlines", HOW)
    script = str(ROOT / "bench" / "engines" / "budgets.py")
    for mode in section.contenders:
        try:
            with Contender(mode, [script, mode], job.folder) as budgets:
                for _ in range(job.rounds):
                    _round(section, budgets, job.turns)
        except Failed as exc:
            section.absent[mode] = str(exc)
        say(f"{mode}: done")
    return section


def _round(section: Section, budgets: Contender, turns: Turns) -> None:
    mode = budgets.name
    found = turns.take(lambda: budgets.do("alone", ALONE), lambda: budgets.pids).value
    _add(section, mode, "late", "one call at a time: expiry to error", "ms", found["late"])
    _add(section, mode, "steps", "steps of the engine after expiry", "steps", found["steps"])
    found = turns.take(lambda: budgets.do("many", MANY), lambda: budgets.pids).value
    _add(
        section,
        mode,
        "late_many",
        "1,000 calls, 32 at a time: expiry to error",
        "ms",
        found["late"],
    )
    generated = max(1, found["generated"])
    for key, what, tokens in (
        ("wasted", "tokens generated of 1,000 expired calls that no caller had in time", "in_time"),
        ("unknown", "tokens generated of 1,000 expired calls that no error counts", "reported"),
    ):
        share = 100 * (generated - found[tokens]) / generated
        section.measure(key, what, "%", less_is_better=True).add(mode, max(0.0, share))


def _add(section: Section, mode: str, key: str, what: str, unit: str, values: list[float]) -> None:
    section.measure(key, what, unit, less_is_better=True).add(mode, values)
    worst = section.measure(f"{key}_p99", f"{what}, p99", unit, less_is_better=True)
    worst.add(mode, percentile(values, 0.99))
