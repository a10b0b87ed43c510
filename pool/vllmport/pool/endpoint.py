"""Where a pool listens: private folders, TCP addresses, and the lock that makes one's own.

Knows paths and locks; knows nothing of what listens there.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllmport.bridge.errors import InvalidRequest

MAX_SOCKET_PATH: Final = 107
"""Bytes the kernel has room for in the path of a socket."""

MAX_PORT: Final = 65535

ENVIRONMENT: Final = "VLLMPORT_ENDPOINT"


def runtime_dir() -> Path:
    """Return this user's folder for sockets, made if needed, open to nobody else."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "vllmport" if base else Path("/tmp") / f"vllmport-{os.getuid()}"  # noqa: S108
    return private_dir(path)


def private_dir(path: Path) -> Path:
    """Make a folder of mode 0700, or check that it is one and ours.

    Raises:
        InvalidRequest: It cannot be made, belongs to somebody else, or others may enter it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        text = f"cannot make the folder {path}: {exc.strerror}; choose another"
        raise InvalidRequest.of("endpoint", str(path), text) from exc
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise InvalidRequest.of(
            "endpoint", str(path), f"{path} is not a folder of this user; choose another"
        )
    if info.st_mode & 0o077:
        raise InvalidRequest.of(
            "endpoint",
            str(path),
            f"others may enter {path}; run `chmod 700 {path}` or choose another folder",
        )
    return path


def default_endpoint() -> str:
    """Return the endpoint of the environment, else the one in the user's runtime folder."""
    return os.environ.get(ENVIRONMENT) or f"ipc://{runtime_dir() / 'pool.sock'}"


def socket_path(endpoint: str) -> Path:
    """Return the path behind an endpoint.

    Raises:
        InvalidRequest: It is not an `ipc://` endpoint with an absolute path that fits.
    """
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or not path.startswith("/"):
        text = f"an endpoint looks like ipc:///run/user/1000/vllmport/pool.sock, not {endpoint!r}"
        raise InvalidRequest.of("endpoint", endpoint, text)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        size = len(os.fsencode(path))
        text = f"the socket path has {size} bytes, the kernel takes {MAX_SOCKET_PATH}: {path}"
        raise InvalidRequest.of("endpoint", endpoint, text)
    return Path(path)


def is_tcp(endpoint: str) -> bool:
    """Tell whether this is an endpoint that other machines can reach, and keys guard."""
    return endpoint.startswith("tcp://")


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Return host and port of an endpoint; an IPv6 address without its brackets.

    Raises:
        InvalidRequest: It is not `tcp://HOST:PORT`.
    """
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not (is_tcp(endpoint) and colon and host and port.isascii() and port.isdigit()):
        text = f"an endpoint looks like tcp://10.0.0.7:5555, not {endpoint!r}"
        raise InvalidRequest.of("endpoint", endpoint, text)
    if not 0 < int(port) <= MAX_PORT:
        text = f"a port is a number from 1 to {MAX_PORT}, not {port}"
        raise InvalidRequest.of("endpoint", endpoint, text)
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_endpoint(endpoint: str) -> None:
    """Refuse what is no endpoint.

    Raises:
        InvalidRequest: It is neither `ipc://PATH` nor `tcp://HOST:PORT`.
    """
    if is_tcp(endpoint):
        tcp_address(endpoint)
    else:
        socket_path(endpoint)


def place_of(endpoint: str, folder: Path) -> Path:
    """Return the socket of an endpoint; for TCP the path in `folder` whose lock stands for it."""
    if not is_tcp(endpoint):
        return socket_path(endpoint)
    host, port = tcp_address(endpoint)
    return folder / f"tcp-{''.join(c if c.isalnum() or c == '.' else '_' for c in host)}-{port}"


class EndpointTaken(Exception):
    """Raised when another supervisor holds the endpoint."""


def lock_endpoint(path: Path, patience: float, endpoint: str = "") -> int:
    """Take the lock beside a socket and remove a socket that nobody listens on any more.

    Binding to a live ipc path would silently steal it, so whoever binds must hold this lock.

    Args:
        path: The socket.
        patience: Seconds to wait for a supervisor that is just cleaning up.
        endpoint: What to call it, else the path.

    Returns:
        The descriptor that holds the lock; it lasts while any copy of it is open.

    Raises:
        EndpointTaken: Another supervisor holds it.
    """
    lock = Path(f"{path}.lock")
    end = time.monotonic() + patience
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _try_lock(fd):
            if _is_still(fd, lock):
                path.unlink(missing_ok=True)
                return fd
        elif time.monotonic() > end:
            os.close(fd)
            raise EndpointTaken(f"a pool is running at {endpoint or path} already")
        os.close(fd)
        time.sleep(0.02)


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[list[Path]]:
    """Give a socket and the lock beside it, if nobody holds that, and keep others off meanwhile."""
    lock = Path(f"{path}.lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it is made before the socket, and removed after it
        yield []
        return
    try:
        is_free = _try_lock(fd) and _is_still(fd, lock)
        yield [file for file in (path, lock) if is_free and file.exists()]
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_still(fd: int, lock: Path) -> bool:
    """Tell whether the file we locked is the one under that name: the last owner removes it."""
    try:
        return os.path.samestat(os.fstat(fd), lock.stat())
    except FileNotFoundError:
        return False
