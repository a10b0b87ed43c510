"""Mosec: its Rust HTTP front and one worker, msgpack as it recommends, one kept connection."""

import subprocess
import sys
from typing import Any

import msgpack
from bench.peers.harness import SMALL, NotOffered, echo_verbs, serve
from bench.peers.http_flight import flight, free_port, wait_for
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

KIND = "application/msgpack"


class EchoWorker(MsgpackMixin, Worker):  # type: ignore[misc]
    """The other end."""

    def forward(self, data: Any) -> Any:
        """Say it back."""
        return data


class Mosec:
    """The client."""

    def __init__(self) -> None:
        self._port = free_port()
        command = [sys.executable, __file__, "--port", str(self._port), "--address", "127.0.0.1"]
        command += ["--timeout", "60000", "--max-request-size", str(128 << 20)]
        subprocess.Popen([*command, "--log-level", "warning"])
        self._connection = wait_for(self._port, "/")

    def call(self, value: Any) -> Any:
        headers = {"Content-Type": KIND}
        self._connection.request("POST", "/inference", msgpack.packb(value), headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {body[:200]!r}")
        return msgpack.unpackb(body)

    def flight(self, width: int, seconds: float) -> int:
        return flight(self._port, "/inference", KIND, msgpack.packb(SMALL), width, seconds)

    def stream(self, batch: int, seconds: float) -> int:
        raise NotOffered("it streams text events (SSE) only; not driven here")


if __name__ == "__main__":
    if sys.argv[1:]:
        server = Server()
        server.append_worker(EchoWorker, num=1)
        server.run()
    else:
        serve(lambda: echo_verbs(Mosec()))
