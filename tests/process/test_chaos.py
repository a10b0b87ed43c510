"""Some cells of the kill matrix, and that it sees what is left; `make chaos` runs them all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos.cells import ENGINES, MOMENTS, QUICK, SIGNALS, VICTIMS, Cell, expectation, full, pairwise

from processes import environment

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
    (cell,) = chaos(tmp_path, *one("supervisor", "idle", "KILL"), "--blunt")["cells"]
    assert cell["survivors"]
    assert not cell["limit"]


def test_many_deaths_of_workers_leave_nothing_in_supervisor_and_spawner(tmp_path: Path) -> None:
    early, late = chaos(tmp_path, "--deaths")["deaths"]
    assert late["zombies"] == 0
    for process in ("supervisor", "spawner"):
        assert late[process]["descriptors"] == early[process]["descriptors"]
        assert late[process]["threads"] == early[process]["threads"]
        assert late[process]["resident_kb"] < early[process]["resident_kb"] * GROWTH


# The list of cells.


def test_every_cell_says_what_has_to_follow() -> None:
    cells = full(ENGINES, SIGNALS)
    assert len(cells) == len(set(cells))
    for cell in cells:
        assert expectation(cell).running


def test_every_victim_moment_signal_and_engine_is_there() -> None:
    cells = full(ENGINES, SIGNALS)
    for field, known in zip(Cell._fields, (ENGINES, VICTIMS, MOMENTS, SIGNALS), strict=True):
        assert {getattr(cell, field) for cell in cells} == set(known)


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
