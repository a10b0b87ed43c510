"""`docs/configuration.md` says what is so: programs run, files load, tables are true."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from processes import environment
from vllmport.bridge.timeouts import LIBRARY_PROFILE, PROFILES
from vllmport.pool.config import PoolConfig, load_config, tiny_model_path
from vllmport.pool.plan import ModelSpec
from vllmport.pool.presets import PRESETS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "configuration.md").read_text()
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", TEXT, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
TOML = [tomllib.loads(text) for language, text in BLOCKS if language == "toml"]

EXPECTED = [
    "vLLM 0.32.0 has no engine argument 'max_modle_len'; did you mean 'max_model_len'?",
    " Paris.",
    "4096 1",
    "3",
    " Tokyo.",
    " Paris.",
    "['swapped']",
    "128",
    "[['CUDA_VISIBLE_DEVICES', 'HF_TOKEN', 'VLLM_CPU_OMP_THREADS_BIND', 'VLLM_LOGGING_LEVEL']]",
    "True",
]


def rows(*columns: str) -> list[list[str]]:
    """Return the cells of the table with these headings."""
    start = TEXT.index("| " + " | ".join(columns) + " |")
    lines = TEXT[start:].split("\n\n")[0].splitlines()[2:]
    found = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found]


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_programs_run_and_print_what_they_say() -> None:
    program = f"MODEL = {tiny_model_path()!r}\n" + "\n".join(PYTHON)
    program = program.replace(
        'env={"VLLM_LOG', 'env={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOG'
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=environment({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout.splitlines()
    assert [line for line in EXPECTED if line not in printed] == []
    assert {"Rome", "Oslo"} & {*printed}, "the constraint held, whichever it was"


def plan_of(settings: dict[str, Any], folder: Path) -> tuple[ModelSpec, ...]:
    folder.chmod(0o700)
    settings.pop("venv", None)
    settings |= {"log_dir": str(folder / "logs")}
    return load_config(settings, {}).to_plan(folder).models


@pytest.mark.parametrize("index", range(len(TOML)))
def test_the_files_load(index: int, tmp_path: Path) -> None:
    data = {**TOML[index]}
    specs = plan_of(data, tmp_path)
    assert {spec.name for spec in specs} == set(data.get("models", {}))
    known = PoolConfig.model_fields.keys() | {"environments"}
    assert data.keys() <= known
    for spec in specs:
        given = data["models"][spec.name]
        for name, value in given.items():
            own = name in ModelSpec.__dataclass_fields__ or name == "preset"
            assert own or spec.engine_args[name] == value


def test_python_and_toml_say_the_same(tmp_path: Path) -> None:
    (call,) = (
        node
        for block in PYTHON
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call)
        and any(k.arg == "name" and ast.unparse(k.value) == "'basic'" for k in node.keywords)
    )
    given = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg != "name"}
    (basic,) = (data["models"]["basic"] for data in TOML if "basic" in data.get("models", {}))
    assert {"model": ast.literal_eval(call.args[0]), **given} == basic


def test_the_profiles_are_those_of_the_code() -> None:
    documented = {row[0].strip("`"): float(row[1]) for row in rows("profile", "seconds", "use")}
    assert documented == dict(PROFILES)
    assert LIBRARY_PROFILE == "ml_inference"


def test_the_presets_are_those_of_the_code() -> None:
    for name, arguments in rows("preset", "engine arguments"):
        pairs = re.findall(r"`(\w+)=([\d.]+)`", arguments)
        documented = {key: ast.literal_eval(value) for key, value in pairs}
        assert documented == PRESETS[name.strip("`")]
    assert len(rows("preset", "engine arguments")) == len(PRESETS)


def test_every_test_that_the_table_names_is_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    table = rows("option", "seen", "test")
    assert len(table) > 40
    for option, seen, test in table:
        name = test.strip("`…")
        assert test.startswith("needs ") or f"def {name}" in tests, option
        assert re.fullmatch(
            r"(runs|refused|dropped, with a warning), \d{4}-\d\d-\d\d|not run here", seen
        ), option
