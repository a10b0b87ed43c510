"""RPyC over a unix socket; values as msgpack, because it would pass anything else by reference."""

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import rpyc
from bench.peers.harness import SMALL, echo_verbs, items, serve
from rpyc.utils.factory import unix_connect
from rpyc.utils.server import ThreadedServer

CONFIG = {"sync_request_timeout": 120}


class EchoService(rpyc.Service):  # type: ignore[misc]
    """The other end."""

    def exposed_echo(self, packed: bytes) -> bytes:
        """Say it back."""
        return bytes(msgpack.packb(msgpack.unpackb(packed)))

    def exposed_stream(self, batch: int, seconds: float) -> Iterator[bytes]:
        """Stream for some time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield msgpack.packb(items(batch))


class Rpyc:
    """The client."""

    def __init__(self) -> None:
        path = f"{tempfile.mkdtemp(prefix='rpyc-')}/socket"
        subprocess.Popen([sys.executable, __file__, path])
        while not Path(path).exists():
            time.sleep(0.05)
        self._root = unix_connect(path, config=CONFIG).root
        self._echo = self._root.echo
        self._later = rpyc.async_(self._echo)

    def call(self, value: Any) -> Any:
        return msgpack.unpackb(self._echo(msgpack.packb(value)))

    def flight(self, width: int, seconds: float) -> int:
        results = deque(self._later(msgpack.packb(SMALL)) for _ in range(width))
        done, end = 0, time.perf_counter() + seconds
        while results:
            msgpack.unpackb(results.popleft().value)
            done += 1
            if time.perf_counter() < end:
                results.append(self._later(msgpack.packb(SMALL)))
        return done

    def stream(self, batch: int, seconds: float) -> int:
        return sum(len(msgpack.unpackb(found)) for found in self._root.stream(batch, seconds))


if __name__ == "__main__":
    if sys.argv[1:]:
        ThreadedServer(EchoService, socket_path=sys.argv[1], protocol_config=CONFIG).start()
    serve(lambda: echo_verbs(Rpyc()))
