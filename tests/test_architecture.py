"""Who may import whom, what is pure, and how light an import is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {name: ROOT / name / "vllmport" / name for name in ("bridge", "worker", "pool")}

IMPORT_SECONDS = 0.15
SLACK = 5
"""A busy machine may take this many times as long."""

IMPURE = {
    "asyncio",
    "os",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
}

PURE = [
    *sorted(PACKAGES["bridge"].glob("*.py")),
    *(
        PACKAGES["pool"] / name
        for name in (
            "plan.py",
            "supervisor/access.py",
            "supervisor/admission.py",
            "supervisor/agenda.py",
            "supervisor/devices.py",
            "supervisor/dispatch.py",
            "supervisor/fleet.py",
            "supervisor/load.py",
            "supervisor/loading.py",
            "supervisor/sessions.py",
            "supervisor/control.py",
            "supervisor/open_calls.py",
            "supervisor/outgoing.py",
            "supervisor/places.py",
            "supervisor/replacing.py",
            "supervisor/restarting.py",
            "supervisor/stopping.py",
            "client/batch.py",
            "client/requests.py",
            "client/results.py",
            "client/params.py",
            "client/window.py",
            "client/travel.py",
        )
    ),
    PACKAGES["worker"] / "deltas.py",
]


def sources(package: str) -> list[Path]:
    found = sorted(PACKAGES[package].rglob("*.py"))
    assert found, f"no source in {package}"
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of each module that a file imports anywhere, or imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(str(module), names, 0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                message = f"{path}: relative imports hide who imports whom"
                raise AssertionError(message)


def importers(package: str, *modules: str) -> set[str]:
    """Return the files of a package that import one of the modules, or something in it."""
    return {
        str(path.relative_to(PACKAGES[package]))
        for path in sources(package)
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    }


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it writes."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(statement: str, *modules: str) -> set[str]:
    """Return which of the modules a statement loads."""
    code = f"import sys; {statement}; print(*({set(modules)!r} & sys.modules.keys()))"
    return set(run(code).split())


# Imports.


@pytest.mark.parametrize("package", ["bridge", "pool"])
def test_only_the_worker_imports_the_engine(package: str) -> None:
    assert importers(package, "vllm", "torch", "transformers") == set()


def test_imports_go_one_way() -> None:
    assert importers("pool", "vllmport.worker") == set()
    assert importers("worker", "vllmport.pool") == set()
    assert importers("bridge", "vllmport.pool", "vllmport.worker") == set()


def test_msgpack_is_touched_in_one_place() -> None:
    assert importers("bridge", "msgpack") == {"codec.py"}
    assert importers("pool", "msgpack") == importers("worker", "msgpack") == set()


def test_configuration_is_checked_in_one_place() -> None:
    assert importers("pool", "pydantic") == {"config.py"}


def test_the_supervisor_and_the_client_do_not_import_each_other() -> None:
    importing = importers("pool", "vllmport.pool.client")
    assert {name for name in importing if name.startswith(("supervisor/", "spawner/"))} == set()
    importing = importers("pool", "vllmport.pool.supervisor", "vllmport.pool.spawner")
    assert {name for name in importing if name.startswith("client/")} == set()


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_decides_does_no_io_and_reads_no_clock(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path)} & IMPURE == set()


def test_no_package_hides_the_others() -> None:
    """The three roots are portions of one namespace; an `__init__` there would end that."""
    assert [name for name in PACKAGES if (ROOT / name / "vllmport" / "__init__.py").exists()] == []


# Weight.


def test_the_client_is_imported_quickly() -> None:
    code = (
        "import time; start = time.perf_counter(); "
        "import vllmport.pool; vllmport.pool.Pool; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < IMPORT_SECONDS * SLACK


def test_the_client_loads_nothing_it_can_do_without() -> None:
    heavy = ("pydantic", "asyncio", "psutil", "tqdm", "rich", "click", "numpy", "vllm", "torch")
    assert loaded_by("import vllmport.pool; vllmport.pool.Pool", *heavy) == set()


def test_the_supervisor_loads_nothing_it_can_do_without() -> None:
    heavy = (
        "pydantic",
        "click",
        "rich",
        "numpy",
        "vllm",
        "torch",
        "vllmport.pool.client",
    )
    assert loaded_by("import vllmport.pool.supervisor.server", *heavy) == set()


def test_the_supervisor_does_not_load_asyncio() -> None:
    assert loaded_by("import vllmport.pool.supervisor.server", "asyncio") == set()


def test_the_package_itself_loads_no_part_of_it() -> None:
    assert (
        loaded_by("import vllmport.pool", "zmq", "vllmport.bridge", "vllmport.pool.client") == set()
    )


def test_every_public_name_is_there() -> None:
    code = (
        "import vllmport.pool as p; from vllmport.pool import *; "
        "missing = [name for name in p.__all__ if name not in globals()]; "
        "print(missing, sorted(p.__all__) == sorted(dir(p)))"
    )
    assert run(code) == "[] True"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    code = "import vllmport.pool as p; print(hasattr(p, 'no_such_name'))"
    assert run(code) == "False"


def test_the_bridge_exports_what_it_says() -> None:
    code = "import vllmport.bridge as b; print([n for n in b.__all__ if not hasattr(b, n)])"
    assert run(code) == "[]"
