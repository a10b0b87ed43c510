"""The programs in docs/hosts.md and in the hosts' READMEs run as they stand there, and answer.

All of them join one pool, which listens on TCP; and so do guests, each with a key that may not do
everything, or that is not known there.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from builds import HOSTS, c_program, elixir_command, node_program, run
from processes import PATIENCE, at_most, environment
from tcp_service import ECHO, ROLES, Served

ROOT = Path(__file__).parents[2]
FENCES = {"python": "python", "js": "node", "c": "c", "elixir": "elixir"}
LONGEST = 20

GUESTS = Path(__file__).parent / "guests"

MODELS = '[policy]\nstandby = false\n[models.tiny]\nmodel = "tiny"\n' + ECHO

JOIN = 'Application.put_env(:vllm, :connect, System.fetch_env!("VLLMPORT_ENDPOINT"))'
"""Elixir starts a pool of its own otherwise; its other tests do that."""


def programs(document: str) -> list[tuple[str, str]]:
    """Return the programs of a document: host and source."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(FENCES[fence], source) for fence, source in found if fence in FENCES]


DOCUMENTS = ("docs/hosts.md", *(f"hosts/{host}/README.md" for host in ("node", "c", "elixir")))

ALL = [
    pytest.param(host, source, id=f"{document}, {host}")
    for document in (*DOCUMENTS, "docs/universal-calls.md")
    for host, source in programs(document)
    if host != "python" or document == "docs/hosts.md"
]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, _module_leaves_nothing: None
) -> Iterator[Served]:
    """A service with the bundled model, as the programs expect it, for those who have a key."""
    with Served(tmp_path_factory.mktemp("tcp"), MODELS).running() as service:
        yield service


def command_for(host: str, source: str, folder: Path) -> list[str]:
    """Build a program; return how to run it."""
    match host:
        case "node":
            return node_program(source, folder.name)
        case "c":
            return c_program(source, folder)
        case "elixir":
            program = folder / "first.exs"
            program.write_text(source, encoding="utf-8")
            return ["mix", "run", "-e", f'{JOIN}; Code.eval_file("{program}")']
        case _:
            return [sys.executable, "-c", source]


def test_every_language_has_a_first_program_of_twenty_lines() -> None:
    hosts = [host for host, _ in programs("docs/hosts.md")]
    assert hosts == ["python", "elixir", "node", "c"]
    for document in DOCUMENTS:
        for host, source in programs(document):
            lines = [line for line in source.splitlines() if line.strip()]
            assert len(lines) <= LONGEST, f"{document}, {host}: {len(lines)} lines"


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("host", "source"), ALL)
def test_a_documented_program_answers(
    host: str, source: str, needs: Callable[[str], None], tmp_path: Path, served: Served
) -> None:
    needs(host)
    command = command_for(host, source, tmp_path)
    assert "Paris" in run(*command, cwd=HOSTS / "elixir", env=served.environment("boss"))


# Guests with a key.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("program")


class Guest:
    """A program of one of the hosts, which comes with the key that its environment names."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host = host
        match host:
            case "node":
                self.command = node_program((GUESTS / "guest.mjs").read_text(), "guest")
            case "c":
                self.command = c_program((GUESTS / "guest.c").read_text(), folder)
            case _:
                self.command = elixir_command(GUESTS / "guest.exs")

    def variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return its environment: Elixir's program configures what it is given."""
        if self.host != "elixir":
            return dict(env)
        named = {name.removeprefix("VLLMPORT_"): value for name, value in env.items()}
        return {**named, "POOL": named.pop("ENDPOINT")}

    def says(self, env: Mapping[str, str]) -> list[str]:
        """Run it; return the lines that it prints."""
        return run(*self.command, env=self.variables(env)).splitlines()


@pytest.fixture(params=["node", "c", "elixir"])
def guest(request: pytest.FixtureRequest, needs: Callable[[str], None], folder: Path) -> Guest:
    """A guest of each host."""
    needs(request.param)
    return Guest(request.param, folder)


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_known_key_is_answered_and_may_not_load(served: Served, guest: Guest) -> None:
    answer, refusal = guest.says(served.environment("guest"))
    assert answer == " Paris."
    assert refusal.startswith("permission_denied")
    assert "admin" in refusal


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_key_that_is_not_known_is_refused_and_not_kept_waiting(
    served: Served, guest: Guest
) -> None:
    with at_most(5):
        (refusal,) = guest.says(served.environment("stranger"))
    assert refusal.startswith("permission_denied")
    assert served.endpoint in refusal


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_pool_with_another_key_is_not_spoken_to(served: Served, guest: Guest) -> None:
    other = {"VLLMPORT_SERVER_KEY": served.pairs["stranger"].public}
    with at_most(5):
        (refusal,) = guest.says(served.environment("guest") | other)
    assert refusal.startswith("permission_denied")


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_key_that_is_taken_away_ends_a_stream_with_the_reason(
    served: Served, guest: Guest
) -> None:
    served.write_clients(**ROLES, stranger="call")
    try:
        env = environment(guest.variables(served.environment("stranger")))
        with subprocess.Popen(
            [*guest.command, "stream"], stdout=subprocess.PIPE, text=True, env=env
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "streams\n"
            served.write_clients(**ROLES)
            last = program.stdout.readline()
            assert last.startswith("permission_denied")
            assert "was taken out" in last
            assert program.wait(PATIENCE) == 0
    finally:
        served.write_clients(**ROLES)
