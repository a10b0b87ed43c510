"""`multiprocessing.Pipe` with a process at its other end: the least the standard library needs."""

import time
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from typing import Any

from bench.peers.harness import SMALL, echo_verbs, items, serve


class Piped:
    """The end that asks."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        Process(target=answer, args=(theirs,), daemon=True).start()

    def call(self, value: Any) -> Any:
        self._pipe.send(value)
        return self._pipe.recv()

    def flight(self, width: int, seconds: float) -> int:
        for _ in range(width):
            self._pipe.send(SMALL)
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._pipe.recv()
            self._pipe.send(SMALL)
            done += 1
        for _ in range(width):
            self._pipe.recv()
        return done + width

    def stream(self, batch: int, seconds: float) -> int:
        self._pipe.send(("stream", batch, seconds))
        items = 0
        while (found := self._pipe.recv()) is not None:
            items += len(found)
        return items


def answer(pipe: "Connection[Any, Any]") -> None:
    """Say back what comes; stream on request."""
    while True:
        value = pipe.recv()
        if type(value) is tuple:
            _, batch, seconds = value
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pipe.send(items(batch))
            pipe.send(None)
        else:
            pipe.send(value)


if __name__ == "__main__":
    serve(lambda: echo_verbs(Piped()))
