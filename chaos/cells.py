"""The matrix as data: what is killed, when, how, under which engine, and what has to follow.

Pure. `full` and `pairwise` make lists of cells; `expectation` says what a cell has to show.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, Final, NamedTuple

CHILDREN: Final = (
    (),
    ("double-fork",),
    ("setsid",),
    ("rename",),
    ("double-fork", "setsid", "rename"),
    ("clear",),
    ("clear", "rename"),
    ("setsid", "clear"),
    ("double-fork", "setsid", "rename", "clear"),
)
"""How the children hide that each echo worker starts while it loads; all ignore TERM."""

HIDDEN: Final = tuple(ways for ways in CHILDREN if {"setsid", "clear"} <= set(ways))
"""Those that neither session nor environment betray."""


@dataclass(frozen=True)
class Engine:
    """An engine that is put through the matrix.

    Attributes:
        load: Arguments of `Pool.llm`.
        tokens: Length of a stream that takes a few seconds.
        patience: Seconds after which a load counts as failed.
        shared: Whether one pool serves several cells, because a start takes long.
        spares: Whether the pool keeps a process at hand that may become a worker.
        importing: How `status` describes a worker that imports.
    """

    load: Mapping[str, Any]
    tokens: int
    prompt: str
    question: str
    answer: str
    patience: float
    shared: bool = False
    spares: bool = False
    importing: Mapping[str, str] = field(default_factory=dict)


def _vllm(mode: str, tokens: int, **options: Any) -> Engine:
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return Engine(
        load={"model": "tiny", "v1_multiprocessing": mode, "env": env, **options},
        tokens=tokens,
        prompt="1 2 3",
        question="The capital of France is",
        answer=" Paris.",
        patience=240.0,
        shared=True,
        spares=True,
        importing={"state": "LOADING", "stage": "importing"},
    )


ENGINES: Final = {
    "echo": Engine(
        load={"model": "echo", "step_delay": 0.005, "children": CHILDREN},
        tokens=200,
        prompt="abc",
        question="still here",
        answer="still here",
        patience=20.0,
        importing={"state": "STARTING"},
    ),
    "vLLM off": _vllm("off", 6000),
    "vLLM on": _vllm("on", 6000),
    "vLLM TP=2": _vllm("on", 1000, tensor_parallel_size=2),
}

VICTIMS: Final = {
    "owner": ("owner",),
    "client": ("client",),
    "supervisor": ("supervisor",),
    "spawner": ("spawner",),
    "supervisor+spawner": ("supervisor", "spawner"),
    "supervisor+spawner+worker": ("supervisor", "spawner", "worker"),
    "worker": ("worker",),
    "EngineCore": ("EngineCore",),
    "TP worker": ("TP worker",),
}
"""Victim → the processes that are sent the signal, in this order."""

MOMENTS: Final = ("import", "load", "idle", "mid-stream", "draining")
SIGNALS: Final = ("KILL", "TERM", "ABRT", "STOP")

ENGINES_OF: Final = {"EngineCore": {"vLLM on", "vLLM TP=2"}, "TP worker": {"vLLM TP=2"}}
"""Victims that not every engine has."""

STOPPABLE: Final = {"worker", "EngineCore", "TP worker"}
"""What hangs when it is stopped while others can still see it. A stopped client is only a slow one,
and whoever watched a stopped supervisor or spawner has nothing to go by."""


class Cell(NamedTuple):
    """One experiment."""

    engine: str
    victim: str
    moment: str
    signal: str

    def __str__(self) -> str:
        return f"{self.engine}: {self.signal} {self.victim}, {self.moment}"


def makes_sense(cell: Cell) -> bool:
    """Tell whether there is such a victim then, and something to be learnt."""
    if cell.engine not in ENGINES_OF.get(cell.victim, ENGINES):
        return False
    if cell.signal == "STOP":
        return cell.victim in STOPPABLE and cell.moment == "mid-stream"
    return not (cell.victim in ENGINES_OF and cell.moment == "import")


def full(engines: Iterable[str], signals: Iterable[str]) -> list[Cell]:
    """Return every cell that makes sense."""
    every = product(engines, VICTIMS, MOMENTS, signals)
    return [cell for cell in map(Cell._make, every) if makes_sense(cell)]


def pairwise(cells: Iterable[Cell], first: Collection[tuple[str, str, str]] = ()) -> list[Cell]:
    """Choose cells so that every two values that meet in any of them meet in a chosen one.

    Those that are named in `first`, without an engine, are chosen anyway.

    Greedy, and always the same choice: the cell with most pairs still to be seen; of equals the
    first, so the engine that is named first, which is the quickest to start.
    """
    left = {cell: set(_pairs(cell)) for cell in cells}
    wanted = [cell for cell in left if cell[1:] in first]
    chosen = []
    while left:
        best = wanted.pop() if wanted else max(left, key=lambda cell: len(left[cell]))
        chosen.append(best)
        seen = left.pop(best)
        left = {
            cell: rest for cell, pairs in left.items() if (rest := pairs - seen) or cell in wanted
        }
    return sorted(chosen, key=_order)


def _pairs(cell: Cell) -> Iterator[tuple[tuple[str, str], ...]]:
    yield from combinations(zip(Cell._fields, cell, strict=True), 2)


def _order(cell: Cell) -> tuple[int, ...]:
    """Sort by engine; then so that cells which end their pool come last in a row."""
    names = (tuple(ENGINES), tuple(reversed(VICTIMS)), MOMENTS, SIGNALS)
    return tuple(known.index(name) for known, name in zip(names, cell, strict=True))


QUICK: Final = (
    ("worker", "mid-stream", "KILL"),
    ("worker", "load", "ABRT"),
    ("spawner", "mid-stream", "KILL"),
    ("supervisor", "mid-stream", "KILL"),
    ("supervisor+spawner", "idle", "KILL"),
    ("supervisor+spawner+worker", "mid-stream", "KILL"),
    ("owner", "mid-stream", "KILL"),
    ("client", "draining", "KILL"),
)
"""A few cells of each kind, for every run of the tests."""

USUAL: Final = tuple((name, "mid-stream", "KILL") for name in ("worker", *ENGINES_OF))
"""What is killed most often; with every engine."""

# What has to follow.

DONE: Final = frozenset({"done"})
LOST: Final = frozenset({"worker_lost", "engine_dead"})
POOL_LOST: Final = frozenset({"pool_lost"})
POOL_ENDS: Final = frozenset({"pool_lost", "pool_closed"})


class Expectation(NamedTuple):
    """What a cell has to show.

    Attributes:
        running: How calls may end that an engine works on.
        waiting: How calls may end that wait for the engine, or for its end.
        doomed: Which processes go: "all" but the callers that live, "workers" with what they
            started, "spawner" for both, or only the "victim".
        service: Whether the next call is answered.
        graceful: Whether being clean takes longer: open calls are let finish first, or a hang has
            to be seen.
    """

    running: frozenset[str]
    waiting: frozenset[str]
    doomed: str
    service: bool
    graceful: bool = False


_TERM, _HARD = ("TERM",), ("KILL", "ABRT")
_ANY = (*_HARD, *_TERM)

EXPECTED: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], Expectation], ...]] = (
    (("client",), _ANY, Expectation(DONE, DONE, "victim", service=True)),
    (("owner",), _ANY, Expectation(POOL_ENDS, POOL_ENDS, "all", service=False)),
    (("spawner",), _TERM, Expectation(DONE, DONE, "nothing", service=True)),
    (("spawner",), _HARD, Expectation(LOST, DONE, "spawner", service=True)),
    (
        ("supervisor", "supervisor+spawner"),
        _TERM,
        Expectation(DONE, DONE | POOL_ENDS, "all", service=False, graceful=True),
    ),
    (
        ("supervisor+spawner+worker",),
        _TERM,
        Expectation(LOST, DONE | POOL_ENDS, "all", service=False, graceful=True),
    ),
    (
        ("supervisor", "supervisor+spawner", "supervisor+spawner+worker"),
        _HARD,
        Expectation(POOL_LOST, POOL_LOST, "all", service=False),
    ),
    (("worker",), _ANY, Expectation(LOST, DONE, "workers", service=True)),
    (("EngineCore", "TP worker"), _HARD, Expectation(LOST, DONE, "workers", service=True)),
    # vLLM's processes handle TERM themselves, in their own time; nothing may hang meanwhile.
    (("EngineCore", "TP worker"), _TERM, Expectation(DONE | LOST, DONE, "nothing", service=True)),
    (
        ("worker", "EngineCore", "TP worker"),
        ("STOP",),
        Expectation(LOST, DONE, "workers", service=True, graceful=True),
    ),
)
"""Victims, signals, and what has to follow."""


def expectation(cell: Cell) -> Expectation:
    """Return what this cell has to show."""
    return next(
        wanted
        for victims, signals, wanted in EXPECTED
        if cell.victim in victims and cell.signal in signals
    )


def is_beyond_reach(cell: Cell) -> bool:
    """Tell whether all who could act were killed at once: the known limit."""
    return cell.victim == "supervisor+spawner+worker" and cell.signal in _HARD
