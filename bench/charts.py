"""The charts of docs/performance.md, drawn from the files of the sections. Runs in .bench-venv.

Transparent, in colours that can be read on white and on black.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "bench" / "results"
CHARTS: Final = ROOT / "docs" / "performance"

GREY, OURS, LIMIT, PEER = "#808080", "#2f81f7", "#b8860b", "#808080"
BARS: Final = (
    ("echo", "call", "one echo call of 150 B, median, ms (less is better)", "echo-call"),
    ("echo", "flight256", "echo calls a second, 256 in flight", "echo-flight"),
    ("echo", "stream64", "stream items a second, 64 a message", "echo-stream"),
    ("inference", "one_token", "one-token call, median, ms (less is better)", "one-token"),
    ("inference", "streamed", "64 x 64 tokens streamed, tok/s", "streamed"),
    ("inference", "final", "64 x 64 tokens final, tok/s", "final"),
    ("life", "restart", "SIGKILL to the next right answer, s (less is better)", "restart"),
    ("life", "cold", "cold start to the first answer, s (less is better)", "cold"),
)
CURVES: Final = (
    ("workers", "µs for one decision, by workers", "decisions-workers"),
    ("waiting calls", "µs for one decision, by waiting calls", "decisions-queue"),
)

STYLE: Final = {
    "font.size": 9,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "vllmport",  # the same data make the same file
}


def main() -> None:
    """Draw what there are data for."""
    mpl.use("svg")
    mpl.rcParams.update(STYLE)
    CHARTS.mkdir(exist_ok=True)
    found = {
        path.stem: json.loads(path.read_text())
        for path in RESULTS.glob("*.json")
        if ".trial" not in path.name
    }
    for section, measure, title, name in BARS:
        values = found.get(section, {}).get("measures", {}).get(measure, {}).get("values", {})
        if values:
            draw_bars(values, title, CHARTS / f"{name}.svg")
    decisions = found.get("growth", {}).get("facts", {}).get("decisions", {})
    for by, title, name in CURVES:
        curves = {what: curve["us"] for what, curve in decisions.items() if curve["by"] == by}
        if curves:
            draw_curves(curves, title, CHARTS / f"{name}.svg")


def draw_bars(values: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw a bar for each contender, with its spread over the rounds."""
    names = sorted(values, key=lambda name: float(values[name]["median"]))
    figure, axes = plt.subplots(figsize=(6.4, 0.6 + 0.26 * len(names)))
    medians = [values[name]["median"] for name in names]
    spread = [
        [values[name]["median"] - values[name]["min"] for name in names],
        [values[name]["max"] - values[name]["median"] for name in names],
    ]
    bars = axes.barh(
        names,
        medians,
        xerr=spread,
        color=[_colour(name) for name in names],
        ecolor=GREY,
        error_kw={"linewidth": 0.8},
    )
    axes.bar_label(bars, labels=[f" {median:,.3g}" for median in medians], color=GREY, fontsize=8)
    if max(medians) > 30 * min(medians):
        axes.set_xscale("log")
    axes.set_title(title, fontsize=9, loc="left")
    _save(figure, path)


def draw_curves(curves: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw a line for each decision, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    for number, (name, curve) in enumerate(curves.items()):
        sizes = [int(size) for size in curve]
        axes.loglog(sizes, list(curve.values()), marker="o", color=f"C{number}", label=name)
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _colour(name: str) -> str:
    if name.startswith("pool"):
        return OURS
    return LIMIT if name == "pyzmq, two hops" else PEER


def _save(figure: Any, path: Path) -> None:
    figure.savefig(
        path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
    )
    plt.close(figure)


if __name__ == "__main__":
    main()
