"""A pool that listens on TCP, its keys, and connections to it that are not our client's."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from processes import PATIENCE, eventually, program
from vllmport.bridge.codec import unpack
from vllmport.bridge.limits import PROTOCOL_VERSION
from vllmport.bridge.messages import Call, Error, Hello, Message, Welcome, decode, encode
from vllmport.pool import LLM, ConnectFailed, Pool
from vllmport.pool.keys import ClientKeys, make_pair

SECRET = "hunter2-and-nobody-else"
TOKEN = "hf_neverToBeSeenAnywhere"

ROLES = {"boss": "admin", "guest": "call", "small": "call", "ffi": "ffi"}
SMALL = "max_connections = 5\nmax_calls = 3\nmax_queued = 2\nmax_bytes = 5000\n"

ECHO = (
    '[universal]\nmodules = ["decimal"]\n'
    '[models.echo]\nmodel = "echo"\nstep_delay = 0.001\nmax_num_seqs = 4\n'
    f'env = {{ SECRET = "{SECRET}", HF_TOKEN = "{TOKEN}" }}\n'
)

Dealer = zmq.Socket[bytes]


class Served:
    """A service with keys of a boss, a guest, one with small quotas, one with the role ffi.

    Args:
        folder: For its keys, its configuration and its log.
        more: What else its pool.toml says.
    """

    def __init__(self, folder: Path, more: str = ECHO) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.folder = folder
        self.server = make_pair(folder / "server.key")
        self.pairs = {name: make_pair(folder / f"{name}.key") for name in [*ROLES, "stranger"]}
        self.clients = folder / "clients.toml"
        self.write_clients(**ROLES)
        self.config = folder / "pool.toml"
        self.config.write_text(
            f'endpoint = "{self.endpoint}"\n'
            f'[security]\nserver_key = "server.key"\nclients = "clients.toml"\n{more}'
        )

    def write_clients(self, **roles: str) -> None:
        """Say who may come in: name → role."""
        text = "".join(
            f'[{name}]\nkey = "{self.pairs[name].public}"\nrole = "{role}"\n'
            + (SMALL if name == "small" else "")
            for name, role in roles.items()
        )
        self.clients.write_text(text)

    def connect(self, name: str) -> Pool:
        """Join it with one of the keys."""
        return Pool.connect(
            self.endpoint, server_key=self.server.public, key=self.folder / f"{name}.key"
        )

    def keys(self, name: str) -> ClientKeys:
        """Return what one of the clients comes with."""
        return ClientKeys(self.pairs[name], self.server.public)

    def environment(self, name: str) -> dict[str, str]:
        """Return what a client with one of the keys is started with."""
        return {
            "VLLMPORT_ENDPOINT": self.endpoint,
            "VLLMPORT_SERVER_KEY": self.server.public,
            "VLLMPORT_KEY": str(self.folder / f"{name}.key"),
        }

    @contextlib.contextmanager
    def running(self) -> Iterator["Served"]:
        """Serve until the block ends."""
        command = (sys.executable, "-m", "vllmport.pool.cli", "serve", str(self.config))
        with (self.folder / "log").open("a") as log, program(*command, stderr=log) as process:
            eventually(lambda: process.poll() is not None or self._answers(), 5 * PATIENCE)
            assert process.poll() is None, self.log()
            yield self

    def log(self) -> str:
        """Return what it wrote so far."""
        return (self.folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            with self.connect("boss") as pool:
                return all(worker["state"] == "READY" for worker in pool.status()["workers"])
        except ConnectFailed:
            return False


class Wire:
    """A connection that speaks message by message.

    Args:
        context: Whose socket it is.
        served: Where to connect.
        name: With which key.
    """

    def __init__(self, context: "zmq.Context[Dealer]", served: Served, name: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.setsockopt(zmq.RCVHWM, 1)  # who does not read takes no more than it must
        self.socket.setsockopt(zmq.RCVBUF, 4096)
        self.socket.setsockopt(zmq.SNDTIMEO, int(PATIENCE * 1000))
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        served.keys(name).put_on(self.socket)
        self.socket.connect(served.endpoint)

    def greet(self) -> Message:
        """Say HELLO; return what comes back."""
        self.say(Hello([PROTOCOL_VERSION], "test", os.getpid()))
        return self.hear()[0]

    def admitted(self) -> "Wire":
        """Say HELLO, and be let in."""
        assert isinstance(self.greet(), Welcome)
        return self

    def say(self, message: Message, payload: bytes = b"\xc0") -> None:
        """Send a message as it is."""
        self.socket.send_multipart([encode(message)[0], payload])

    def hear(self) -> tuple[Message, Any]:
        """Return the next message and its payload."""
        assert self.socket.poll(int(PATIENCE * 1000)), "no answer"
        message, payload, buffers = decode(self.socket.recv_multipart())
        return message, unpack(payload, buffers)

    def code_of(self, call: Call, payload: bytes) -> str:
        """Return how a call fails."""
        self.say(call, payload)
        message, _ = self.hear()
        return message.code if isinstance(message, Error) else "none"

    def was_ended(self, timeout: float = PATIENCE) -> bool:
        """Wait for the other side to end the connection."""
        return bool(self.monitor.poll(int(timeout * 1000)))


Connect = Callable[[str], Wire]
"""Connects with the key of this name."""


def serves_others(llm: LLM) -> bool:
    """Tell whether another client gets its answer."""
    return llm.generate("a", timeout=PATIENCE)[0].outputs[0].text == "a"
