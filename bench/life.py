"""How things begin, come back and end: cold start, SIGKILL, stop; and what waiting costs.

Beside the pool: `vllm.LLM` in a process, and vLLM's own server, which a shell loop starts again.
One life has everything: it begins, its engine is killed and it comes back, and it ends; in one
round because it is asked to, in the next because its first process is killed.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from bench.contender import Failed
from bench.job import Job
from bench.lives import Life, Looped, Own
from bench.progress import say
from bench.results import Measure, Section

IDLE: Final = 3.0
TROUBLE: Final = (Failed, OSError, RuntimeError, psutil.Error)
"""What a contender can be in without ending the run."""


class Kind(NamedTuple):
    """A contender: how it is driven, its program, and what of its life is measured."""

    how: str
    program: tuple[str, ...] = ()
    cold: bool = True
    comes_back: bool = True
    idle: bool = False


KINDS: Final = {
    "pool, off": Kind(
        "a pool of one's own; engine in the worker", ("mortal.py", "off", "no"), idle=True
    ),
    "pool, on": Kind("the same; engine in a process of its own", ("mortal.py", "on", "no")),
    "pool, off, standby": Kind(
        "with a process at hand that has imported vLLM",
        ("mortal.py", "off", "standby"),
        cold=False,
    ),
    "pool, on, standby": Kind("the same", ("mortal.py", "on", "standby"), cold=False),
    "LLM, off": Kind(
        "vllm.LLM in a process of its own", ("in_process.py", "off", "generate"), comes_back=False
    ),
    "LLM, on": Kind(
        "the same; engine in a process of its own",
        ("in_process.py", "on", "generate"),
        comes_back=False,
    ),
    "server": Kind("vLLM's OpenAI server, in a shell loop that starts it again"),
}
IMPORTS: Final = {
    "Python alone": "pass",
    "vllmport.pool": "from vllmport.pool import LLM, Pool, SamplingParams",
    "vllm": "from vllm import LLM, SamplingParams",
}


class LifeBench:
    """The contenders of this section, started anew for each round.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.section = job.section("life", {name: kind.how for name, kind in KINDS.items()})

    def run(self) -> Section:
        """Measure everything so many times."""
        for number in range(self._job.rounds):
            self._imports()
            for name in self.section.contenders:
                self._job.turns.wait_for_quiet()
                self._live(name, killed=bool(number % 2))
        return self.section

    def _imports(self) -> None:
        for name, code in IMPORTS.items():
            self._try(self._measure("import", "start and import"), name, partial(_import, code))
        say("imports: done")

    def _live(self, name: str, *, killed: bool) -> None:
        """Measure one life of a contender."""
        cold = self._measure("cold", "start of the process to the first answer")
        restart = self._measure("restart", "SIGKILL of the engine to the next right answer")
        kind = KINDS[name]
        life = _life(name, self._job.folder)
        try:
            took = life.begin()
            if kind.cold:
                cold.add(name, took)
            if kind.idle:
                self._idle(name, life)
            if kind.comes_back:
                self._try(restart, name, life.come_back)
            if killed:
                what = "its first process killed, until all others are gone"
                self._try(self._measure("killed", what), name, life.die)
            else:
                what = "asked to stop, until all of its processes are gone"
                self._try(self._measure("stop", what), name, life.stop)
        except TROUBLE as exc:
            cold.fail(name, str(exc))
            say(f"{name} does not start: {exc}")
        finally:
            life.clean_up()
        say(f"{name}: done")

    def _idle(self, name: str, life: Life) -> None:
        assert isinstance(life, Own), "only a pool has a supervisor"
        found = life.idle(IDLE)
        for key, what, unit in (("cpu", "CPU", "share of a core"), ("rss", "memory", "MB")):
            measure = self._measure(f"idle_{key}", f"supervisor's {what} at rest", unit)
            measure.add(name, found[key])

    def _measure(self, key: str, what: str, unit: str = "s") -> Measure:
        return self.section.measure(key, what, unit, less_is_better=True)

    def _try(self, measure: Measure, name: str, work: Callable[[], float]) -> None:
        if name in measure.failed:
            return
        try:
            measure.add(name, work())
        except TROUBLE as exc:
            measure.fail(name, str(exc))
            say(f"{name}: {exc}")


def _life(name: str, folder: Path) -> Life:
    program = KINDS[name].program
    return Own(name, program, folder) if program else Looped(folder)


def _import(code: str) -> float:
    """Return the seconds that a Python takes to start, do this and end.

    Raises:
        Failed: It cannot.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    took = time.perf_counter() - start
    if done.returncode:
        raise Failed(done.stderr.decode(errors="replace"))
    return took


def run(job: Job) -> Section:
    """Run this section."""
    return LifeBench(job).run()
