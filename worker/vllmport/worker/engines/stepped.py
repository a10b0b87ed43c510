"""The loop of engines that have no loop of their own: the worker steps them.

Everything happens in one thread, in turn: take messages, step, send. Knows no particular engine.
"""

import time
from typing import Protocol

from vllmport.worker.engine import Port


class SteppedEngine(Protocol):
    """An engine that works only while `step` runs."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""

    def step(self) -> None:
        """Do one unit of work and put what comes out of it to the port."""


def run_stepped(engine: SteppedEngine, port: Port) -> None:
    """Serve until the port is closed; sleeps while there is nothing to do."""
    while not port.closed:
        port.receive(0 if engine.busy else _time_left(port))
        if engine.busy:
            engine.step()
        port.flush()


def _time_left(port: Port) -> float:
    return max(0.0, port.next_deadline() - time.monotonic())
