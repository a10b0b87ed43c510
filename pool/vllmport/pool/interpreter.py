"""Which Python runs the workers: the first place that names one, in a fixed order.

1. `VLLMPORT_VENV`, then `SNAKEBRIDGE_VENV`: a virtual environment.
2. The settings `python`, then `venv`.
3. `.venv` in the folder of the configuration, where vllmport is installed in it.
4. The Python that runs the pool.
"""

import os
import sys
from pathlib import Path
from shutil import which
from typing import NamedTuple

from vllmport.bridge.errors import InvalidRequest

VARIABLES = ("VLLMPORT_VENV", "SNAKEBRIDGE_VENV")
PYTHONS = ("bin/python3", "bin/python", "Scripts/python.exe", "Scripts/python")


class Interpreter(NamedTuple):
    """A Python and who named it."""

    python: str
    origin: str


def find_interpreter(python: str | None, venv: str | None, folder: Path) -> Interpreter:
    """Return the Python of the workers.

    Args:
        python: The setting `python`: a path, or the name of a program.
        venv: The setting `venv`.
        folder: Where the configuration lies; relative paths start there.

    Raises:
        InvalidRequest: A virtual environment was named that has no Python.
    """
    for variable in VARIABLES:
        named = os.environ.get(variable)
        if named:
            return Interpreter(_inside(Path(named), variable), variable)
    if python is not None:
        return Interpreter(_path_of(python, folder), "python")
    if venv is not None:
        return Interpreter(_inside(folder / Path(venv).expanduser(), "venv"), "venv")
    nearby = folder / ".venv"
    ours = nearby.resolve() == Path(sys.prefix).resolve()
    if not ours and any(nearby.glob("lib/python*/site-packages/vllmport-*.dist-info")):
        return Interpreter(_inside(nearby, ".venv"), ".venv")
    return Interpreter(sys.executable, "this Python")


def target_venv(python: str | None, venv: str | None, folder: Path) -> Path:
    """Return the virtual environment that `vllmport setup` prepares, by the same order.

    Raises:
        InvalidRequest: The workers' Python is in no virtual environment.
    """
    for variable in VARIABLES:
        if os.environ.get(variable):
            return Path(os.environ[variable])
    if python is not None:
        return _environment_of(Path(_path_of(python, folder)))
    return folder / Path(venv or ".venv").expanduser()


def _path_of(python: str, folder: Path) -> str:
    """Return the whole path of a program; what is nowhere stays as it is."""
    if "/" in python:
        return str(folder / Path(python).expanduser())
    return which(python) or python


def _environment_of(python: Path) -> Path:
    """Return the environment of a Python: one that is there, or one that can be made."""
    venv = python.parent.parent  # not resolved: the link's place makes the venv
    made = any((venv / mark).exists() for mark in ("pyvenv.cfg", "conda-meta"))
    if made or (python.parent.name == "bin" and not venv.exists()):
        return venv
    text = f"the workers run {str(python)!r}, which is in no virtual environment, and setup "
    text += "installs nowhere else: name one by `venv` instead of `python`, or install vllmport "
    text += "and vLLM there yourself"
    raise InvalidRequest.of("python", str(python), text)


def _inside(venv: Path, name: str) -> str:
    for python in PYTHONS:
        if (venv / python).exists():
            return str((venv / python).absolute())  # not resolved: the link's place makes the venv
    text = f"{name} names {str(venv)!r}, which is no virtual environment with a Python; make it "
    text += "with `vllmport setup`"
    raise InvalidRequest.of(name, str(venv), text)
