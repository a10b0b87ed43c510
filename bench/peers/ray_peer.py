"""A Ray actor, on a Ray of its own without a dashboard."""

import time
from collections.abc import Iterator
from typing import Any

import ray
from bench.peers.harness import SMALL, echo_verbs, items, serve


class Actor:
    """The other end."""

    def echo(self, value: Any) -> Any:
        """Say it back."""
        return value

    def stream(self, batch: int, seconds: float) -> Iterator[Any]:
        """Stream for some time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield items(batch)


class Ray:
    """The client."""

    def __init__(self) -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        self._actor = ray.remote(Actor).remote()
        self.call(SMALL)

    def call(self, value: Any) -> Any:
        return ray.get(self._actor.echo.remote(value))

    def flight(self, width: int, seconds: float) -> int:
        end = time.perf_counter() + seconds
        opened = [self._actor.echo.remote(SMALL) for _ in range(width)]
        done = 0
        while opened:
            ready, opened = ray.wait(opened, num_returns=1)
            ray.get(ready)
            done += len(ready)
            if time.perf_counter() < end:
                opened.append(self._actor.echo.remote(SMALL))
        return done

    def stream(self, batch: int, seconds: float) -> int:
        produced = self._actor.stream.options(num_returns="streaming").remote(batch, seconds)
        return sum(len(ray.get(found)) for found in produced)


if __name__ == "__main__":
    serve(lambda: echo_verbs(Ray()))
