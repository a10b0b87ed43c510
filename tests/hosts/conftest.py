"""The hosts in other languages: their own test suites, and the programs of their documentation."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEEDED: dict[str, list[str]] = {
    "python": [],
    "node": ["npm", "node", "hosts/node/node_modules"],
    "c": ["make", "cc", "pkg-config", "valgrind", "/usr/include/zmq.h", "/usr/include/msgpack.h"],
    "elixir": ["mix"],
}
"""Host → the programs and files that its tests need."""


def missing(host: str) -> list[str]:
    """Return what is not here of what the tests of a host need."""
    needed = NEEDED[host]
    lacking = [what for what in needed if not (ROOT / what).exists() and shutil.which(what) is None]
    if importlib.util.find_spec("vllm") is None:
        lacking.append("vLLM")
    return lacking


@pytest.fixture
def needs() -> Callable[[str], None]:
    """Skip a test by hand where tools are missing; in CI that is a failure."""

    def check(host: str) -> None:
        lacking = missing(host)
        if lacking:
            text = (
                f"{host}: {', '.join(lacking)} missing; run `make hosts` to install what it needs"
            )
            (pytest.fail if os.environ.get("CI") else pytest.skip)(text)

    return check


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> None:
    """Here a module shares a service, which starts helpers when it needs them: see the module."""


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the hosts how to run the command, and Elixir that text is UTF-8."""
    monkeypatch.setenv("VLLMPORT", f"{sys.executable} -m vllmport.pool.cli")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
