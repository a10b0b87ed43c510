"""What docs/universal-calls.md shows, done in the order in which it stands there."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllmport.bridge.universal import Affinity
from vllmport.pool.config import load_config
from vllmport.worker.engines.vllm_roots import roots_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

TEXT = (Path(__file__).parents[2] / "docs" / "universal-calls.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_every_block_is_of_a_language_that_is_executed() -> None:
    fences = re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)
    assert set(fences) == {"python", "toml", "elixir", "js"}


def test_the_programs_run_as_they_stand_there() -> None:
    namespace: dict[str, object] = {}
    for source in blocks("python"):
        exec(compile(source, "docs/universal-calls.md", "exec"), namespace)  # noqa: S102


def test_the_configuration_can_be_read() -> None:
    (source,) = blocks("toml")
    universal = load_config(tomllib.loads(source), {}).universal
    assert universal.modules == ("decimal", "my_company.prompts")
    defaults = load_config(None, {}).universal
    assert (universal.max_refs, universal.max_sessions) == (
        defaults.max_refs,
        defaults.max_sessions,
    )


def test_what_the_engine_offers_is_listed() -> None:
    (rows,) = re.findall(r"\| name \| what it is \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT)
    cells = [row.split("|")[1] for row in rows.splitlines()]
    listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    model = SimpleNamespace(get_diff_sampling_param=None)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model))
    assert listed == set(roots_of(engine, {}))


def test_affinities_are_listed() -> None:
    assert re.findall(r'^\| `"(\w+)"` \|', TEXT, re.MULTILINE) == list(Affinity)
