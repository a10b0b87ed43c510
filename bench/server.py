"""vLLM's own HTTP server, and the leanest client of it: a contender.

One-token calls: one kept-alive `http.client` connection. Streams: an asyncio protocol that only
looks for the end of the response; it parses no event while the clock runs.
"""

import asyncio
import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

from bench.children import Child
from bench.measure import rate, timed_calls
from bench.workload import (
    BATCH_PARAMS,
    BATCH_PROMPTS,
    BATCH_TOKENS,
    ENGINE_ARGS,
    ENGINE_ENV,
    MODEL,
    ONE_PARAMS,
    ONE_PROMPT,
)

HOST = "127.0.0.1"
START_TIMEOUT = 300.0
PATH = "/v1/completions"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]"


class Server:
    """Starts the server; `wait` for it before anything else.

    Args:
        folder: For its log.
        runner: Runs the streams.
    """

    def __init__(self, folder: Path, runner: asyncio.Runner) -> None:
        self._port = free_port()
        self._runner = runner
        self._streams: list[StreamReader] = []
        command = ["-m", "vllm.entrypoints.openai.api_server", "--model", MODEL]
        command += ["--served-model-name", "tiny", "--host", HOST, "--port", str(self._port)]
        command += ["--disable-uvicorn-access-log", *_flags(ENGINE_ARGS)]
        self.child = Child(command, folder / "server.log", ENGINE_ENV)
        self._connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
        self._body = _body(ONE_PROMPT, ONE_PARAMS, stream=False)

    def wait(self) -> str:
        """Wait until it serves; return its first token.

        Raises:
            TimeoutError: It does not.
        """
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            self.child.check()
            try:
                self._connection.request("GET", "/health")
                self._connection.getresponse().read()
                return self._one_token()
            except OSError:
                self._connection.close()
                time.sleep(0.25)
        raise TimeoutError(f"the server did not answer; see {self.child.log}")  # noqa: EM102

    def one_token(self, count: int) -> list[float]:
        """Return how long each of `count` one-token calls took, in ms."""
        return timed_calls(self._one_token, count)

    def streamed(self) -> float:
        """Return the tokens a second of all streams together."""
        return rate(lambda: self._runner.run(self._all_streams()))

    def close(self) -> None:
        """Close the connections; the process is the child's to stop."""
        self._connection.close()
        for stream in self._streams:
            stream.transport.abort()

    def _one_token(self) -> str:
        self._connection.request("POST", PATH, self._body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        return str(answer["choices"][0]["text"])

    async def _all_streams(self) -> int:
        loop = asyncio.get_running_loop()
        if not self._streams:  # kept open: connecting is not what is measured
            for prompt in BATCH_PROMPTS:
                request = _request(_body(prompt, BATCH_PARAMS, stream=True), self._port)
                made = await loop.create_connection(
                    lambda r=request: StreamReader(r), HOST, self._port
                )
                self._streams.append(made[1])
        for ended in [stream.start() for stream in self._streams]:
            await ended
        for stream in self._streams:
            stream.check()
        return BATCH_TOKENS


class StreamReader(asyncio.Protocol):
    """One connection that sends the same streamed request again and again."""

    def __init__(self, request: bytes) -> None:
        self.transport: Any = None
        self._request = request
        self._parts: list[bytes] = []
        self._ended: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def start(self) -> asyncio.Future[None]:
        """Send the request; the future is done when the response has ended."""
        self._parts = []
        self._ended = asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        return self._ended

    def data_received(self, data: bytes) -> None:
        """Keep what came, and notice the end."""
        self._parts.append(data)
        if data.endswith(LAST_CHUNK) and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a response that was cut off."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(exc or ConnectionError("the server closed a stream"))

    def check(self) -> None:
        """Make sure that the response was a whole one.

        Raises:
            RuntimeError: It was not.
        """
        body = b"".join(self._parts)
        if DONE not in body or b'"finish_reason":"length"' not in body:
            raise RuntimeError(f"a stream of the server ended with {body[-300:]!r}")  # noqa: EM102


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _flags(args: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in args.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


def _body(prompt: str, params: dict[str, Any], *, stream: bool) -> bytes:
    return json.dumps({"model": "tiny", "prompt": prompt, "stream": stream, **params}).encode()


def _request(body: bytes, port: int) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
