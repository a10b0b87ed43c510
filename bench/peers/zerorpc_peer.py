"""zerorpc over ipc: one server process, its own gevent client."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import gevent
import zerorpc
from bench.peers.harness import SMALL, echo_verbs, items, serve


class EchoServer:
    """The other end."""

    def echo(self, value: Any) -> Any:
        """Say it back."""
        return value

    @zerorpc.stream  # type: ignore[untyped-decorator]
    def stream(self, batch: int, seconds: float) -> Iterator[Any]:
        """Stream for some time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield items(batch)
            gevent.sleep(0)


class ZeroRpc:
    """The client."""

    def __init__(self) -> None:
        endpoint = f"ipc://{tempfile.mkdtemp(prefix='zerorpc-')}/socket"
        subprocess.Popen([sys.executable, __file__, endpoint])
        self._client = zerorpc.Client(endpoint, timeout=60)
        self.call(SMALL)

    def call(self, value: Any) -> Any:
        return self._client.echo(value)

    def flight(self, width: int, seconds: float) -> int:
        end = time.perf_counter() + seconds

        def caller() -> int:
            done = 0
            while time.perf_counter() < end:
                self._client.echo(SMALL)
                done += 1
            return done

        callers = [gevent.spawn(caller) for _ in range(width)]
        return sum(found.get() for found in callers)

    def stream(self, batch: int, seconds: float) -> int:
        return sum(len(found) for found in self._client.stream(batch, seconds))


if __name__ == "__main__":
    if sys.argv[1:]:
        server = zerorpc.Server(EchoServer())
        server.bind(sys.argv[1])
        server.run()
    serve(lambda: echo_verbs(ZeroRpc()))
