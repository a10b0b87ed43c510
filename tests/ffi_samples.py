"""Objects for universal calls: what the echo engine's tests make, stream and hold in a worker."""

import asyncio
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

_things: "weakref.WeakSet[Thing]" = weakref.WeakSet()


class Thing:
    """Something that cannot travel."""

    kind = "thing"

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.module = os
        self._secret = "secret"
        _things.add(self)

    @classmethod
    def twice(cls, value: Any) -> "Thing":
        return cls([value, value])

    def double(self) -> Any:
        return self.value * 2

    def itself(self) -> "Thing":
        return self

    def same_as(self, other: object) -> bool:
        return self is other

    def system(self) -> Any:
        return os.system

    def library(self) -> ModuleType:
        return os

    def klass(self) -> type:
        return Thing

    async def later(self, seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return self.value


class Engine(Thing):
    """Something with items."""

    def __getitem__(self, key: Any) -> Any:
        return {"a": 1}[key]


def alive() -> int:
    """Return how many things have not been freed."""
    return len(_things)


def worker() -> int:
    """Return the process."""
    return os.getpid()


def things(count: int) -> list[Thing]:
    return [Thing(number) for number in range(count)]


def tree() -> dict[str, Any]:
    """Return containers with leaves of both kinds."""
    thing = Thing(1)
    return {"plain": [1, (2.5, "x")], "thing": thing, "again": [thing], "set": {1, 2}}


def cycle() -> list[Any]:
    loop: list[Any] = [1]
    loop.append(loop)
    return loop


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def module_inside() -> list[Any]:
    return [1, Thing(), os]


def compute(seconds: float) -> float:
    """Compute for so long; nothing can stop it."""
    time.sleep(seconds)
    return seconds


def fail(text: str) -> None:
    raise RuntimeError(text)


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


async def slowly(count: int, pause: float) -> AsyncIterator[Thing]:
    for number in range(count):
        await asyncio.sleep(pause)
        yield Thing(number)


async def fetch(value: Any) -> Any:
    await asyncio.sleep(0)
    return value
