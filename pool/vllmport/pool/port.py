"""`vllmport port`: a client connection for a program that speaks over our stdin and stdout.

A translator between packets and the pool's socket. It passes frames on as they came and knows
nothing of what they say; HELLO and all that follows is between the host and the supervisor. End of
file on stdin, or the end of the process that started this one, means that the host is gone.
"""

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zmq

from vllmport.bridge.codec import pack
from vllmport.bridge.errors import PoolLost, VllmportError
from vllmport.bridge.limits import MAX_FRAME
from vllmport.bridge.messages import encode, error_message
from vllmport.bridge.packets import PacketReader, to_packet
from vllmport.pool.client.connection import ENDINGS
from vllmport.pool.client.greeting import probe, refused
from vllmport.pool.client.launch import OwnedSupervisor
from vllmport.pool.endpoint import check_endpoint
from vllmport.pool.keys import keys_for

CHUNK: Final = 64 * 1024
"""Bytes read at one time."""

HIGH_WATER: Final = 16
"""Messages that ZeroMQ may hold on either side before the other one has to wait."""

PATIENCE: Final = 1.0
"""Seconds that a supervisor has to end before it is killed; its spawner cleans up all the same."""

_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


def run_port(config: Path | None, endpoint: str | None) -> None:
    """Serve the program at the other end of stdin and stdout until it goes.

    Args:
        config: A `pool.toml` for a pool that ends with this process, or None.
        endpoint: Join this pool instead of starting one.

    Raises:
        ConnectFailed: Nobody answers at the endpoint.
        StartupFailed: The pool did not start.
        PoolLost: The supervisor went away.
        ProtocolError: What came over stdin are no packets.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which is in our group
    port = Port(*_take_stdio(), _watch_parent())
    try:
        with _pool(config, endpoint) as where:
            port.run(where)
    except VllmportError as exc:
        port.last_word(exc)
        raise


def _take_stdio() -> tuple[int, int]:
    """Keep stdin and stdout for packets alone: what anybody prints from now on goes to stderr."""
    stdin, stdout = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return stdin, stdout


def _watch_parent() -> int | None:
    """Return a pidfd of the process that started this one; None if it cannot be seen from here."""
    with contextlib.suppress(OSError):  # it is outside of this container, or gone already
        return os.pidfd_open(os.getppid())
    return None


@contextlib.contextmanager
def _pool(config: Path | None, endpoint: str | None) -> Iterator[str]:
    """Start a pool that ends with the block, or name the one to join."""
    if endpoint is not None:
        check_endpoint(endpoint)
        yield endpoint
        return
    from vllmport.pool.config import load_config

    settings = load_config(config, {})
    supervisor = OwnedSupervisor(lambda run_dir: settings.to_plan(run_dir, owner_pid=os.getpid()))
    try:
        yield supervisor.plan.endpoint
    finally:
        supervisor.stop(PATIENCE)


class Port:
    """The connection of one host.

    Nothing is taken from one side that the other one has no room for: at most one read of the host
    and one message of the supervisor wait here, besides what the transports hold.

    Args:
        stdin: Where the host writes.
        stdout: Where it reads.
        owner: A pidfd of its process; without one, end of file alone tells of its end.
    """

    def __init__(self, stdin: int, stdout: int, owner: int | None) -> None:
        self._stdin, self._stdout, self._owner = stdin, stdout, owner
        self._reader = PacketReader()
        self._inward: deque[list[bytes]] = deque()
        self._outward = memoryview(b"")
        self._gone = self._heard = False
        self._endpoint = ""
        os.set_blocking(stdout, False)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._monitor = self._socket.get_monitor_socket(ENDINGS)

    def run(self, endpoint: str) -> None:
        """Pass messages on, between the host and the pool, until the host is gone.

        Raises:
            ConnectFailed: Nobody answers at the endpoint.
            PermissionDenied: The pool refuses this key.
            PoolLost: The supervisor went away.
            ProtocolError: What the host sent are no packets.
        """
        keys = keys_for(endpoint)
        probe(endpoint)
        self._endpoint = endpoint
        self._socket.setsockopt(zmq.IPV6, 1)
        if keys is not None:
            keys.put_on(self._socket)
        self._socket.connect(endpoint)
        try:
            while not self._gone:
                if not (self._pass_inward() | self._pass_outward()):
                    self._wait()
        finally:
            self._socket.disable_monitor()
            self._context.destroy(linger=200)

    def last_word(self, error: VllmportError) -> None:
        """Tell the host as well why this process ends; it may not look at stderr."""
        packet = to_packet(encode(error_message(error), pack(error.details)))
        with contextlib.suppress(OSError):  # it may be gone, or not read
            os.write(self._stdout, bytes(self._outward) + packet)

    def _pass_inward(self) -> bool:
        """Give the pool what the host said; return whether something moved."""
        moved = False
        with contextlib.suppress(zmq.Again):
            while self._inward:
                self._socket.send_multipart(self._inward[0], zmq.NOBLOCK)
                self._inward.popleft()
                moved = True
        return moved

    def _pass_outward(self) -> bool:
        """Give the host what the pool said; return whether something moved."""
        moved = False
        if not self._outward:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._check_supervisor()
                return False
            self._heard = True
            self._outward = memoryview(to_packet(frames))
            moved = True
        try:
            self._outward = self._outward[os.write(self._stdout, self._outward) :]
        except BlockingIOError:
            return moved
        except OSError:
            self._gone = True
        return True

    def _check_supervisor(self) -> None:
        """Look for its end, after all that it said was passed on."""
        if int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            if not self._heard:
                raise refused(self._endpoint)
            raise PoolLost("the supervisor is gone")

    def _wait(self) -> None:
        """Wait for whatever can move, and read what the host says if there is room for it."""
        poller = select.poll()
        poller.register(self._stdin, 0 if self._inward else select.POLLIN)  # 0: its end alone
        poller.register(self._stdout, select.POLLOUT if self._outward else 0)
        if self._owner is not None:
            poller.register(self._owner, select.POLLIN)
        poller.register(int(self._socket.getsockopt(zmq.FD)), select.POLLIN)
        poller.register(int(self._monitor.getsockopt(zmq.FD)), select.POLLIN)
        if self._can_move():  # the descriptor of a ZeroMQ socket tells of changes only
            return
        for fd, events in poller.poll():
            if fd == self._stdin:
                self._read(events)
            elif fd == self._owner or (fd == self._stdout and events & _GONE):
                self._gone = True

    def _can_move(self) -> bool:
        wanted = (zmq.POLLOUT if self._inward else 0) | (0 if self._outward else zmq.POLLIN)
        events = int(self._socket.getsockopt(zmq.EVENTS)) & wanted
        ended = int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN and not self._outward
        return bool(events or ended)

    def _read(self, events: int) -> None:
        if not events & select.POLLIN:
            self._gone = True
            return
        data = os.read(self._stdin, CHUNK)
        if not data:
            self._gone = True
        self._inward.extend(self._reader.feed(data))
