"""The programs in docs/hosts.md and in the hosts' READMEs run as they stand there, and answer."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import environment, serving
from vllmport.pool import Pool

ROOT = Path(__file__).parents[2]
FENCES = {"python": "python", "js": "node", "c": "c", "elixir": "elixir"}
LONGEST = 20


def programs(document: str) -> list[tuple[str, str]]:
    """Return the programs of a document: host and source."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(FENCES[fence], source) for fence, source in found if fence in FENCES]


ALL = [
    pytest.param(host, source, id=f"{document}, {host}")
    for document in (
        "docs/hosts.md",
        *(f"hosts/{host}/README.md" for host in ("node", "c", "elixir")),
    )
    for host, source in programs(document)
]


@pytest.fixture(scope="module")
def endpoint(runtime_dir: Path, _module_leaves_nothing: None) -> Iterator[str]:
    """A service with the bundled model, as the programs expect it."""
    endpoint = f"ipc://{runtime_dir / 'hosts.sock'}"
    with serving(endpoint, "--model", "tiny"):
        with Pool.connect(endpoint) as pool:
            pool.llm(name="tiny")
        yield endpoint


def run(*command: str | Path, cwd: Path = ROOT, endpoint: str = "") -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment({"VLLMPORT_ENDPOINT": endpoint}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(source: str, _folder: Path, endpoint: str) -> str:
    return run(sys.executable, "-c", source, endpoint=endpoint)


def run_node(source: str, folder: Path, endpoint: str) -> str:
    package = ROOT / "hosts" / "node"
    run("npx", "tsc", cwd=package)
    program = package / "dist" / f"{folder.name}.mjs"  # in the package: it finds itself by name
    program.write_text(source, encoding="utf-8")
    return run("node", program, endpoint=endpoint)


def run_c(source: str, folder: Path, endpoint: str) -> str:
    host = ROOT / "hosts" / "c"
    (folder / "first.c").write_text(source, encoding="utf-8")
    run("make", "--silent", "install", f"PREFIX={folder}", cwd=host)
    library = "msgpack-c" if has_package("msgpack-c") else "msgpack"
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "libzmq", library))
    program = folder / "first"
    include = (f"-I{folder}/include", f"-L{folder}/lib")
    run(
        "cc",
        "-Wall",
        "-Werror",
        "-o",
        program,
        folder / "first.c",
        *include,
        "-lvllmport",
        *flags,
        "-lm",
    )
    return run(program, endpoint=endpoint)


def has_package(name: str) -> bool:
    command = ["pkg-config", "--exists", name]
    return subprocess.run(command, check=False).returncode == 0


def run_elixir(source: str, folder: Path, endpoint: str) -> str:
    program = folder / "first.exs"
    program.write_text(source, encoding="utf-8")
    return run("mix", "run", program, cwd=ROOT / "hosts" / "elixir", endpoint=endpoint)


RUN: dict[str, Callable[[str, Path, str], str]] = {
    "python": run_python,
    "node": run_node,
    "c": run_c,
    "elixir": run_elixir,
}


def test_every_language_has_a_first_program_of_twenty_lines() -> None:
    documented = programs("docs/hosts.md")
    assert [host for host, _ in documented] == ["python", "elixir", "node", "c"]
    for host, source in documented:
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= LONGEST, f"{host}: {len(lines)} lines"


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("host", "source"), ALL)
def test_a_documented_program_answers(
    host: str, source: str, needs: Callable[[str], None], tmp_path: Path, endpoint: str
) -> None:
    needs(host)
    assert "Paris" in RUN[host](source, tmp_path, endpoint)
