"""The pages on configuration say what is so: programs run, files say the same, tables are true."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from checkpoints import TINY, quantized, seeing
from pages import Page, expected, parsed, run_page, settings_of
from vllmport.bridge.removed import (
    _ENGINE,
    ACTIVATIONS,
    GUIDED,
    REFUSED_ENGINE,
    REFUSED_POOLING,
    REFUSED_QUANTIZATION,
    REFUSED_SAMPLING,
    modern_engine_args,
    modern_pooling_params,
    modern_sampling_params,
)
from vllmport.bridge.timeouts import LIBRARY_PROFILE, PROFILES
from vllmport.pool import InvalidRequest, PoolingParams, SamplingParams
from vllmport.pool.config import load_config
from vllmport.pool.plan import Policy
from vllmport.pool.presets import PRESETS

PLACES = {
    "/models/llama-awq": "AWQ",
    "/models/seeing": "SEEING",
    "/models/red.png": "PICTURE",
    "/models/opt": str(TINY),
    "/models/llama": str(TINY),
    "/adapters/swapped": str(TINY / "lora-swapped"),
}
QUICKLY = 'v1_multiprocessing="off", enforce_eager=True'
"""For one of two models that vLLM would compile otherwise, for half a minute."""

CONFIGURATION, CALLS = Page("configuration.md", PLACES), Page("calls.md", PLACES)
PAIRS = [(toml, python) for page in (CONFIGURATION, CALLS) for toml, python in page.pairs()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


# Programs.


@pytest.mark.vllm
@pytest.mark.timeout(1000)
@pytest.mark.filterwarnings("ignore")  # transformers' own, while it makes a model
@pytest.mark.parametrize("name", ["configuration.md", "calls.md"])
def test_what_the_programs_of_a_page_print_stands_beside_them(name: str, folder: Path) -> None:
    places = {**PLACES}
    if name == "configuration.md":
        places["/models/llama-awq"] = str(quantized(folder / "awq", "awq"))
        places['name="small", '] = f'name="small", {QUICKLY}, '
    else:
        from PIL import Image

        places["/models/seeing"] = str(seeing(folder / "seeing"))
        places["/models/red.png"] = str(folder / "red.png")
        Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    assert run_page(Page(name, places), folder) == []


def test_every_program_prints_something_that_stands_beside_it() -> None:
    programs = [b.text for page in (CONFIGURATION, CALLS) for b in page.blocks]
    assert sum(len(expected(text)) for text in programs if "print(" in text) > 45
    for page in (CONFIGURATION, CALLS):
        for block in page.blocks:
            assert block.language in ("python", "toml", "console")
            if block.language == "python":
                expected(block.text)


# Python and TOML.


def said(settings: dict[str, Any], folder: Path) -> tuple[Any, ...]:
    """Return all that a pool makes of settings."""
    plan = load_config(settings, {}).to_plan(folder)
    return plan.models, plan.aliases, plan.timeouts, plan.process_group_kill, plan.policy


@pytest.mark.parametrize(("toml", "python"), PAIRS, ids=range(len(PAIRS)))
def test_python_and_toml_stand_side_by_side_and_say_the_same(
    folder: Path, toml: str, python: str
) -> None:
    assert python, f"no Python stands beside:\n{toml}"
    given = parsed(toml)
    if '"pool.toml"' in python:  # the program itself runs it
        assert load_config(given, {})
        return
    same = settings_of(python)
    assert same == given
    if "venv" in given:  # there is none at this place, which is what the page shows
        return
    known = {"aliases": {"aliases": parsed(PAIRS[0][0])["aliases"], **given}["aliases"]}
    plan = said({**given, **known}, folder)
    assert plan == said({**same, **known}, folder)
    assert {spec.name for spec in plan[0]} == set(given.get("models", {}))


def test_no_model_or_pool_of_a_program_is_without_its_file() -> None:
    """But for what the file cannot say, which has no name."""
    beside = {python for _, python in PAIRS}
    for page in (CONFIGURATION, CALLS):
        for block in page.blocks:
            if block.language == "python" and settings_of(block.text):
                found = settings_of(block.text)
                assert block.text in beside or found == {
                    "models": {"slow": found["models"]["slow"]}
                }


# Tables of values.


def test_the_profiles_are_those_of_the_code() -> None:
    rows = CONFIGURATION.tables("profile", "seconds", "use")
    assert {row[0].strip("`"): float(row[1]) for row in rows} == dict(PROFILES)
    (default,) = (row[0].strip("`") for row in rows if "if nothing is said" in row[2])
    assert default == LIBRARY_PROFILE


def test_the_limits_of_a_load_are_those_of_the_code() -> None:
    rows = CONFIGURATION.tables("limit of a load", "seconds", "what it ends")
    policy = asdict(Policy())
    assert len(rows) == sum(name.startswith("load_") for name in policy)
    assert all(policy[name.strip("`")] == float(seconds) for name, seconds, _ in rows)


def test_the_presets_are_those_of_the_code() -> None:
    rows = CONFIGURATION.tables("preset", "engine arguments")
    assert len(rows) == len(PRESETS)
    for name, arguments in rows:
        pairs = re.findall(r"`(\w+)=([\d.]+)`", arguments)
        assert {key: float(value) for key, value in pairs} == PRESETS[name.strip("`")]


# What vLLM has removed: each row as the code does it.


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_removed_options_of_a_model_are_treated_as_the_page_says() -> None:
    values = {"task": "embed", "enable_lora_bias": False, "scheduler_delay_factor": 0}
    named: set[str] = set()
    for option, happens in CONFIGURATION.tables("option of a model", "what happens"):
        first, *others = names(option)
        if first == "quantization":
            assert {*others} == REFUSED_QUANTIZATION.keys()
            continue
        for name in (first, *others):
            named.add(name)
            if happens.startswith("refused"):
                with pytest.raises(InvalidRequest, match=name):
                    modern_engine_args({name: 1})
                continue
            modern, notes = modern_engine_args({name: values.get(name, 1)})
            assert len(notes) == 1
            assert bool(modern) == happens.startswith("becomes")
            assert modern.keys() <= {*names(happens), *re.findall(r"`(\w+)=", happens)}
    assert _ENGINE.keys() <= named
    assert named - _ENGINE.keys() <= REFUSED_ENGINE.keys()


def outcome(call: Any) -> str:
    """Tell "refused" from "translated", which comes with a note."""
    try:
        _, notes = call()
    except InvalidRequest:
        return "refused"
    return "translated" if notes else "taken"


OLD: dict[str, Any] = {"guided_decoding": {"choice": ["a"]}, "guided_choice": ["a"]}


def test_old_parameters_of_a_call_are_treated_as_the_page_says() -> None:
    found: set[str] = set()
    rows = CALLS.tables("parameter", "in a map", "in `SamplingParams(…)`")
    for cell, in_map, in_class in rows:
        pooling = "(of pooling)" in cell
        translate = modern_pooling_params if pooling else modern_sampling_params
        params: Any = PoolingParams if pooling else SamplingParams
        for name in names(cell):
            found.add(name)
            value = OLD.get(name, "a")

            def built(name: str = name, value: Any = value, params: Any = params) -> Any:
                return modern_sampling_params(params(**{name: value}).to_wire())

            assert outcome(lambda: translate({name: value})) == in_map, name  # noqa: B023
            assert outcome(built) == in_class, name
    guided = {f"guided_{kind}" for kind in (*GUIDED, "whitespace_pattern")}
    everything = guided | {*REFUSED_SAMPLING, *REFUSED_POOLING, *ACTIVATIONS, "guided_decoding"}
    assert found == everything
