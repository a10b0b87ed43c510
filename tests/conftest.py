"""What holds for every test: a runtime folder of its own, and nothing left afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import RUN, RUN_ID, leaving_nothing
from vllmport.pool import LLM, Pool


@pytest.fixture(scope="session", autouse=True)
def runtime_dir() -> Iterator[Path]:
    """A private folder for the sockets of this run; short, for the kernel takes 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.delenv("VLLMPORT_ENDPOINT", raising=False)
        patch.setenv(RUN, RUN_ID)
        (folder / "vllmport").mkdir(mode=0o700)
        yield folder / "vllmport"
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(runtime_dir: Path) -> Iterator[None]:
    """What a module's own pools started is gone when the module is."""
    with leaving_nothing(runtime_dir):
        yield


@pytest.fixture(autouse=True)
def _test_leaves_nothing(runtime_dir: Path, _module_leaves_nothing: None) -> Iterator[None]:
    """What a test started, detached or not, is gone after it, and so are its sockets."""
    with leaving_nothing(runtime_dir):
        yield


@pytest.fixture
def endpoint(runtime_dir: Path) -> str:
    """An endpoint where nothing is."""
    path = runtime_dir / f"{os.urandom(4).hex()}.sock"
    return f"ipc://{path}"


@pytest.fixture(scope="module")
def shared_pool(_module_leaves_nothing: None) -> Iterator[Pool]:
    """A pool for the tests of one module that do it no harm."""
    with Pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def echo(shared_pool: Pool) -> Iterator[LLM]:
    """The shared pool's echo engine: a token a millisecond, so that there is time to look."""
    with shared_pool.llm("echo", step_delay=0.001) as llm:
        yield llm
