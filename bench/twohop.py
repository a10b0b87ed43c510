"""The least that two hops can cost: pyzmq, msgpack and `zmq.proxy`, nothing else. A contender.

Client (this process) → proxy process → worker process, over ipc, as the pool has it.
"""

import sys
from pathlib import Path
from typing import Self

import msgpack
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.children import Child
from bench.measure import rate, timed_calls
from bench.workload import ECHO_VALUE, IN_FLIGHT, IN_FLIGHT_CALLS


class TwoHop:
    """The client; starts the other two.

    Args:
        folder: For sockets and logs.
    """

    def __init__(self, folder: Path) -> None:
        front, back = f"ipc://{folder}/front.sock", f"ipc://{folder}/back.sock"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self.children: list[Child] = []
        for role in ("proxy", "worker"):
            self.children.append(Child([__file__, role, front, back], folder / f"{role}.log"))
        self._socket.connect(front)

    def __enter__(self) -> Self:
        self._echo()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)
        for child in self.children:
            child.stop()

    def echo(self, count: int) -> list[float]:
        """Return how long each of `count` calls took, in ms."""
        return timed_calls(self._echo, count)

    def echo_in_flight(self) -> float:
        """Return the calls a second with `IN_FLIGHT` open at any time."""
        return rate(self._many)

    def _echo(self) -> None:
        self._socket.send(msgpack.packb(ECHO_VALUE))
        msgpack.unpackb(self._socket.recv())

    def _many(self) -> int:
        total = IN_FLIGHT * IN_FLIGHT_CALLS
        for _ in range(IN_FLIGHT):
            self._socket.send(msgpack.packb(ECHO_VALUE))
        for number in range(total):
            msgpack.unpackb(self._socket.recv())
            if number < total - IN_FLIGHT:
                self._socket.send(msgpack.packb(ECHO_VALUE))
        return total


def main(role: str, front: str, back: str) -> None:
    """Be the proxy or the worker."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    if role == "proxy":
        clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        clients.bind(front)
        workers.bind(back)
        zmq.proxy(clients, workers)
    socket = context.socket(zmq.DEALER)
    socket.connect(back)
    while True:
        client, payload = socket.recv_multipart()
        socket.send_multipart([client, msgpack.packb(msgpack.unpackb(payload))])


if __name__ == "__main__":
    main(*sys.argv[1:])
