"""What supervisor and spawner say to each other over their socket pair: one JSON text a packet.

JSON, because the spawner holds nothing that a larger codec would be needed for.
"""

import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import Final, Literal

Scope = Literal["leader", "group", "all"]
"""Whom a signal reaches: the worker itself, its process group, or all that carries its mark."""

MAX_PACKET: Final = 1 << 20
"""Bytes in one packet; an environment is most of it."""


SOMETHING_LEFT: Final = 3
"""Exit status of a spawner that could not kill everything."""


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """Start a worker. One descriptor travels along: the write end of its stderr.

    `mark` is what it carries (`marks.py`), `scratch` a folder that is made and removed with it.
    """

    worker: str
    mark: int
    scratch: str
    argv: list[str]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class KillRequest:
    """Send a worker, or more than that, a signal."""

    worker: str
    signum: int
    scope: Scope = "group"


@dataclass(frozen=True, slots=True)
class Spawned:
    """The worker runs, as leader of its own session."""

    worker: str
    pid: int
    create_time: float


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker has ended, and its group was sent SIGKILL. `cause` reads after its name."""

    worker: str
    pid: int
    cause: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing is left of the worker's group, nor of what carries its mark.

    But for what cannot be killed: that is waited for no longer, and named in `unkillable`. The
    spawner goes on trying.
    """

    worker: str
    pid: int
    descendants: int
    unkillable: list[str]


Event = Spawned | Exited | Cleared
Packet = SpawnRequest | KillRequest | Event

_CLASSES: Final = {
    cls.__name__: cls for cls in (SpawnRequest, KillRequest, Spawned, Exited, Cleared)
}


def send(control: socket.socket, packet: Packet, fds: tuple[int, ...] = ()) -> None:
    """Send one packet, with copies of `fds`."""
    data = json.dumps([type(packet).__name__, asdict(packet)]).encode()
    socket.send_fds(control, [data], fds)


def receive(control: socket.socket) -> tuple[Packet | None, list[int]]:
    """Receive one packet and its descriptors; None at end of file."""
    data, fds, _, _ = socket.recv_fds(control, MAX_PACKET, 4)
    if not data:
        return None, []
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003  # a worker forked later must not hold this one's pipe
    name, fields = json.loads(data)
    return _CLASSES[name](**fields), fds
