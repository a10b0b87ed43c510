"""Keeps a client connected: opens a connection when one is needed, also after a loss or a fork."""

import os
import threading

from vllmport.bridge.errors import PoolClosed
from vllmport.bridge.timeouts import Timeouts
from vllmport.pool.client.connection import Connection


class Link:
    """The current connection to one endpoint.

    Attributes:
        timeouts: What the pool said of time-outs when it was reached last.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
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
            if self._connection is None or not self._connection.alive:
                if self._connection is not None:
                    self._connection.close()
                self._connection = Connection(self.endpoint)
                self.timeouts = self._connection.timeouts
            return self._connection

    def close(self) -> None:
        """Close the connection; nothing opens another."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
