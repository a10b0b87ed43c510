"""The environment of what vllmport is compared with: .bench-venv, made once of pinned versions."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.workload import ROOT

FOLDER: Final = ROOT / ".bench-venv"
BENCH_PYTHON: Final = str(FOLDER / "bin" / "python")
REQUIREMENTS: Final = ROOT / "bench" / "requirements.txt"
STAMP: Final = FOLDER / "installed.txt"


def prepare() -> None:
    """Make the environment if it is not what the requirements say; what cannot be had is said.

    A contender whose package is missing fails when it is started, and is reported with that.
    """
    wanted = REQUIREMENTS.read_text()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    if not Path(BENCH_PYTHON).exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    lines = [line for line in wanted.splitlines() if line and not line.startswith("#")]
    # Where they cannot be had together, each for itself.
    missing = [] if _install(lines) else [line for line in lines if not _install([line])]
    for line in missing:
        print(f"cannot be installed here: {line}", flush=True)
    if not missing:
        STAMP.write_text(wanted)


def _install(lines: list[str]) -> bool:
    command = [BENCH_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    return subprocess.run([*command, *lines], check=False).returncode == 0
