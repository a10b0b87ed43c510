"""The README's programs are run as they stand there; only what is a placeholder is filled in."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from processes import PATIENCE, environment, serving, vllmport
from vllmport.pool.config import load_config, tiny_model_path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
TOML = [text for language, text in BLOCKS if language == "toml"]


def filled_in(text: str) -> str:
    return text.replace("/path/to/a/model", tiny_model_path()).replace(
        "/models/opt-125m", tiny_model_path()
    )


def run(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", filled_in(source)],
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_the_programs_that_are_run_here() -> None:
    assert (len(PYTHON), len(TOML)) == (4, 1)


@pytest.mark.vllm
def test_the_first_program_answers() -> None:
    printed = run(PYTHON[0])
    assert "The capital of France is Paris." in printed
    assert "1 2 3 4 5" in printed
    assert " a worker got lost, and its supervisor started another one." in printed
    assert "Tokyo" in printed


@pytest.mark.vllm
def test_the_drop_in_answers() -> None:
    assert run(PYTHON[1]).strip()


@pytest.mark.vllm
def test_the_asyncio_program_answers() -> None:
    assert run(PYTHON[3]).strip()


@pytest.mark.vllm
def test_the_service_serves_the_model_of_the_toml_under_its_alias(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = filled_in(TOML[0])
    assert load_config(tomllib.loads(text), {}).models["small"].replicas == 2
    config = tmp_path / "pool.toml"
    config.write_text(text + "\nenforce_eager = true\nv1_multiprocessing = 'off'\n")
    monkeypatch.setenv("VLLMPORT_ENDPOINT", endpoint)
    with serving(endpoint, str(config)) as service:
        assert vllmport("status", "--wait").returncode == 0
        answer = vllmport("generate", "The capital of France is", "--model", "small")
        assert answer.stdout == " Paris.\n"
        assert "Tokyo" in vllmport("chat", "What is the capital of Japan?").stdout
        run(PYTHON[2])
        assert vllmport("stop").returncode == 0
        assert service.wait(PATIENCE) == 0
