"""`vllmport config show` and `vllmport setup`: what holds, who said so, the workers' venv."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, version
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllmport.bridge.errors import StartupFailed
from vllmport.pool.config_models import made_of_old, resolved
from vllmport.pool.interpreter import PYTHONS, target_venv
from vllmport.pool.layers import DEFAULT, leaves, shown_value
from vllmport.pool.presets import preset

if TYPE_CHECKING:
    from vllmport.pool.config import ModelConfig, PoolConfig
    from vllmport.pool.plan import ModelSpec

TORCH = "torch==2.13.0"
"""What the CPU build of vLLM was built against; the usual CUDA build has to be kept out."""

_file = click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_environment = click.option("--environment", help="dev, test, prod, or a name in the file.")


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@_file
@_environment
def show(config: Path | None, environment: str | None) -> None:
    """Print every setting, its value, and where that came from."""
    overrides = {"environment": environment} if environment else {}
    for path, value, origin in described(config, overrides):
        click.echo(f"{path} = {shown_value(path, value)}  # {origin}")


def described(source: Any, overrides: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield each setting: dotted path, value, and who gave it."""
    from vllmport.pool.config import load_config

    settings = load_config(source, overrides)
    origins, names = settings.origins, settings.known_names()
    whole = settings.model_dump(mode="json", exclude={"models"})
    whole["aliases"] = {name: names[name] for name in settings.aliases}
    for path, value in leaves(whole):
        yield path, value, _origin(path, origins)
    for spec in settings.specs():
        yield from _described_model(spec, settings.models[spec.name], origins)
    python, origin = settings.interpreter()
    yield "workers' python", python, origin


def _described_model(
    spec: "ModelSpec", model: "ModelConfig", origins: dict[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """Yield the settings of a model as they hold: alias, preset and old names resolved."""
    above, made_of = f"models.{spec.name}.", made_of_old(model)
    for path, value in leaves(resolved(model, spec)):
        key = path.partition(".")[0]
        old = made_of.get(path) or made_of.get(key)
        origin = _origin(f"{above}{old or path}", origins)
        if old is not None:
            origin += f", as {old}"
        elif key == "model" and value != model.model:
            origin += f", as {model.model!r}"
        elif origin == DEFAULT and key in preset(model.preset):
            origin = f"preset {model.preset!r}"
        yield above + path, value, origin


def _origin(path: str, origins: dict[str, str]) -> str:
    """Find who gave a value, or the map that it is in."""
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return DEFAULT


@click.command()
@_file
@_environment
@click.option(
    "--engine", type=click.Choice(["cpu", "gpu", "none"]), help="Instead of looking for a GPU."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be run.")
def setup(
    config: Path | None,
    environment: str | None,
    engine: str | None,
    dry_run: bool,  # noqa: FBT001  # click passes it by name
) -> None:
    """Prepare the virtual environment that the workers of this configuration run in."""
    from vllmport.pool.config import load_config

    settings = load_config(config, {"environment": environment} if environment else {})
    for command in setup_commands(settings, engine or _engine_here()):
        click.echo(" ".join(command))
        if not dry_run and subprocess.run(command, check=False).returncode:
            raise StartupFailed(f"this failed: {' '.join(command)}", phase="setup")


def setup_commands(settings: "PoolConfig", engine: str) -> list[list[str]]:
    """Say what makes the workers' virtual environment: the same one that `interpreter` finds."""
    venv = target_venv(settings.python, settings.venv, settings._folder)  # noqa: SLF001  # of the same package
    python = str((venv / PYTHONS[0]).absolute())
    pip = [python, "-m", "pip", "install"]
    commands = [] if Path(python).exists() else [[sys.executable, "-m", "venv", str(venv)]]
    if engine == "cpu":
        index = os.environ.get("VLLMPORT_TORCH_INDEX")
        commands.append([*pip, *(["--index-url", index] if index else []), TORCH])
    return [*commands, [*pip, *_this_distribution(engine)]]


def engine_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read `KEY=VALUE` as TOML does; a value that is no TOML is text.

    Raises:
        click.BadParameter: There is no `=` in it.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def _this_distribution(extra: str) -> list[str]:
    """Say how to install what runs here: the same folder, or the same version."""
    extra = "" if extra == "none" else f"[{extra}]"
    told = distribution("vllmport").read_text("direct_url.json")
    url = loads(told)["url"] if told else ""
    if url.startswith("file://"):
        return ["--editable", f"{url.removeprefix('file://')}{extra}"]
    return [f"vllmport{extra}=={version('vllmport')}"]


def _engine_here() -> str:
    return "gpu" if any(Path("/proc/driver/nvidia/gpus").glob("*")) else "cpu"
