"""A pool with real vLLM workers on the bundled model, shared by the tests of this folder."""

import importlib.util
import os
from collections.abc import Iterator

import pytest

from checkpoints import UNBOUND
from vllmport.pool import LLM, Pool, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8)


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


@pytest.fixture(scope="module")
def pool(_module_leaves_nothing: None) -> Iterator[Pool]:
    with Pool(policy={"standby": False}) as pool:  # nothing here is about quick replacements
        yield pool


@pytest.fixture(scope="module")
def off(pool: Pool) -> LLM:
    """The engine inside the worker."""
    return pool.llm(name="off", model="tiny", env=UNBOUND)


@pytest.fixture(scope="module")
def on(pool: Pool) -> LLM:
    """The engine in a process of its own, compiled by nobody so that it starts sooner."""
    return pool.llm(name="on", model="tiny", v1_multiprocessing="on", env=UNBOUND)


@pytest.fixture(params=["off", "on"])
def llm(request: pytest.FixtureRequest, off: LLM, on: LLM) -> LLM:
    """The same test on both ways to run the engine."""
    return {"off": off, "on": on}[request.param]


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> None:
    """Here a module shares its engines, which start helpers when they need them: see the module."""
