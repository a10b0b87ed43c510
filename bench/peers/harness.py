"""The end of a contender's own process: takes orders, measures, answers. Needs nothing but Python.

Orders and answers are lines of JSON on stdin and stdout: `[verb, argument…]`, and a map with either
`value` or `error`, and `cpu`: the share of one core that this process used meanwhile. A contender
is the client; what it talks to are processes of its own. It ends with its stdin.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

SMALL: dict[str, Any] = {"id": 7, "text": "x" * 138}
"""150 bytes of msgpack."""


def items(count: int) -> list[dict[str, Any]]:
    """Return items of a stream, each as a worker says it of one token; no two share a part."""
    return [
        {
            "outputs": [
                {
                    "index": 0,
                    "text": chr(97 + number % 26),
                    "token_ids": [97 + number % 26],
                    "cumulative_logprob": None,
                    "logprobs": None,
                    "finish_reason": None,
                    "stop_reason": None,
                }
            ]
        }
        for number in range(count)
    ]


class Echo(Protocol):
    """A contender that says back what it is given."""

    def call(self, value: Any) -> Any:
        """Make one call and wait for its answer."""

    def flight(self, width: int, seconds: float) -> int:
        """Keep `width` calls open for so long; return how many were answered."""

    def stream(self, batch: int, seconds: float) -> int:
        """Read streams whose messages hold `batch` items, for so long; return how many came."""


class NotOffered(Exception):
    """The contender has nothing of the kind."""


def serve(make: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """Make the contender and obey until stdin ends; what is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(work: Callable[[], Any]) -> None:
        cpu, start = time.process_time(), time.perf_counter()
        try:
            found = {"value": work()}
        except Exception as exc:  # noqa: BLE001  # outermost: it is the answer
            found = {"error": f"{type(exc).__name__}: {exc}"}
        took = time.perf_counter() - start
        found["cpu"] = (time.process_time() - cpu) / took
        answers.write(json.dumps(found) + "\n")

    verbs: dict[str, Callable[..., Any]] = {}
    answer(lambda: verbs.update(make()))
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answer(partial(_do, verbs, verb, arguments))
    os._exit(0)  # some of them would wait for threads


def _do(verbs: Mapping[str, Callable[..., Any]], verb: str, arguments: list[Any]) -> Any:
    if verb not in verbs:
        raise NotOffered(f"it cannot be told to {verb}")
    return verbs[verb](*arguments)


def echo_verbs(contender: Echo) -> dict[str, Callable[..., Any]]:
    """Return what a contender that echoes can be told to do."""

    def calls(count: int, size: int) -> list[float]:
        value = os.urandom(size) if size else SMALL
        took = []
        for _ in range(count):
            start = time.perf_counter()
            found = contender.call(value)
            took.append((time.perf_counter() - start) * 1e3)
        if found != value:
            raise AssertionError("it does not say back what it was given")
        return took

    def rate(work: Callable[[int, float], int], width: int, seconds: float) -> float:
        start = time.perf_counter()
        return work(width, seconds) / (time.perf_counter() - start)

    return {
        "calls": calls,
        "flight": lambda width, seconds: rate(contender.flight, width, seconds),
        "stream": lambda batch, seconds: rate(contender.stream, batch, seconds),
    }


def futures_flight(submit: Callable[[], Any], width: int, seconds: float) -> int:
    """Keep `width` futures open; for pools that submit and call back."""
    room = threading.Semaphore(width)
    end = time.perf_counter() + seconds
    submitted = 0
    while time.perf_counter() < end:
        room.acquire()
        submit().add_done_callback(lambda _: room.release())
        submitted += 1
    for _ in range(width):
        room.acquire()
    return submitted


def echo(value: Any) -> Any:
    """Be the other end of a process pool."""
    return value
