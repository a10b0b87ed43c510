"""The beginning of a connection: is anybody there, and what does it say to HELLO."""

import os
import socket
from importlib.metadata import version
from typing import Any, Final

import zmq

from vllmport.bridge.codec import unpack
from vllmport.bridge.errors import (
    ConnectFailed,
    PermissionDenied,
    ProtocolError,
    VllmportError,
)
from vllmport.bridge.limits import PROTOCOL_VERSION
from vllmport.bridge.messages import Error, Hello, Welcome, decode, encode, error_from
from vllmport.bridge.timeouts import Timeouts, milliseconds
from vllmport.pool.endpoint import is_tcp, tcp_address

PROBE_TIMEOUT: Final = 1.0
"""Seconds that somebody may take to accept a connection."""


def greet(
    dealer: "zmq.Socket[bytes]", monitor: "zmq.Socket[bytes]", endpoint: str, timeout: float
) -> tuple[Welcome, Timeouts]:
    """Say HELLO and wait for the answer.

    Args:
        dealer: Connected to the pool.
        monitor: Of that socket; tells when it was refused.
        endpoint: What to call it in errors.
        timeout: Seconds to wait.

    Raises:
        ConnectFailed: Nobody answers there.
        PermissionDenied: It refuses this user or this key.
        ProtocolError: Somebody answers, but not in this protocol.
    """
    hello = Hello([PROTOCOL_VERSION], version("vllmport"), os.getpid(), "python")
    try:
        dealer.send_multipart(encode(hello), zmq.NOBLOCK)
    except zmq.Again:  # the connection was refused already, and there is no other
        raise refused(endpoint) from None
    poller = zmq.Poller()
    for source in (dealer, monitor):
        poller.register(source, zmq.POLLIN)
    ready = dict(poller.poll(milliseconds(timeout)))
    if monitor in ready and not dealer.poll(0):
        raise refused(endpoint)
    if not ready:
        text = f"nobody answered at {endpoint} within {timeout:g} s"
        raise ConnectFailed(text, phase="connect", details={"endpoint": endpoint})
    message, payload, _ = decode(dealer.recv_multipart())
    if isinstance(message, Error):
        raise error_from(message, unpack(payload))
    if not isinstance(message, Welcome):
        raise ProtocolError(f"WELCOME comes first, not {type(message).__name__}")
    return message, _timeouts_of(unpack(payload))


def probe(endpoint: str) -> None:
    """Say at once, with the reason, if nobody can be behind an endpoint."""
    try:
        if is_tcp(endpoint):
            socket.create_connection(tcp_address(endpoint), PROBE_TIMEOUT).close()
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_TIMEOUT)
            probe.connect(endpoint.removeprefix("ipc://"))
    except OSError as exc:
        raise ConnectFailed(
            f"no pool at {endpoint} ({exc.strerror or exc}); start one with `vllmport serve`, "
            "or name another with VLLMPORT_ENDPOINT",
            phase="connect",
            details={"endpoint": endpoint},
        ) from exc


def refused(endpoint: str) -> VllmportError:
    """Return the error of a connection that ended before anything was said on it."""
    where = {"endpoint": endpoint}
    if is_tcp(endpoint):
        text = (
            f"{endpoint} refused the connection: the pool does not know this key, or server_key is "
            "not its public key"
        )
        return PermissionDenied(text, phase="connect", details=where)
    text = f"{endpoint} ended the connection before it began"
    return ConnectFailed(text, phase="connect", details=where)


def _timeouts_of(terms: Any) -> Timeouts:
    """Read what WELCOME says of time-outs; an older pool says nothing."""
    told = terms.get("timeouts") if isinstance(terms, dict) else None
    return Timeouts(**told) if told else Timeouts()
