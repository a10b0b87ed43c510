"""The tables of precedence are what the code does: take away who decides, and see who is next."""

import math
import os
import sys
import venv
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import psutil
import pytest

from pages import Page
from processes import worker_pid
from vllmport.bridge.errors import StartupFailed
from vllmport.bridge.timeouts import LIBRARY_PROFILE, PROFILES
from vllmport.pool import Pool
from vllmport.pool.config import load_config
from vllmport.pool.plan import Policy
from vllmport.worker.mode import choose_mode

PAGE = Page("configuration.md", {})

Names = Collection[str]


def documented(heading: str) -> list[str]:
    """Return the first cells of a table of precedence, without their quotes."""
    return [row[0].replace("`", "") for row in PAGE.tables(heading, "where")]


def order(sources: Names, decides: Callable[[Names], str]) -> list[str]:
    """Return who decides, then who does without that one, and so on to the last.

    Args:
        sources: All that can be given; what is left when none is, is found as well.
        decides: Who decides, where these are given.
    """
    left = [*sources]
    found = [decides(left)]
    while found[-1] in left:
        left.remove(found[-1])
        found.append(decides(left))
    assert not left, f"{left} decide nothing"
    return found


def chosen(given: Names, values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[name] for name in given if name in values}


def test_the_time_of_a_call() -> None:
    def decides(given: Names) -> str:
        profiles = {"timeout_profile": 2.0, "library_profiles": 3.0}
        settings: dict[str, object] = {"profiles": profiles}
        if "library_profiles" in given:
            settings["library_profiles"] = {"vllm": "library_profiles"}
        timeouts = load_config({"timeouts": settings}, {}).timeouts.to_timeouts()
        exact = 1.0 if "timeout" in given else None
        named = "timeout_profile" if "timeout_profile" in given else None
        seconds = timeouts.seconds(exact, named)
        values = {1.0: "timeout", 2.0: "timeout_profile", 3.0: "library_profiles"}
        return values.get(seconds) or {PROFILES[LIBRARY_PROFILE]: LIBRARY_PROFILE}[seconds]

    heading = "a call's time: the first that is given"
    sources = ("library_profiles", "timeout", "timeout_profile")
    assert order(sources, decides) == documented(heading)


@pytest.mark.parametrize("which", [0, 1])
def test_the_pauses_of_a_stream(which: int) -> None:
    call = ("first_token_timeout", "token_timeout")[which]
    pool = ("first_token", "between_tokens")[which]

    def decides(given: Names) -> str:
        settings = {pool: 2.0} if pool in given else {}
        timeouts = load_config({"timeouts": settings}, {}).timeouts.to_timeouts()
        asked: list[float | None] = [None, None]
        asked[which] = 1.0 if call in given else None
        return {1.0: call, 2.0: pool, math.inf: "no limit"}[timeouts.pauses(*asked)[which]]

    rows = documented("a stream's pauses: the first that is given")
    assert order((pool, call), decides) == [
        row.split(", ")[which % len(row.split(", "))] for row in rows
    ]


def test_settings() -> None:
    def decides(given: Names) -> str:
        data: dict[str, object] = {"environments": {"prod": {}}}
        if "file" in given:
            data["policy"] = {"max_queue": 1}
        if "environment" in given:
            data["environments"] = {"prod": {"policy": {"max_queue": 2}}}
        overrides: dict[str, object] = {"environment": "prod"}
        if "override" in given:
            overrides["policy"] = {"max_queue": 3}
        found = load_config(data, overrides).policy.max_queue
        values = {1: "file", 2: "environment", 3: "override", Policy().max_queue: "default"}
        return values[found]

    heading = "settings: the first that says it"
    assert order(("file", "environment", "override"), decides) == documented(heading)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def decides(given: Names) -> str:
        names = ("option", "VLLMPORT_ENV", "file")
        data: dict[str, object] = {"environments": {name: {} for name in names}}
        if "file" in given:
            data["environment"] = "file"
        monkeypatch.delenv("VLLMPORT_ENV", raising=False)
        if "VLLMPORT_ENV" in given:
            monkeypatch.setenv("VLLMPORT_ENV", "VLLMPORT_ENV")
        overrides = {"environment": "option"} if "option" in given else {}
        return load_config(data, overrides).environment or "none"

    found = order(("file", "option", "VLLMPORT_ENV"), decides)
    assert found == [*documented("environment: the first that names one"), "none"]


def test_the_python_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for name in ("VLLMPORT_VENV", "SNAKEBRIDGE_VENV", "venv", ".venv", "python"):
        made[name] = tmp_path / name
        venv.create(made[name], with_pip=False, symlinks=True)
    (packages,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    installed = packages / "vllmport-0.1.0.dist-info"
    paths = {str(folder): name for name, folder in made.items()}
    file = tmp_path / "pool.toml"

    def decides(given: Names) -> str:
        lines = []
        if "python" in given:
            lines.append(f"python = '{made['python']}/bin/python3'")
        if "venv" in given:
            lines.append("venv = 'venv'")  # beside the file
        file.write_text("\n".join(lines))
        installed.mkdir(exist_ok=True)
        if ".venv" not in given:
            installed.rmdir()
        for variable in ("VLLMPORT_VENV", "SNAKEBRIDGE_VENV"):
            monkeypatch.delenv(variable, raising=False)
            if variable in given:
                monkeypatch.setenv(variable, str(made[variable]))
        found = load_config(file, {}).interpreter().python
        return "this Python" if found == sys.executable else paths[str(Path(found).parents[1])]

    assert order([*made], decides) == documented("Python: the first that names one")


def test_variables_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def decides(variable: str, given: Names) -> str:
        monkeypatch.delenv(variable, raising=False)
        if "the pool's environment" in given:
            monkeypatch.setenv(variable, "the pool's environment")
        env = {variable: "env"} if "env" in given else {}
        options = {"hf_token": "hf_token"} if "hf_token" in given else {}
        with Pool(log_level="warning") as pool, pool.llm("echo", env=env, **options):
            found = psutil.Process(worker_pid(pool)).environ().get(variable, "none")
        return "vllmport" if found == "WARNING" else found

    heading = "a variable: the first that sets it"
    rows = documented(heading)
    places = ("env", "the pool's environment")
    token = order(("hf_token", *places), lambda given: decides("HF_TOKEN", given))
    level = order(places, lambda given: decides("VLLM_LOGGING_LEVEL", given))
    assert token == [*rows[:-1], "none"]
    assert level == rows[1:]
    assert os.environ.get("HF_TOKEN") is None


def test_the_mode_of_the_engine() -> None:
    def cell(asked: str, unsafe: str) -> str:
        try:
            mode = choose_mode(asked, unsafe, None)
        except StartupFailed:
            return "fails at once"
        place = "in its own process" if mode.name == "on" else "in the worker"
        return f"{place}, with a warning" if mode.warnings else place

    rows = PAGE.tables("value", "with cleanup", "`process_group_kill = false`")
    assert sorted(row[0] for row in rows) == ["`auto`", "`off`", "`on`"]
    for value, safe, unsafe in rows:
        asked = value.strip("`")
        assert cell(asked, "") == safe.partition(":")[0]
        assert cell(asked, "process_group_kill is false") == unsafe
