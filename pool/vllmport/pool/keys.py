"""Key pairs for pools that listen on TCP: their files, and which of them a client comes with.

A pair is a file of TOML with `public_key` and `secret_key`, 32 bytes each in Z85, that nobody but
its owner may read. The secret never leaves the file but into the process that uses it.
"""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.endpoint import is_tcp

KEY: Final = "VLLMPORT_KEY"
"""Environment variable: path of the client's own key pair."""

SERVER_KEY: Final = "VLLMPORT_SERVER_KEY"
"""Environment variable: the pool's public key."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A public key and its secret one, in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs for a pool that listens on TCP: its own pair, and the pool's key."""

    own: Pair
    server: str

    def put_on(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket use them, before it connects."""
        socket.curve_publickey = self.own.public.encode()
        socket.curve_secretkey = self.own.secret.encode()
        socket.curve_serverkey = self.server.encode()


def make_pair(path: Path) -> Pair:
    """Write a new pair to a file that was not there.

    Raises:
        InvalidRequest: It is there already, or cannot be written.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        text = f"cannot write a new key to {path}: {exc.strerror}; name another file"
        raise InvalidRequest.of("key", str(path), text) from exc
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f'public_key = "{public}"\nsecret_key = "{secret}"\n')
    return Pair(public, secret)


def read_pair(path: Path, parameter: str = "key") -> Pair:
    """Read a pair.

    Raises:
        InvalidRequest: It cannot be read, is no pair, or others may read it.
    """
    try:
        is_private = not path.stat().st_mode & 0o077
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        text = f"cannot read the key {path}: {exc.strerror}; `vllmport keygen FILE` makes one"
        raise InvalidRequest.of(parameter, str(path), text) from exc
    if not is_private:
        text = f"others may read the key {path}; run `chmod 600 {path}`, or make a new one"
        raise InvalidRequest.of(parameter, str(path), text)
    try:
        data = tomllib.loads(text)
        pair = Pair(data["public_key"], data["secret_key"])
        if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
            raise ValueError("the two do not belong together")
    except (KeyError, ValueError, AttributeError, zmq.ZMQError):
        text = f"{path} is no key pair; `vllmport keygen FILE` makes one"
        raise InvalidRequest.of(parameter, str(path), text) from None  # it may quote the file
    return pair


def keys_for(
    endpoint: str, server_key: str | None = None, key: str | Path | None = None
) -> ClientKeys | None:
    """Return what a client of this endpoint has to come with; None for a local one.

    Args:
        endpoint: Where the pool is.
        server_key: Its public key; None for `VLLMPORT_SERVER_KEY`.
        key: The file of the client's own pair; None for `VLLMPORT_KEY`.

    Raises:
        InvalidRequest: One is missing or wrong.
    """
    if not is_tcp(endpoint):
        return None
    path, server = key or os.environ.get(KEY), server_key or os.environ.get(SERVER_KEY)
    if not path or not server:
        text = (
            f"{endpoint} takes keys: the pool's public key as server_key or {SERVER_KEY}, and the "
            f"file of your own pair as key or {KEY}; `vllmport keygen FILE` makes one"
        )
        raise InvalidRequest.of("key" if server else "server_key", None, text)
    try:
        if len(z85.decode(server)) != 32:  # bytes of a key
            raise ValueError(server)
    except (ValueError, KeyError, AttributeError, zmq.ZMQError):
        text = "server_key is the 40 characters that `vllmport keygen` printed for the pool"
        raise InvalidRequest.of("server_key", None, text) from None
    return ClientKeys(read_pair(Path(path)), server)
