"""The leanest HTTP client: kept connections, one request after the other, bodies not looked at."""

import asyncio
import http.client
import re
import socket
import time

HOST = "127.0.0.1"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Sends the same request again as soon as it is answered, until the time is over."""

    def __init__(self, request: bytes, end: float) -> None:
        self._request = request
        self._end = end
        self._got = bytearray()
        self.done = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport), "a TCP connection"
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count an answer, and ask again."""
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        length = LENGTH.search(self._got, 0, head) if head >= 0 else None
        if length is None or len(self._got) < head + 4 + int(length[1]):
            return
        if not self._got.startswith(b"HTTP/1.1 200"):
            self.over.set_exception(ConnectionError(bytes(self._got[:200]).decode()))
            return
        self._got.clear()
        self.done += 1
        if time.perf_counter() < self._end:
            self._transport.write(self._request)
        else:
            self._transport.close()
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was cut off."""
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the server closed a connection"))


def flight(port: int, path: str, kind: str, body: bytes, width: int, seconds: float) -> int:
    """Keep `width` requests open for so long; return how many were answered."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def run() -> int:
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + seconds
        opened = []
        for _ in range(width):
            _, made = await loop.create_connection(lambda: Connection(request, end), HOST, port)
            opened.append(made)
        await asyncio.gather(*(connection.over for connection in opened))
        return sum(connection.done for connection in opened)

    return asyncio.run(run())


def wait_for(port: int, path: str, seconds: float = 120.0) -> http.client.HTTPConnection:
    """Return a kept connection to a server once it answers."""
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=120)
        try:
            connection.request("GET", path)
            connection.getresponse().read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return connection


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
