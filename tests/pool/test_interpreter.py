"""Which Python runs the workers, and how its virtual environment is prepared."""

import sys
import venv
from pathlib import Path

import pytest

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.cli_config import TORCH, described, engine_options, setup_commands
from vllmport.pool.config import load_config
from vllmport.pool.interpreter import VARIABLES, find_interpreter, target_venv


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def made(folder: Path, *, with_vllmport: bool = False) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    if with_vllmport:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "lib" / version / "site-packages" / "vllmport-0.1.0.dist-info").mkdir()
    return folder


def test_the_order_is_variables_settings_the_folders_own_and_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_interpreter(None, None, tmp_path) == (sys.executable, "this Python")
    nearby = made(tmp_path / ".venv", with_vllmport=True)
    assert find_interpreter(None, None, tmp_path) == (f"{nearby}/bin/python3", ".venv")
    named = made(tmp_path / "named")
    assert find_interpreter(None, "named", tmp_path) == (f"{named}/bin/python3", "venv")
    assert find_interpreter("/usr/bin/python3", "named", tmp_path).python == "/usr/bin/python3"
    snake = made(tmp_path / "snake")
    monkeypatch.setenv("SNAKEBRIDGE_VENV", str(snake))
    assert find_interpreter("/usr/bin/python3", None, tmp_path).python == f"{snake}/bin/python3"
    monkeypatch.setenv("VLLMPORT_VENV", str(named))
    assert find_interpreter(None, None, tmp_path) == (f"{named}/bin/python3", "VLLMPORT_VENV")


def test_the_environment_that_runs_the_pool_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearby = made(tmp_path / ".venv", with_vllmport=True)
    monkeypatch.setattr(sys, "prefix", str(nearby))
    assert find_interpreter(None, None, tmp_path) == (sys.executable, "this Python")


def test_a_folder_of_the_name_without_vllmport_is_not_taken(tmp_path: Path) -> None:
    made(tmp_path / ".venv")
    assert find_interpreter(None, None, tmp_path).origin == "this Python"


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_named_environment_without_a_python_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "no"))
    with pytest.raises(InvalidRequest, match="vllmport setup") as caught:
        load_config(None, {}).to_plan(tmp_path)
    assert caught.value.parameter == variable
    monkeypatch.delenv(variable)
    with pytest.raises(InvalidRequest, match="vllmport setup"):
        load_config({"venv": str(tmp_path / "no")}, {}).interpreter()


def test_setup_prepares_the_environment_that_runs_the_workers(tmp_path: Path) -> None:
    settings = load_config({"venv": str(tmp_path / "env")}, {})
    make, torch, install = setup_commands(settings, "cpu")
    assert make == [sys.executable, "-m", "venv", str(tmp_path / "env")]
    assert torch[-1] == TORCH
    assert install[-1].endswith("[cpu]") or "[cpu]==" in install[-1]
    made(tmp_path / "env")
    assert settings.interpreter().python == install[0]
    assert target_venv(None, str(tmp_path / "env"), Path()) == tmp_path / "env"
    (only,) = setup_commands(settings, "gpu")
    assert "[gpu]" in only[-1]


def test_setup_prepares_the_environment_of_the_python_that_is_named(tmp_path: Path) -> None:
    env = made(tmp_path / "env")
    for python in (f"{env}/bin/python", "env/bin/python3"):
        (only,) = setup_commands(
            load_config(_file(tmp_path, f'python = "{python}"'), {}), engine="gpu"
        )
        assert only[0] == f"{env}/bin/python3", "as the workers run it"
    settings = load_config(_file(tmp_path, 'python = "new/bin/python"'), {})
    make, install = setup_commands(settings, "gpu")
    assert make[-1] == str(tmp_path / "new")
    assert install[0] == str(tmp_path / "new" / "bin" / "python3")
    made(tmp_path / "new")
    assert settings.interpreter().python == str(tmp_path / "new" / "bin" / "python")


@pytest.mark.parametrize("python", ["/usr/bin/python3", "sh", "env/here"])
def test_setup_says_that_a_python_is_in_no_environment(tmp_path: Path, python: str) -> None:
    (tmp_path / "env").mkdir()
    settings = load_config(_file(tmp_path, f'python = "{python}"'), {})
    with pytest.raises(InvalidRequest, match="name one by `venv` instead") as caught:
        setup_commands(settings, "gpu")
    assert caught.value.parameter == "python"


def test_variables_win_over_the_python_that_is_named_for_setup_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = made(tmp_path / "env")
    monkeypatch.setenv("VLLMPORT_VENV", str(env))
    settings = load_config({"python": "/usr/bin/python3"}, {})
    assert setup_commands(settings, "gpu")[0][0] == settings.interpreter().python


def _file(folder: Path, text: str) -> Path:
    path = folder / "pool.toml"
    path.write_text(text)
    return path


def test_config_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(
        """
verbose = true
[policy]
max_queue = 7
[models.small]
model = "m"
max_model_len = 99
env = { HF_TOKEN = "secret" }
[environments.prod]
verbose = false
policy = { max_queue = 9 }
"""
    )
    shown = {
        name: (value, origin)
        for name, value, origin in described(path, {"environment": "prod", "log_dir": "/tmp/x"})
    }
    assert shown["verbose"] == (False, "environments.prod")
    assert shown["policy.max_queue"] == (9, "environments.prod")
    assert shown["policy.drain_timeout"] == (30.0, "default")
    assert shown["models.small.max_model_len"] == (99, str(path))
    assert shown["models.small.replicas"] == (1, "default")
    assert shown["log_dir"][1] == "override"
    assert shown["workers' python"] == (sys.executable, "this Python")


def test_config_show_resolves_aliases_presets_and_old_names(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    path = _file(
        tmp_path,
        """
[aliases]
"facebook/opt-125m" = "opt"
[models.small]
model = "facebook/opt-125m"
preset = "throughput"
max_num_seqs = 4
task = "embed"
guided_decoding_backend = "outlines"
hf_token = "secret"
loras = { sql = "./sql" }
[environments.prod.models.small]
preset = "memory"
""",
    )
    shown = {name: rest for name, *rest in described(path, {})}
    small = {key.removeprefix("models.small."): shown[key] for key in shown if "small" in key}
    assert shown["aliases.facebook/opt-125m"] == [str(tmp_path / "opt"), str(path)]
    assert small["model"] == [str(tmp_path / "opt"), f"{path}, as 'facebook/opt-125m'"]
    assert small["loras.sql"] == [str(tmp_path / "sql"), str(path)]
    assert small["preset"] == ["throughput", str(path)]
    assert small["max_num_batched_tokens"] == [8192, "preset 'throughput'"]
    assert small["max_num_seqs"] == [4, str(path)]
    assert small["runner"] == ["pooling", f"{path}, as task"]
    backend = small["structured_outputs_config.backend"]
    assert backend == ["outlines", f"{path}, as guided_decoding_backend"]
    assert small["env.HF_TOKEN"] == ["secret", f"{path}, as hf_token"]
    assert not {"task", "guided_decoding_backend", "hf_token"} & small.keys()
    shown = {name: rest for name, *rest in described(path, {"environment": "prod"})}
    assert shown["models.small.preset"] == ["memory", "environments.prod"]
    assert shown["models.small.max_model_len"] == [2048, "preset 'memory'"]


def test_options_of_the_command_are_read_as_toml() -> None:
    texts = ("max_model_len=9", "dtype=float32", 'preset="memory"', "enforce_eager=true")
    assert engine_options(texts) == {
        "max_model_len": 9,
        "dtype": "float32",
        "preset": "memory",
        "enforce_eager": True,
    }
