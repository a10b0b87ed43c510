"""A service on TCP and its clients, for the modules that judge who comes in and what they do."""

from collections.abc import Iterator

import pytest
import zmq

from tcp_service import ECHO, Connect, Served, Wire
from vllmport.pool import LLM


@pytest.fixture(scope="module")
def settings() -> str:
    """What the service's pool.toml says besides its keys; a module may have another."""
    return ECHO


@pytest.fixture(scope="module")
def served(
    settings: str, tmp_path_factory: pytest.TempPathFactory, _module_leaves_nothing: None
) -> Iterator[Served]:
    """A service whose keys are a boss, a guest, one with small quotas, one with the role ffi."""
    with Served(tmp_path_factory.mktemp("tcp"), settings).running() as service:
        yield service


@pytest.fixture
def guest(served: Served) -> Iterator[LLM]:
    """The echo model, attached to with the role call."""
    with served.connect("guest") as pool, pool.llm(name="echo") as llm:
        yield llm


@pytest.fixture
def connect(served: Served) -> Iterator[Connect]:
    """Makes connections with a key, to be used message by message; they are closed at the end."""
    with zmq.Context() as context:
        made: list[Wire] = []  # kept, so that they are closed and not let go

        def connected(name: str) -> Wire:
            made.append(Wire(context, served, name))
            return made[-1]

        yield connected
        context.destroy(linger=0)
