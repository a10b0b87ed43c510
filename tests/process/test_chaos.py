"""Some cells of the kill matrix, and that it sees what is left; `make chaos` runs them all."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.cells import (
    CHILDREN,
    ENGINES,
    MOMENTS,
    QUICK,
    SIGNALS,
    VICTIMS,
    Cell,
    expectation,
    full,
    pairwise,
)

from processes import environment, worker_pid
from vllmport.pool import LLM, Pool

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLY = ("KILL", "TERM", "ABRT")

GROWTH = 1.05
"""Resident memory may be this many times as much, 150 deaths later."""


def chaos(folder: Path, *options: str) -> dict[str, Any]:
    """Run a part of the matrix in a process of its own, and return what it stored."""
    path = folder / "results.json"
    command = [sys.executable, "-m", "chaos", *options, "--json", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert path.exists(), done.stderr
    return dict(json.loads(path.read_text()))


def one(victim: str, moment: str, name: str) -> tuple[str, ...]:
    """Return the options that choose one cell."""
    return ("--engine", "echo", "--victim", victim, "--moment", moment, "--signal", name)


@pytest.mark.parametrize(("victim", "moment", "name"), QUICK)
def test_nothing_survives_and_service_comes_back(
    tmp_path: Path, victim: str, moment: str, name: str
) -> None:
    (cell,) = chaos(tmp_path, *one(victim, moment, name))["cells"]
    assert cell["problems"] == [], cell


def test_matrix_is_red_when_the_spawner_cannot_kill(tmp_path: Path) -> None:
    options = (*one("supervisor", "idle", "KILL"), "--blunt", "--patience", "3")
    (cell,) = chaos(tmp_path, *options)["cells"]
    assert cell["survivors"]
    assert not cell["limit"]


def test_many_deaths_of_workers_leave_nothing_in_supervisor_and_spawner(tmp_path: Path) -> None:
    early, late = chaos(tmp_path, "--deaths")["deaths"]
    assert late["zombies"] == 0
    for process in ("supervisor", "spawner"):
        assert late[process]["descriptors"] == early[process]["descriptors"]
        assert late[process]["threads"] == early[process]["threads"]
        assert late[process]["resident_kb"] < early[process]["resident_kb"] * GROWTH


# The children that try to outlive their worker.


@pytest.fixture
def start_child(echo: LLM) -> Iterator[Callable[[list[str]], Path]]:
    """Start a child of an echo worker; returns its folder in /proc."""
    pids: list[int] = []

    def start(ways: list[str]) -> Path:
        pids.append(echo.call("fault", {"kind": "child", "ways": ways})["pid"])
        return Path(f"/proc/{pids[-1]}")

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("ways", CHILDREN, ids="+".join)
def test_a_child_hides_in_the_ways_it_is_told(
    start_child: Callable[[list[str]], Path], shared_pool: Pool, ways: tuple[str, ...]
) -> None:
    worker = worker_pid(shared_pool)
    child = start_child(list(ways))
    name, _, rest = (child / "stat").read_text().partition("(")[2].rpartition(")")
    parent, _, session = map(int, rest.split()[1:4])
    assert (parent != worker) == ("double-fork" in ways)
    assert (session != worker) == ("setsid" in ways)
    assert name.startswith("[kworker") == ("rename" in ways)
    assert (b"python" not in (child / "cmdline").read_bytes()) == ("rename" in ways)
    assert ((child / "environ").read_bytes() == b"") == ("clear" in ways)
    ignored = int((child / "status").read_text().partition("SigIgn:")[2].split()[0], 16)
    assert ignored & 1 << (signal.SIGTERM - 1)


# The list of cells.


def test_every_cell_says_what_has_to_follow() -> None:
    cells = full(ENGINES, SIGNALS)
    assert len(cells) == len(set(cells))
    for cell in cells:
        assert expectation(cell).running


def test_every_victim_moment_signal_and_engine_is_there() -> None:
    cells = full(ENGINES, SIGNALS)
    known = (set(ENGINES), set(VICTIMS), set(MOMENTS), set(SIGNALS))
    assert tuple(map(set, zip(*cells, strict=True))) == known


def pairs(cells: list[Cell]) -> set[tuple[str, str]]:
    return {(one, other) for cell in cells for one in cell for other in cell if one < other}


def test_pairwise_cells_show_every_pair_in_a_fraction_of_them() -> None:
    every = full([name for name in ENGINES if name != "echo"], DEADLY)
    chosen = pairwise(every)
    assert pairs(chosen) == pairs(every)
    assert len(chosen) < len(every) / 6
    assert chosen == pairwise(every), "the same ones each time"


@pytest.mark.parametrize("engine", ["echo", "vLLM off"])
def test_a_victim_that_an_engine_does_not_have_is_left_out(engine: str) -> None:
    assert not {cell.victim for cell in full([engine], DEADLY)} & {"EngineCore", "TP worker"}
