"""The least that two hops can cost: pyzmq, msgpack and `zmq.proxy`, nothing else.

Client (this process) → proxy process → worker process, over ipc, as the pool has it.
"""

import subprocess
import sys
import tempfile
import time
from typing import Any

import msgpack
import zmq
from bench.peers.harness import SMALL, echo_verbs, items, serve


class TwoHops:
    """The client; starts the other two."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="two-hops-")
        ends = [f"ipc://{folder}/front", f"ipc://{folder}/back"]
        for role in ("proxy", "worker"):
            subprocess.Popen([sys.executable, __file__, role, *ends])
        self._socket = zmq.Context().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.connect(ends[0])
        self.call(SMALL)

    def call(self, value: Any) -> Any:
        self._socket.send(msgpack.packb(value), copy=False)
        return msgpack.unpackb(self._socket.recv(copy=False).buffer)

    def flight(self, width: int, seconds: float) -> int:
        for _ in range(width):
            self._socket.send(msgpack.packb(SMALL))
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            msgpack.unpackb(self._socket.recv())
            self._socket.send(msgpack.packb(SMALL))
            done += 1
        for _ in range(width):
            self._socket.recv()
        return done + width

    def stream(self, batch: int, seconds: float) -> int:
        self._socket.send(msgpack.packb([batch, seconds]))
        items = 0
        while (found := msgpack.unpackb(self._socket.recv())) is not None:
            items += len(found)
        return items


def proxy(front: str, back: str) -> None:
    """Be the hop between."""
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket, end in ((clients, front), (workers, back)):
        socket.set_hwm(0)
        socket.bind(end)
    zmq.proxy(clients, workers)


def worker(_front: str, back: str) -> None:
    """Say back what comes; stream on request."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.connect(back)
    while True:
        client, payload = socket.recv_multipart()
        value = msgpack.unpackb(payload)
        if isinstance(value, list):
            end = time.perf_counter() + value[1]
            while time.perf_counter() < end:
                socket.send_multipart([client, msgpack.packb(items(value[0]))])
            value = None
        socket.send_multipart([client, msgpack.packb(value)])


if __name__ == "__main__":
    if sys.argv[1:]:
        {"proxy": proxy, "worker": worker}[sys.argv[1]](*sys.argv[2:])
    serve(lambda: echo_verbs(TwoHops()))
