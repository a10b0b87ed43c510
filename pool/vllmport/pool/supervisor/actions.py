"""What the fleet wants to have done, as plain data. Pure."""

from typing import NamedTuple

from vllmport.bridge.errors import VllmportError
from vllmport.pool.spawner.protocol import Scope


class Spawn(NamedTuple):
    """Start a process for this worker; it will register with `nonce`."""

    worker: str
    nonce: str


class Adopt(NamedTuple):
    """Let the standby process be this worker's process."""

    standby: str
    worker: str


class Drain(NamedTuple):
    """Give this worker no new calls."""

    worker: str


class SayBye(NamedTuple):
    """Send this worker BYE."""

    worker: str


class Kill(NamedTuple):
    """Send SIGKILL, or SIGTERM where `gently`."""

    worker: str
    scope: Scope = "all"
    gently: bool = False


class Serve(NamedTuple):
    """Give this worker calls from now on."""

    worker: str
    model: str
    capacity: int


class Refuse(NamedTuple):
    """Fail what waits for this model and all that comes, until a worker of it serves."""

    model: str
    error: VllmportError


class Settled(NamedTuple):
    """All workers of this model are READY (`error` is None), or it failed."""

    model: str
    error: VllmportError | None


class Removed(NamedTuple):
    """The last worker of a model that is no longer wanted is gone."""

    model: str


Action = Spawn | Adopt | Drain | SayBye | Kill | Serve | Refuse | Settled | Removed
