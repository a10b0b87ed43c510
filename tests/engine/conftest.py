"""Real vLLM workers on the bundled model, in one pool that stands for all modules of this folder.

An engine takes seconds to load. So there is one in each mode for all who do them no harm, loaded
when somebody first asks; whoever kills, stops or spins something has a pool of his own.
"""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import UNBOUND
from processes import RUN, STANDING, eventually, leaving_nothing
from vllmport.pool import LLM, Pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the engine: skipped with a word without it, but never in CI."""
    if importlib.util.find_spec("vllm") is not None or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed; run `make setup`"))


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """What an engine in this process puts into the environment is not for the next module."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="package")
def standing(runtime_dir: Path) -> Iterator[Pool]:
    """The pool for all modules, with a mark and a folder that are not those of any of them."""
    folder = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    with leaving_nothing(folder, STANDING):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(RUN, STANDING)
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            (folder / "vllmport").mkdir(mode=0o700)
            pool = Pool(policy={"standby": False})  # nothing here is about quick replacements
        with pool:
            yield pool
        (folder / "vllmport").rmdir()  # which is empty
    folder.rmdir()


@pytest.fixture(scope="module")
def pool(standing: Pool) -> Iterator[Pool]:
    """The pool that stands: a module leaves its engines as they were, and none of its own."""
    yield standing

    def left() -> list[tuple[str, int, int]]:
        workers = standing.status()["workers"]
        return [(worker["id"], worker["restarts"], worker["unfinished"]) for worker in workers]

    eventually(lambda: {*left()} <= {("off/0", 0, 0), ("on/0", 0, 0)})


@pytest.fixture(scope="package")
def off(standing: Pool) -> LLM:
    """The engine inside the worker."""
    return standing.llm(name="off", model="tiny", env=UNBOUND)


@pytest.fixture(scope="package")
def on(standing: Pool) -> LLM:
    """The engine in a process of its own; it also takes embeddings, and computes more exactly."""
    import torch

    options: dict[str, Any] = {"dtype": torch.float32, "enable_prompt_embeds": True}
    return standing.llm(name="on", model="tiny", v1_multiprocessing="on", env=UNBOUND, **options)


@pytest.fixture(params=["off", "on"])
def llm(request: pytest.FixtureRequest) -> LLM:
    """The same test on both ways to run the engine."""
    engine: LLM = request.getfixturevalue(request.param)
    return engine


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> None:
    """Here a module shares its engines, which start helpers when they need them: see the module."""
