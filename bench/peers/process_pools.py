"""Pools of processes that call a function: ProcessPoolExecutor, loky, pebble; one worker each."""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bench.peers.harness import SMALL, NotOffered, echo, echo_verbs, futures_flight, serve

Submit = Callable[[Any], "Future[Any]"]


class Futures:
    """A pool behind one function that makes a future of a value."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit

    def call(self, value: Any) -> Any:
        return self._submit(value).result()

    def flight(self, width: int, seconds: float) -> int:
        return futures_flight(lambda: self._submit(SMALL), width, seconds)

    def stream(self, batch: int, seconds: float) -> int:
        raise NotOffered("it has no streams")


def executor() -> Submit:
    """Start a ProcessPoolExecutor."""
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(1)
    return lambda value: pool.submit(echo, value)


def loky() -> Submit:
    """Start a loky pool."""
    from loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=1, timeout=None)
    return lambda value: pool.submit(echo, value)


def pebble() -> Submit:
    """Start a pebble pool, which has a time-out for each call, as we have."""
    from pebble import ProcessPool

    pool = ProcessPool(1)
    return lambda value: pool.schedule(echo, args=(value,), timeout=60)


if __name__ == "__main__":
    makers = {"executor": executor, "loky": loky, "pebble": pebble}
    serve(lambda: echo_verbs(Futures(makers[sys.argv[1]]())))
