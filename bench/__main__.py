"""`make bench`: vllmport beside its peers and the physical limit, in one run on one machine.

Each section can be run alone, writes bench/results/SECTION.json as it ends, and is shown on
docs/performance.md; `--render` writes that page and its charts from the files and measures nothing.
"""

import argparse
import importlib
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from bench import page
from bench.environment import prepare
from bench.job import Job
from bench.turns import PATIENCE, Turns

SECTIONS: Final = {"echo": 2, "inference": 3, "life": 2, "deadlines": 2, "growth": 2}
"""Section → its rounds: as many as fit into twenty minutes."""


def main() -> int:
    """Run what was asked for; return 1 if a section could not be finished."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this one")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument(
        "--only", action="append", default=[], help="only this one; a trial, not for the page"
    )
    parser.add_argument("--noisy", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args()
    prepare()
    failed = 0
    if not args.render:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        for name in args.section or SECTIONS:
            turns = Turns(0.0 if args.noisy else PATIENCE)
            failed += not _run(name, turns, args.rounds or SECTIONS[name], args.only)
    page.write()
    return int(failed > 0)


def _run(name: str, turns: Turns, rounds: int, only: list[str]) -> bool:
    """Run one section and keep what it found; one that fails does not end the others."""
    begun = time.monotonic()
    print(f"{name}: {rounds} rounds …", flush=True)
    with tempfile.TemporaryDirectory(prefix="vllmport-bench-") as folder:
        try:
            job = Job(Path(folder), turns, rounds, only)
            section = importlib.import_module(f"bench.{name}").run(job)
            section.facts |= {"repeated_turns": turns.repeated, "disturbed_turns": turns.disturbed}
        except Exception:  # noqa: BLE001  # outermost: the other sections still count
            traceback.print_exc()
            return False
    took = time.monotonic() - begun
    print(f"{name}: {took:.0f} s, written to {section.save(trial=bool(only))}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
