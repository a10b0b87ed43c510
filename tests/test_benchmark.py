"""The benchmark's own logic: what it writes of what it measured, and that nothing ends its run."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
from bench import __main__ as command
from bench import decisions, lives, page, targets
from bench.contender import Contender, Failed
from bench.job import Job
from bench.results import Section
from bench.server import server_command
from bench.turns import Turns

FINE = """
from bench.peers.harness import serve

def refuse():
    raise ValueError("not with me")

serve(lambda: {"double": lambda value: 2 * value, "refuse": refuse})
"""

PARENT = """
import subprocess, sys
from bench.peers.harness import serve

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

def close():
    if sys.argv[1] == "tidy":
        child.kill()
        child.wait()

def kill():
    child.kill()
    return child.wait() + 9.5

serve(lambda: {"first": lambda: "1", "kill": kill, "close": close})
"""


def parent(folder: Path, manners: str) -> lives.Own:
    program = folder / "parent.py"
    program.write_text(PARENT)
    return lives.Own("parent", [str(program), manners], folder)


def echo_section(pool_ms: float) -> dict[str, Any]:
    section = Section("echo", {"pool": "ours", "loky": "theirs", "Ray actor": "theirs"})
    calls = section.measure("call", "one call", "ms", less_is_better=True)
    for _ in range(3):
        calls.add("pool", [pool_ms] * 99 + [9.0], 0.25)
        calls.add("loky", [0.2] * 100, 0.5)
    calls.fail("Ray actor", "it did not\nstart")
    section.absent["mosec"] = "cannot be had here"
    return {
        "section": "echo",
        "date": "2026-01-02T03:04:05+00:00",
        "seconds": 60,
        "python": "3.11",
        "versions": {"vllmport": "0"},
        "machine": {"cpu": "a", "cores": 2, "system": "Linux", "load_before": 0.1},
        "contenders": section.contenders,
        "absent": section.absent,
        "measures": {name: measure.to_json() for name, measure in section.measures.items()},
        "facts": {},
    }


def verdict(pool_ms: float) -> targets.Row:
    found = {"echo": echo_section(pool_ms)}
    return next(row for row in targets.rows(found) if row.what == "echo call p50 vs loky's")


def test_the_page_says_what_the_files_say() -> None:
    text = page.PAGE.read_text()
    assert page.rendered(text, page.read()) == text, "run `make bench ARGS=--render`"


def test_each_part_of_the_page_is_one_that_can_be_made() -> None:
    names = {match[1].partition(":")[0] for match in page.PART.findall(page.PAGE.read_text())}
    assert names == set(page.PARTS)


def test_a_table_has_medians_and_reasons() -> None:
    text = "before\n<!-- bench:table:echo -->\nold\n<!-- /bench -->\nafter"
    made = page.rendered(text, {"echo": echo_section(0.1)})
    assert made.startswith("before\n")
    assert made.endswith("\nafter")
    assert "old" not in made
    assert "| pool | 0.1 | 0.1 … 0.1 | 9 | 25% |" in made
    assert "| Ray actor | it did not start |" in made
    assert "- mosec: cannot be had here" in made


def test_what_was_not_measured_is_said_so() -> None:
    assert all(row.ratio is None and not row.reached for row in targets.rows({}))
    text = "<!-- bench:table:life -->\n<!-- /bench -->"
    assert "Not measured yet." in page.rendered(text, {})


def test_a_target_is_reached_or_missed_by_the_ratio_of_one_run() -> None:
    assert verdict(0.19) == targets.Row("echo call p50 vs loky's", "< 1", 0.95, reached=True)
    assert verdict(0.2).reached is False


def test_every_section_can_be_run_and_shown() -> None:
    assert set(command.SECTIONS) == set(page.NAMES)
    assert all(callable(importlib.import_module(f"bench.{name}").run) for name in page.NAMES)


def test_a_section_has_the_contenders_that_were_asked_for(tmp_path: Path) -> None:
    known = {"one": "as it is", "two": "otherwise"}
    everything = Job(tmp_path, Turns(0.0), rounds=1)
    some = Job(tmp_path, Turns(0.0), rounds=1, only=["two", "not one of them"])
    assert everything.section("life", known).contenders == known
    assert some.section("life", known).contenders == {"two": "otherwise"}


def test_engine_arguments_become_options_of_the_server() -> None:
    options = server_command(8000, {"enforce_eager": True, "max_num_seqs": 256})
    assert options[-3:] == ["--enforce-eager", "--max-num-seqs", "256"]
    assert options[options.index("--port") + 1] == "8000"


def test_growth_is_the_power_of_the_size() -> None:
    flat, linear = dict.fromkeys((10, 100, 1000), 3.0), {10: 1.0, 100: 10.0, 1000: 100.0}
    assert decisions.growth(flat) == 0
    assert decisions.growth(linear) == pytest.approx(1)


def test_every_decision_can_be_simulated() -> None:
    found = decisions.measure(workers=(8, 16), queued=(4000, 5000))
    assert len(found) == 10
    assert all(math.isfinite(curve["power"]) for curve in found.values())


def test_a_contender_does_what_it_is_told_and_a_failure_is_its_answer(tmp_path: Path) -> None:
    with Contender("fine", ["-c", FINE], tmp_path) as contender:
        with pytest.raises(Failed, match="not with me"):
            contender.do("refuse")
        assert contender.do("double", 21).value == 42


def test_a_contender_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no such package"):
        Contender("broken", ["-c", "raise SystemExit('no such package')"], tmp_path)


def test_a_life_has_a_beginning_a_return_and_an_end(tmp_path: Path) -> None:
    life = parent(tmp_path, "tidy")
    try:
        assert life.begin() > 0
        assert life.come_back() == 0.5
        assert 0 < life.stop() < lives.SURVIVES
    finally:
        life.clean_up()


def test_what_outlives_its_parent_is_counted_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "SURVIVES", 0.5)
    life = parent(tmp_path, "untidy")
    try:
        life.begin()
        with pytest.raises(Failed, match="1 of 2 are there"):
            life.stop()
    finally:
        life.clean_up()
