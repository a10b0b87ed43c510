"""`make chaos`: kill everything at every moment, and say what is left.

Without options: every cell with the echo engine, pairwise ones with vLLM, plain vLLM beside them;
the results go to chaos/results/ and into docs/reliability.md. With options: what they choose, and
nothing is stored but with --json. The exit status is 1 if a cell is red.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from chaos import report
from chaos.cells import ENGINES, MOMENTS, QUICK, SIGNALS, USUAL, VICTIMS, Cell, full, pairwise
from chaos.matrix import Matrix, own_folder
from chaos.plain import kill_plain_vllm
from chaos.soak import many_deaths, soak
from chaos.strike import Result

ECHO, VLLM = ("echo",), tuple(name for name in ENGINES if name != "echo")
HUNG = ("STOP",)
DEADLY = tuple(name for name in SIGNALS if name not in HUNG)

console = Console(width=110)
progress = Console(stderr=True, width=110)


@click.command(help=__doc__)
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)))
@click.option("--victim", "victims", multiple=True, type=click.Choice(list(VICTIMS)))
@click.option("--moment", "moments", multiple=True, type=click.Choice(MOMENTS))
@click.option("--signal", "signals", multiple=True, type=click.Choice(SIGNALS))
@click.option("--quick", is_flag=True, help="A few cells of each kind.")
@click.option("--every", is_flag=True, help="Every cell with vLLM too, not pairwise; hours.")
@click.option("--blunt", is_flag=True, help="Take the spawner the means to kill: must turn red.")
@click.option("--soak", "kills", type=int, default=0, help="So many random kills in a row.")
@click.option("--seed", type=int, default=1, help="Of the soak.", show_default=True)
@click.option("--deaths", is_flag=True, help="What a supervisor holds after 200 deaths.")
@click.option("--plain", is_flag=True, help="Only vLLM without vllmport.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the results there.")
@click.option("--document", is_flag=True, help="Only write stored results into the document.")
def main(**options: Any) -> None:
    """Choose what is run, and run it."""
    if options["document"]:
        report.write_document()
        return
    chosen = any(value for name, value in options.items() if name != "seed")
    sys.exit(_chosen(options) if chosen else _everything())


def _everything() -> int:
    """Run what the document shows."""
    red = _stored("echo", full(ECHO, DEADLY))
    if importlib.util.find_spec("vllm") is None:
        console.print("vLLM is not installed: no cells with it")
    else:
        red |= _stored("vllm", pairwise(full(VLLM, DEADLY), USUAL))
        report.store("plain", {"programs": _plain()})
    report.write_document()
    return int(red)


def _stored(name: str, cells: Sequence[Cell]) -> bool:
    results = _cells(cells)
    report.store(name, {"cells": results})
    return _show(results)


def _chosen(options: dict[str, Any]) -> int:
    """Run what the options choose."""
    engines = options["engines"] or ECHO
    content: dict[str, Any] = {}
    if options["plain"]:
        content["programs"] = _plain()
    elif options["deaths"]:
        content["deaths"] = _deaths()
    elif options["kills"]:
        (engine,) = engines
        content["cells"] = _soak(engine, options["kills"], options["seed"])
    else:
        content["cells"] = _cells(_choose(engines, options), blunt=options["blunt"])
    if options["path"]:
        options["path"].write_text(json.dumps({"machine": report.machine(), **content}, indent=1))
    return int(_show(content["cells"])) if "cells" in content else 0


def _choose(engines: Sequence[str], options: dict[str, Any]) -> list[Cell]:
    cells = full(engines, options["signals"] or DEADLY)
    for name in ("victim", "moment"):
        wanted = options[f"{name}s"]
        cells = [cell for cell in cells if not wanted or getattr(cell, name) in wanted]
    if options["quick"]:
        cells = [cell for cell in cells if cell[1:] in QUICK]
    vllm = [cell for cell in cells if cell.engine in VLLM]
    echo = [cell for cell in cells if cell.engine in ECHO]
    return echo + (vllm if options["every"] else pairwise(vllm, USUAL))


def _cells(cells: Sequence[Cell], *, blunt: bool = False) -> list[dict[str, Any]]:
    with own_folder() as folder:
        return _watched(Matrix(folder, blunt=blunt).run(cells), len(cells))


def _soak(engine: str, kills: int, seed: int) -> list[dict[str, Any]]:
    with own_folder() as folder:
        return _watched(soak(Matrix(folder, reuse=True), engine, kills, seed), kills)


def _watched(results: Any, count: int) -> list[dict[str, Any]]:
    """Say a line for each cell while they run."""
    done: list[dict[str, Any]] = []
    begun = time.monotonic()
    result: Result
    for result in results:
        done.append(result.to_json())
        word = "RED " if result.red else "limit" if result.limit else "ok  "
        took = time.monotonic() - begun
        progress.print(f"{took:6.1f} s {len(done):4}/{count} {word} {result.cell}", style="")
        if result.red:
            progress.print(report.describe(done[-1]), markup=False, highlight=False)
    return done


def _plain() -> list[dict[str, Any]]:
    with own_folder() as folder:
        programs = list(kill_plain_vllm(Matrix(folder).oracle, folder))
    for row in programs:
        names = ", ".join(survivor["name"] for survivor in row["survivors"]) or "nothing"
        console.print(f"{row['program']}, killed: after 10 s there are still {names}")
    return programs


def _deaths() -> list[dict[str, Any]]:
    with own_folder() as folder:
        matrix = Matrix(folder)
        measured = many_deaths(matrix)
        matrix.close()
    console.print(measured)
    return measured


def _show(cells: Sequence[dict[str, Any]]) -> bool:
    report.show(console, cells)
    return any(cell["problems"] and not cell["limit"] for cell in cells)


if __name__ == "__main__":
    main()
