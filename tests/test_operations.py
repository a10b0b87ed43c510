"""What docs/operations.md tells people to write and to type exists."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllmport.pool import cli
from vllmport.pool.config import load_config
from vllmport.pool.keys import make_pair
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor.access import Guest, Role
from vllmport.pool.supervisor.door import read_guests

TEXT = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
(UNIT,) = re.findall(r"```ini\n(.*?)```", TEXT, re.DOTALL)
LINES = [line.strip() for line in TEXT.splitlines()]
TYPED = [line for line in LINES if line.startswith(("vllmport ", "systemd-run "))]
MENTIONED = re.findall(r"\bvllmport ([a-z]+)\b", " ".join(re.findall(r"`[^`]*`", TEXT)))


def options(command: str) -> list[str]:
    """Return the options that a command line gives to vllmport."""
    return re.findall(r"--[a-z-]+", command.partition("vllmport ")[2])


def test_the_commands_to_type_exist() -> None:
    assert len(TYPED) >= 7
    for line in TYPED:
        name = line.partition("vllmport ")[2].split()[0]
        assert name in cli.cli.commands, line
        known = {option for param in cli.cli.commands[name].params for option in param.opts}
        assert set(options(line)) <= known, line


def test_the_commands_that_are_mentioned_exist() -> None:
    assert set(MENTIONED) <= cli.cli.commands.keys()


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT)
    return parser


def test_the_unit_gives_the_pool_its_cgroup_and_its_time() -> None:
    service = unit()["Service"]
    assert service["Delegate"] == "yes"
    assert service["KillMode"] == "mixed"
    policy = Policy()
    assert int(service["TimeoutStopSec"]) > policy.drain_timeout + policy.stop_timeout + 20
    assert service["RestartPreventExitStatus"] == "2 6"
    assert service["RuntimeDirectory"] == "vllmport"
    assert service["RuntimeDirectoryMode"] == "0700"


def test_the_unit_serves_a_configuration() -> None:
    program, command, _ = unit()["Service"]["ExecStart"].split()
    assert Path(program).name == "vllmport"
    assert command in cli.cli.commands


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "vllmport.service"
    path.write_text(re.sub(r"(?m)^(ExecStart=)\S+", rf"\1{sys.executable}", UNIT))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_us = [line for line in done.stderr.splitlines() if "vllmport.service" in line]
    assert about_us == []


def test_every_exit_status_is_explained() -> None:
    assert cli.__doc__ is not None
    documented = re.findall(r"(\d+) [a-z]", cli.__doc__.partition("Exit status:")[2])
    table = re.findall(r"(?m)^\| (\d+) \|", TEXT)
    assert table == documented
    assert {str(status) for status in cli.EXIT_STATUS.values()} <= set(table)


def test_the_settings_it_names_exist() -> None:
    for name in ("max_loads", "memory_timeout", "drain_timeout", "stop_timeout"):
        assert f"`{name}`" in TEXT
        assert name in Policy.__dataclass_fields__
    policy = Policy()
    assert f"`max_loads` workers ({policy.max_loads})" in TEXT
    assert f"`memory_timeout` ({policy.memory_timeout:.0f} s)" in TEXT


def test_the_example_of_a_pool_for_other_machines_is_one(tmp_path: Path) -> None:
    config, clients = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    keys = {
        name: make_pair(tmp_path / f"{name}.key") for name in ("server", "notebook", "operator")
    }
    for name, pair in keys.items():
        clients = clients.replace(f"THE PUBLIC KEY OF {name}.key", pair.public)
    (tmp_path / "pool.toml").write_text(config.replace("/etc/vllmport", str(tmp_path)))
    (tmp_path / "clients.toml").write_text(clients)
    plan = load_config(tmp_path / "pool.toml", {}).to_plan(tmp_path / "run")
    assert plan.security is not None
    assert plan.security.secret_key == keys["server"].secret
    guests = read_guests(Path(plan.security.clients))
    notebook, operator = keys["notebook"].public, keys["operator"].public
    assert guests[notebook] == Guest("notebook", key=notebook)
    assert guests[operator] == Guest("operator", Role.ADMIN, operator, max_calls=64)


def test_the_settings_of_a_key_have_these_defaults() -> None:
    table = dict(re.findall(r"(?m)^\| `(role|max_[a-z]+)` \| `?([^|`]*)`? \|", TEXT))
    guest = Guest("")
    assert {name: value.strip() for name, value in table.items()} == {
        "role": f'"{guest.role}"',
        "max_connections": str(guest.max_connections),
        "max_calls": str(guest.max_calls),
        "max_queued": str(guest.max_queued),
        "max_bytes": str(guest.max_bytes),
    }
