"""Kill everything at every moment, and say what is left: the command behind `make chaos`.

With --keep, results go to chaos/results/ and into docs/reliability.md. The exit status is 1 if a
cell is red.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from chaos import report
from chaos.cells import ENGINES, MOMENTS, QUICK, SIGNALS, USUAL, VICTIMS, Cell, full, pairwise
from chaos.matrix import Matrix, own_folder
from chaos.plain import kill_plain_vllm
from chaos.soak import many_deaths, soak
from chaos.strike import PATIENCE, Result

ECHO, VLLM = ("echo",), tuple(name for name in ENGINES if name != "echo")
DEADLY = tuple(name for name in SIGNALS if name != "STOP")
CHOICES = ("victim", "moment", "signal")

console = Console(width=110, soft_wrap=True)
progress = Console(stderr=True, width=110, soft_wrap=True)


@click.command(help=__doc__)
@click.option("--engine", multiple=True, type=click.Choice(list(ENGINES)), help="All, if none.")
@click.option("--victim", multiple=True, type=click.Choice(list(VICTIMS)))
@click.option("--moment", multiple=True, type=click.Choice(MOMENTS))
@click.option("--signal", multiple=True, type=click.Choice(SIGNALS), help="All but STOP, if none.")
@click.option("--quick", is_flag=True, help="A few cells of each kind; with echo, if no engine.")
@click.option("--every", is_flag=True, help="Every cell with vLLM too, not pairwise: hours.")
@click.option("--blunt", is_flag=True, help="Take the spawner the means to kill: must turn red.")
@click.option("--patience", type=float, default=PATIENCE, show_default=True, help="Seconds.")
@click.option("--plain", is_flag=True, help="Instead: vLLM without vllmport.")
@click.option("--soak", type=int, help="Instead: so many random kills in a row with one engine.")
@click.option("--seed", type=int, default=1, help="Of the soak.", show_default=True)
@click.option("--deaths", is_flag=True, help="Instead: what a supervisor holds after 200 deaths.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the results there.")
@click.option("--keep", is_flag=True, help="Keep the results, and put them into the document.")
@click.option("--document", is_flag=True, help="Only put what was kept into the document.")
def main(**options: Any) -> None:
    """Choose what is run, and run it."""
    if options["keep"] and (options["quick"] or any(options[name] for name in CHOICES)):
        raise click.UsageError("--keep keeps whole tables: choose an engine at the most")
    parts = [] if options["document"] else _parts(options)
    for part in parts:
        if options["path"]:
            report.store(options["path"], part.content)
        if options["keep"]:
            report.store(report.RESULTS / f"{part.name}.json", part.content)
    if options["keep"] or options["document"]:
        report.write_document()
    sys.exit(any(part.red for part in parts))


class _Part:
    """Results that make one table.

    Args:
        name: What its file is called.
        **content: Plain data.
    """

    def __init__(self, name: str, **content: Any) -> None:
        self.name = name
        self.content: dict[str, Any] = {"machine": report.machine(), **content}

    @property
    def red(self) -> bool:
        """Whether a cell of it is red."""
        return any(report.is_red(cell) for cell in self.content.get("cells", ()))


def _parts(options: dict[str, Any]) -> list[_Part]:
    """Run what the options choose."""
    if options["plain"]:
        return [_plain()]
    if options["deaths"]:
        return [_deaths()]
    if options["soak"]:
        if len(options["engine"]) != 1:
            raise click.UsageError("--soak needs one --engine")
        return [_soak(options["engine"][0], options["soak"], options["seed"])]
    engines = options["engine"] or (ECHO if options["quick"] else _engines_here())
    cells = _choose(engines, options)
    parts = [
        _matrix(name, [cell for cell in cells if cell.engine in kind], options)
        for name, kind in (("echo", ECHO), ("vllm", VLLM))
        if set(kind) & set(engines)
    ]
    if not options["engine"] and set(VLLM) & set(engines):
        parts.append(_plain())
    return parts


def _engines_here() -> tuple[str, ...]:
    if importlib.util.find_spec("vllm") is not None:
        return tuple(ENGINES)
    console.print("vLLM is not installed: no cells with it")
    return ECHO


def _choose(engines: Sequence[str], options: dict[str, Any]) -> list[Cell]:
    cells = full(engines, options["signal"] or DEADLY)
    for name in CHOICES:
        wanted = options[name]
        cells = [cell for cell in cells if not wanted or getattr(cell, name) in wanted]
    if options["quick"]:
        cells = [cell for cell in cells if cell[1:] in QUICK]
    vllm = [cell for cell in cells if cell.engine in VLLM]
    echo = [cell for cell in cells if cell.engine in ECHO]
    return echo + (vllm if options["every"] else pairwise(vllm, USUAL))


def _matrix(name: str, cells: Sequence[Cell], options: dict[str, Any]) -> _Part:
    with own_folder() as folder:
        matrix = Matrix(folder, blunt=options["blunt"], patience=options["patience"])
        results = _watched(matrix.run(cells), len(cells))
    report.show(console, results)
    return _Part(name, cells=results)


def _soak(engine: str, kills: int, seed: int) -> _Part:
    with own_folder() as folder:
        results = _watched(soak(Matrix(folder, reuse=True), engine, kills, seed), kills)
    report.show(console, results)
    return _Part(f"soak {engine}", engine=engine, seed=seed, cells=results)


def _watched(results: Iterable[Result], count: int) -> list[dict[str, Any]]:
    """Say a line for each cell while they run, and at once what is red."""
    done: list[dict[str, Any]] = []
    begun = time.monotonic()
    for result in results:
        cell = result.to_json()
        done.append(cell)
        word = "RED " if report.is_red(cell) else "limit" if result.limit else "ok  "
        took = time.monotonic() - begun
        progress.print(f"{took:6.1f} s {len(done):4}/{count} {word} {result.cell}")
        if report.is_red(cell):
            progress.print(report.describe(cell), markup=False, highlight=False)
    return done


def _plain() -> _Part:
    with own_folder() as folder:
        programs = list(kill_plain_vllm(Matrix(folder).oracle, folder))
    for row in programs:
        names = ", ".join(survivor["name"] for survivor in row["survivors"]) or "nothing"
        console.print(f"{row['program']}, killed: after 10 s there is still {names}")
    return _Part("plain", programs=programs)


def _deaths() -> _Part:
    with own_folder() as folder:
        matrix = Matrix(folder)
        measured = many_deaths(matrix)
        matrix.close()
    console.print(json.dumps(measured, indent=1))
    return _Part("deaths", deaths=measured)


if __name__ == "__main__":
    main()
