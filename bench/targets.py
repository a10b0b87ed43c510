"""What is to be reached, as ratios within one run, and what was measured of it. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

Found = Mapping[str, Mapping[str, Any]]
"""Section → what its file says."""


class Missing(Exception):
    """What a target needs was not measured."""


class Row(NamedTuple):
    """One line of the table. `ratio` is None where it was not measured."""

    what: str
    wanted: str
    ratio: float | None
    reached: bool
    unit: str = ""


def rows(found: Found) -> Iterator[Row]:
    """Compare what was measured with what is wanted."""
    for what, sign, limit, unit, measured in TARGETS:
        wanted = f"{sign} {limit:g}{unit}"
        try:
            ratio = measured(found)
        except Missing:
            yield Row(what, wanted, None, reached=False, unit=unit)
            continue
        better = {"≥": ratio >= limit, "≤": ratio <= limit, ">": ratio > limit, "<": ratio < limit}
        yield Row(what, wanted, ratio, better[sign], unit)


def median(found: Found, section: str, measure: str, contender: str, key: str = "median") -> float:
    """Return one value.

    Raises:
        Missing: It was not measured.
    """
    try:
        return float(found[section]["measures"][measure]["values"][contender][key])
    except KeyError:
        raise Missing(f"{section}/{measure}/{contender}") from None


def _ratio(section: str, measure: str, one: str, other: str) -> Callable[[Found], float]:
    return lambda found: (
        median(found, section, measure, one) / median(found, section, measure, other)
    )


def _above_the_best(*but: str) -> Callable[[Found], float]:
    """Return how many times the best peer's rate ours is; the bare sockets are no peer."""

    def measured(found: Found) -> float:
        values = found.get("echo", {}).get("measures", {}).get("flight256", {}).get("values", {})
        left_out = ("pool", LIMIT, *but)
        peers = [value["median"] for name, value in values.items() if name not in left_out]
        if not peers:
            raise Missing("echo/flight256")
        return median(found, "echo", "flight256", "pool") / float(max(peers))

    return measured


def _worst(section: str, measure: str, key: str, *contenders: str) -> Callable[[Found], float]:
    return lambda found: max(median(found, section, measure, name, key) for name in contenders)


LIMIT: Final = "pyzmq, two hops"

TARGETS: Final[tuple[tuple[str, str, float, str, Callable[[Found], float]], ...]] = (
    (
        "64 x 64 streamed tok/s, engine off, vs vLLM's HTTP server",
        "≥",
        8,
        "",
        _ratio("inference", "streamed", "pool, off", "server"),
    ),
    (
        "64 x 64 tok/s vs in-process `LLM.generate`, off",
        "≥",
        0.97,
        "",
        _ratio("inference", "final", "pool, off", "LLM, off"),
    ),
    (
        "64 x 64 tok/s vs in-process `LLM.generate`, on",
        "≥",
        0.97,
        "",
        _ratio("inference", "final", "pool, on", "LLM, on"),
    ),
    (
        "one-token call p50 vs in-process `LLM.generate`, off",
        "≤",
        1.1,
        "",
        _ratio("inference", "one_token", "pool, off", "LLM, off"),
    ),
    (
        "one-token call p50 vs in-process `LLM.generate`, on",
        "≤",
        1.1,
        "",
        _ratio("inference", "one_token", "pool, on", "LLM, on"),
    ),
    ("echo call p50 vs raw two-hop pyzmq", "≤", 2, "", _ratio("echo", "call", "pool", LIMIT)),
    ("echo call p50 vs loky's", "<", 1, "", _ratio("echo", "call", "pool", "loky")),
    ("echo calls/s at 256 in flight vs the best peer", ">", 1, "", _above_the_best()),
    ("the same, vs the best but a bare Pipe", ">", 1, "", _above_the_best("Pipe")),
    (
        "SIGKILL → next answer, off, vs vLLM's server restarted",
        "≤",
        0.15,
        "",
        _ratio("life", "restart", "pool, off, standby", "server"),
    ),
    (
        "SIGKILL → next answer, on, vs vLLM's server restarted",
        "≤",
        0.15,
        "",
        _ratio("life", "restart", "pool, on, standby", "server"),
    ),
    (
        "expiry → caller's error, p99",
        "≤",
        20,
        " ms",
        _worst("deadlines", "late_p99", "median", "off", "on"),
    ),
    (
        "expiry → engine free, p99, in steps",
        "≤",
        1,
        "",
        _worst("deadlines", "steps_p99", "median", "off", "on"),
    ),
    (
        "supervisor CPU at the highest streamed tok/s",
        "≤",
        0.25,
        " of a core",
        lambda found: max(
            median(found, "inference", f"supervisor_cpu{width}", "pool, off") for width in (64, 256)
        ),
    ),
)
