"""Checks of where a pool lives: its folder, and its endpoint."""

import fcntl
import os
import socket
from pathlib import Path

from vllmport.bridge.errors import InvalidRequest, VllmportError
from vllmport.pool.client.pool import Pool
from vllmport.pool.doctor.finding import Finding, fail, ok, warn
from vllmport.pool.endpoint import (
    default_endpoint,
    is_tcp,
    place_of,
    runtime_dir,
    tcp_address,
)


def check_folder() -> Finding:
    """Sockets are protected by the folder they are in."""
    try:
        folder = runtime_dir()
    except InvalidRequest as exc:
        remedy = "make it a folder of your own with mode 0700, or set XDG_RUNTIME_DIR to another"
        return fail("runtime folder", exc.message, remedy)
    return ok("runtime folder", f"{folder} is private")


def check_endpoint(endpoint: str | None) -> Finding:
    """A pool answers there, or one can be started; None is the user's usual endpoint."""
    try:
        endpoint = endpoint or default_endpoint()
        path = place_of(endpoint, runtime_dir())
    except InvalidRequest as exc:
        return fail("endpoint", exc.message, "give another with --endpoint or VLLMPORT_ENDPOINT")
    if is_tcp(endpoint):
        return _ask(endpoint) if _listens_on(tcp_address(endpoint)) else _free(endpoint)
    return _check_socket(endpoint, path)


def _check_socket(endpoint: str, path: Path) -> Finding:
    held, listening = _is_held(Path(f"{path}.lock")), _listens(path)
    if held and listening:
        return _ask(endpoint)
    if held:
        return warn(
            "endpoint",
            f"a pool holds {path}.lock and does not listen: it is starting, or cleaning up",
            "look again; if it stays so, `fuser -v` on that file names who holds it",
        )
    if listening:
        return fail(
            "endpoint",
            f"something that is no pool listens at {path}",
            "stop it, or choose another endpoint",
        )
    if path.exists():
        return warn(
            "endpoint",
            f"{path} was left by a pool that is gone",
            "nothing: the next `vllmport serve` there removes it, and so does `vllmport reap`",
        )
    return _free(endpoint)


def _free(endpoint: str) -> Finding:
    return ok("endpoint", f"{endpoint} is free")


def _ask(endpoint: str) -> Finding:
    try:
        with Pool.connect(endpoint) as pool:
            supervisor = pool.status()["supervisor"]
    except VllmportError as exc:
        return fail(
            "endpoint",
            f"a pool holds {endpoint} and does not answer: {exc.message}",
            "see its log, and end it with `vllmport stop --now` or SIGKILL: it takes its workers",
        )
    return ok("endpoint", f"a pool answers at {endpoint}, supervisor {supervisor['pid']}")


def _is_held(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _listens_on(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1.0).close()
    except OSError:
        return False
    return True


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1.0)
        try:
            one.connect(str(path))
        except TimeoutError:
            return True  # its queue is full
        except OSError:
            return False
    return True
