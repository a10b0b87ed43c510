"""Kills at random, many in a row, and what a supervisor holds after many deaths of its workers."""

import os
import random
import signal
from collections.abc import Iterator
from typing import Any, Final

from chaos.cells import ENGINES, Cell, full
from chaos.matrix import Matrix
from chaos.oracle import usage
from chaos.session import order_for
from chaos.strike import PATIENCE, Result, eventually

WEIGHTS: Final = {"worker": 8, "EngineCore": 6, "TP worker": 6, "spawner": 3, "client": 3}
"""How often each victim comes, where others come once: what lets the pool live comes more often."""

LOOKS: Final = (50, 200)
"""After how many deaths the processes are measured."""

REPLICAS: Final = 10
"""How many workers die together."""


def soak(matrix: Matrix, engine: str, kills: int, seed: int) -> Iterator[Result]:
    """Kill at random, so many times."""
    cells = full([engine], ("KILL", "ABRT"))
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be guessed
    weights = [WEIGHTS.get(cell.victim, 1) for cell in cells]
    yield from matrix.run(choice.choices(cells, weights, k=kills))


def many_deaths(matrix: Matrix) -> list[dict[str, Any]]:
    """Kill workers again and again; return what supervisor and spawner hold at each look.

    Raises:
        RuntimeError: They did not come back.
    """
    session = matrix.session_for(Cell("echo", "worker", "idle", "KILL"))
    order = order_for(ENGINES["echo"], "idle")
    order["load"] = {"model": "echo", "replicas": REPLICAS}
    deaths, measured = 0, []
    while True:
        said = session.owner.do("ready", 2 * PATIENCE, **order)
        if said["end"] != "done":
            raise RuntimeError(f"not ready after {deaths} deaths: {said}")
        if deaths in LOOKS:
            measured.append({"deaths": deaths, **_measure(matrix, session.status())})
        if deaths >= max(LOOKS):
            return measured
        for pid in said["workers"]:
            os.kill(pid, signal.SIGKILL)
        deaths += REPLICAS


def _measure(matrix: Matrix, known: dict[str, Any]) -> dict[str, Any]:
    pids = {name: int(known[name]) for name in ("supervisor", "spawner")}
    eventually(lambda: not matrix.oracle.zombies_of(list(pids.values())), PATIENCE)
    zombies = matrix.oracle.zombies_of(list(pids.values()))
    return {"zombies": zombies, **{name: usage(pid) for name, pid in pids.items()}}
