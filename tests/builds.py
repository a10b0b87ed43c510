"""Builds programs in the languages of the hosts, against the hosts as they are in this checkout."""

import functools
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from processes import environment

ROOT = Path(__file__).parents[1]
HOSTS = ROOT / "hosts"

Command = list[str]


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Return what a program prints; fail if it does."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(env or {}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def node_program(source: str, name: str) -> Command:
    """Return how to run a program that imports the package by its name."""
    _build_node()
    program = HOSTS / "node" / "dist" / f"{name}.mjs"  # in the package: it finds itself by name
    program.write_text(source, encoding="utf-8")
    return ["node", str(program)]


def c_program(source: str, folder: Path) -> Command:
    """Compile a program with the library as it is installed, found by pkg-config."""
    (folder / "program.c").write_text(source, encoding="utf-8")
    run("make", "--silent", "install", f"PREFIX={folder}", cwd=HOSTS / "c")
    own = {"PKG_CONFIG_PATH": f"{folder}/lib/pkgconfig:{os.environ.get('PKG_CONFIG_PATH', '')}"}
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "vllmport", env=own))
    program = folder / "program"
    run("cc", "-Wall", "-Werror", "-o", program, folder / "program.c", *flags)
    return [str(program)]


def elixir_command(program: Path) -> Command:
    """Return how to run a program with the application compiled, and not started."""
    return ["elixir", "-pa", str(_build_elixir()), str(program)]


@functools.cache
def _build_node() -> None:
    run("npx", "tsc", cwd=HOSTS / "node")


@functools.cache
def _build_elixir() -> Path:
    run("mix", "compile", cwd=HOSTS / "elixir")
    return HOSTS / "elixir" / "_build" / "dev" / "lib" / "vllm" / "ebin"
