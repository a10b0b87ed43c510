"""Keeps a client connected: opens a connection when one is needed, also after a loss or a fork."""

import os
import threading
import time
from typing import Final

from vllmport.bridge.errors import ConnectFailed, PoolClosed
from vllmport.bridge.timeouts import Timeouts
from vllmport.pool.client.connection import Connection
from vllmport.pool.keys import ClientKeys

RECONNECT: Final = 10.0
"""Seconds that a service may take to come back."""

_PAUSE: Final = 0.05


class Link:
    """The current connection to one endpoint.

    Args:
        endpoint: Where.
        patience: Seconds to wait for a pool that answered before and does not now.
        keys: What a pool that listens on TCP asks for.

    Attributes:
        timeouts: What the pool said of time-outs when it was reached last.
    """

    def __init__(
        self, endpoint: str, patience: float = 0.0, keys: ClientKeys | None = None
    ) -> None:
        self.endpoint = endpoint
        self._keys = keys
        self._patience = patience
        self.timeouts = Timeouts()
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    def current(self) -> Connection | None:
        """Return the connection if one is alive; never waits."""
        current = self._connection
        return current if current is not None and current.alive and not self._closed else None

    def connection(self) -> Connection:
        """Return a connection that is alive, opened now if need be.

        Raises:
            ConnectFailed: Nobody answers at the endpoint.
            PoolClosed: This client was closed.
        """
        current = self.current()
        if current is not None:
            return current
        if self._pid != os.getpid():  # the lock may have been held by a thread that is not here
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            if self._closed:
                raise PoolClosed("this client was closed")
            if self._connection is None:
                self._connection = self._open(0.0)
            elif not self._connection.alive:
                self._connection.close()
                self._connection = self._open(self._patience)
            return self._connection

    def _open(self, patience: float) -> Connection:
        end = time.monotonic() + patience
        while True:
            try:
                connection = Connection(self.endpoint, keys=self._keys)
            except ConnectFailed:
                if self._closed or time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
            else:
                self.timeouts = connection.timeouts
                return connection

    def close(self) -> None:
        """Close the connection; nothing opens another."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
