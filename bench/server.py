"""vLLM's own HTTP server, and the leanest client of it: a contender.

One-token calls: one kept-alive `http.client` connection. Streams: an asyncio protocol that only
looks for the end of the response; it parses no event, but for a count of tokens at the end.
"""

import asyncio
import http.client
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.children import Child
from bench.measure import rate, timed_calls
from bench.peers.http_flight import HOST, free_port
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

START_TIMEOUT = 300.0
PATH = "/v1/completions"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]"
USAGE = re.compile(rb'"completion_tokens":(\d+)')


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
        command = server_command(self._port, ENGINE_ARGS)
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
        raise TimeoutError(f"the server did not answer; see {self.child.log}")

    def one_token(self, count: int) -> list[float]:
        """Return how long each of `count` one-token calls took, in ms."""
        return timed_calls(self._one_token, count)

    def streamed(self) -> float:
        """Return the tokens a second of all streams together."""
        return rate(lambda: self._runner.run(self._all_streams()))

    @property
    def events(self) -> int:
        """How many events the last streams had; the server joins tokens when it falls behind."""
        return sum(stream.events for stream in self._streams)

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
                reader = StreamReader(request)
                await loop.create_connection(partial(_same, reader), HOST, self._port)
                self._streams.append(reader)
        for ended in [stream.start() for stream in self._streams]:
            await ended
        tokens = sum(stream.tokens() for stream in self._streams)
        if tokens != BATCH_TOKENS:
            raise RuntimeError(f"the server made {tokens} tokens of {BATCH_TOKENS}")
        return tokens


class StreamReader(asyncio.Protocol):
    """One connection that sends the same streamed request again and again."""

    def __init__(self, request: bytes) -> None:
        self.transport: Any = None
        self._request = request
        self.events = 0
        self._parts: list[bytes] = []
        self._ended: asyncio.Future[None] | None = None
        self.first: asyncio.Future[None] | None = None

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
        if self.first is not None and not self.first.done() and b"data: {" in data:
            self.first.set_result(None)
        if self._ended is None or self._ended.done() or not data.endswith(LAST_CHUNK):
            return
        if DONE in b"".join(self._parts[-4:]):  # else it is a chunk that ends like the last one
            self._ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a response that was cut off."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(exc or ConnectionError("the server closed a stream"))

    def tokens(self) -> int:
        """Return how many tokens the server says the response has.

        Raises:
            RuntimeError: It was cut short.
        """
        body = b"".join(self._parts)
        count = USAGE.search(body)
        if count is None or DONE not in body:
            raise RuntimeError(f"a stream of the server ended with {body[-300:]!r}")
        self.events = body.count(b"data: {") - 1
        return int(count[1])


def _same(reader: StreamReader) -> StreamReader:
    return reader


def server_command(port: int, args: dict[str, Any]) -> list[str]:
    """Return the arguments for Python that start the server with these engine arguments."""
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", MODEL]
    command += ["--served-model-name", "tiny", "--host", HOST, "--port", str(port)]
    command += ["--disable-uvicorn-access-log"]
    for name, value in args.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return command


def _body(prompt: str, params: dict[str, Any], *, stream: bool) -> bytes:
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    body = {"model": "tiny", "prompt": prompt, "stream": stream, **usage, **params}
    return json.dumps(body).encode()


def _request(body: bytes, port: int) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
