"""The door of a pool that listens on TCP: encryption, and who is let in at all.

Owns the socket that ZeroMQ asks about each new connection (ZAP, RFC 27); the supervisor's loop
reads it like the others. Looks at the file of keys again whenever that has changed: a key can be
added or taken away while the pool runs. Connections that are open follow once the file has stayed
the same for a second: it may be found half written.
"""

import logging
import tomllib
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from vllmport.bridge.errors import InvalidRequest, PermissionDenied
from vllmport.pool.plan import Security
from vllmport.pool.supervisor.access import Guest, guests_from
from vllmport.pool.supervisor.sockets import has_message

logger = logging.getLogger("vllmport.supervisor")

_ZAP: Final = "inproc://zeromq.zap.01"
_HANDSHAKE_MS: Final = 5000
"""Milliseconds in which a connection has to say who it is."""

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the file of keys; there is one for each new connection as well."""


class Door:
    """Lets in those whose keys are in the file.

    Args:
        context: The one of the socket to be guarded, which must not be bound yet.
        security: The pool's own key pair and the file of keys.

    Raises:
        InvalidRequest: The file of keys cannot be used.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", security: Security) -> None:
        self._security = security
        self._path = Path(security.clients)
        self._stamp = self._seen = self._stamp_now()
        self._guests = read_guests(self._path)
        self._changed = False
        self.next_look = 0.0
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP)

    def guard(self, socket: "zmq.Socket[bytes]") -> None:
        """Have a socket let nobody in but through this door, before it binds."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._security.secret_key.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, b"vllmport")
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.IPV6, 1)

    def guest(self, key: str) -> Guest:
        """Return who comes with this key.

        Raises:
            PermissionDenied: It was taken out of the file meanwhile.
        """
        try:
            return self._guests[key]
        except KeyError:
            raise PermissionDenied("this key was taken out of those that may come in") from None

    def look_again(self, now: float) -> bool:
        """Look at the file, from time to time; return whether it changed and then stayed so."""
        if now < self.next_look:
            return False
        self.next_look = now + LOOK_EVERY
        self._read_again()
        before, self._seen = self._seen, self._stamp
        if before != self._stamp:
            return False
        changed, self._changed = self._changed, False
        return changed

    def has_more(self) -> bool:
        """Tell whether a request is there; answering may have swallowed the news of it."""
        return has_message(self.socket)

    def on_requests(self) -> None:
        """Answer what ZeroMQ asks."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        split = frames.index(b"") + 1
        version, request, _, address, _, mechanism, *credentials = frames[split:]
        guest = None
        if mechanism == b"CURVE" and len(credentials) == 1:
            self._read_again()
            guest = self._guests.get(z85.encode(credentials[0]).decode())
        if guest is None:
            logger.warning("refused address=%s: its key is not known", address.decode())
        code, text = (b"200", b"OK") if guest is not None else (b"400", b"unknown key")
        user = guest.key.encode() if guest is not None else b""
        self.socket.send_multipart([*frames[:split], version, request, code, text, user, b""])

    def _read_again(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._guests = read_guests(self._path)
        except InvalidRequest as exc:
            logger.error("the keys stay as they were: %s", exc)  # it says it all
            return
        self._changed = True
        logger.info("read %d keys of %s", len(self._guests), self._path)

    def _stamp_now(self) -> tuple[int, int, int]:
        try:
            info = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (info.st_mtime_ns, info.st_ino, info.st_size)


def read_guests(path: Path) -> dict[str, Guest]:
    """Read a file of keys: public key → guest.

    Raises:
        InvalidRequest: It cannot be read, others may write to it, or something in it is wrong.
    """
    try:
        if path.stat().st_mode & 0o022:
            text = f"others may write to {path}, and so let themselves in; run `chmod 600 {path}`"
            raise InvalidRequest.of("security.clients", str(path), text)
        return guests_from(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        text = f"cannot read the keys {path}: {exc.strerror}"
        raise InvalidRequest.of("security.clients", str(path), text) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        text = f"{path} is not TOML: {exc}"
        raise InvalidRequest.of("security.clients", str(path), text) from exc
