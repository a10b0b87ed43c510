"""The leanest client of an OpenAI server: kept connections, and only the end of a stream is parsed.

Usage: http_client.py PORT generate|embed
"""

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.engines.work import BACKGROUND, TEXTS, fresh_prompts, prompts, timed
from bench.measure import timed_calls
from bench.peers.harness import serve
from bench.peers.http_flight import HOST
from bench.server import StreamReader
from bench.workload import BATCH_PARAMS, ONE_PARAMS, ONE_PROMPT

LONG: dict[str, Any] = {"temperature": 0.0, "max_tokens": 2048, "ignore_eos": True}


class Client:
    """One client of one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection(HOST, port, timeout=60)
        self._runner = asyncio.Runner()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask, and return the answer."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps({"model": "tiny", **body}), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {text[:200]!r}")
        return json.loads(text)

    def one_token(self, count: int) -> list[float]:
        """Return how long each of `count` one-token calls took, in ms."""
        self._connect()
        return timed_calls(self.first, count)

    def first(self) -> str:
        """Return the first token."""
        found = self.post("/v1/completions", {"prompt": ONE_PROMPT, **ONE_PARAMS})
        return str(found["choices"][0]["text"])

    def final(self, count: int) -> float:
        """Return the tokens a second of a batch, which is one request."""
        self._connect()
        body = {"prompt": prompts(count), **BATCH_PARAMS}
        took, found = timed(lambda: self.post("/v1/completions", body))
        return float(found["usage"]["completion_tokens"] / took)

    def streamed(self, count: int) -> float:
        """Return the tokens a second of all streams together; connecting is not counted."""
        return self._runner.run(self._streams(count))

    def embed(self) -> float:
        """Return the embeddings a second of one request."""
        self._connect()
        took, found = timed(lambda: self.post("/v1/embeddings", {"input": TEXTS}))
        return float(len(found["data"]) / took)

    def ttft(self, count: int) -> list[float]:
        """Return the ms to the first token of `count` streams, one after the other, under load."""
        return self._runner.run(self._under_load(count))

    def _connect(self) -> None:
        """Connect anew, before the time counts: servers close what was idle for others' turns."""
        self._connection.close()
        self._connection.connect()

    async def _streams(self, count: int) -> float:
        readers = [await self._open(prompt, BATCH_PARAMS) for prompt in prompts(count)]
        start = time.perf_counter()
        await asyncio.gather(*[reader.start() for reader in readers])
        took = time.perf_counter() - start
        tokens = sum(reader.tokens() for reader in readers)
        for reader in readers:
            reader.transport.abort()
        return tokens / took

    async def _open(self, prompt: str, params: dict[str, Any]) -> StreamReader:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps({"model": "tiny", "prompt": prompt, **options, **params})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json"
        request = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        loop = asyncio.get_running_loop()
        made = partial(StreamReader, request)
        _, reader = await loop.create_connection(made, HOST, self._port)
        return reader

    async def _under_load(self, count: int) -> list[float]:
        async def load(prompt: str) -> None:
            while True:
                reader = await self._open(prompt, LONG)
                try:
                    await reader.start()
                finally:
                    reader.transport.abort()

        loads = [asyncio.create_task(load(prompt)) for prompt in prompts(BACKGROUND)]
        await asyncio.sleep(0.3)
        took = []
        for prompt in fresh_prompts(count):
            reader = await self._open(prompt, ONE_PARAMS)
            start = time.perf_counter()
            first = asyncio.get_running_loop().create_future()
            reader.first = first
            ended = reader.start()
            await first
            took.append((time.perf_counter() - start) * 1e3)
            await ended
            reader.transport.abort()
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        return took


def make(port: str, task: str) -> dict[str, Callable[..., Any]]:
    """Return what can be asked of the server."""
    client = Client(int(port))
    if task == "embed":
        client.post("/v1/embeddings", {"input": TEXTS[:8]})
        return {"embed": client.embed}
    client.first()
    return {
        "first": client.first,
        "one_token": client.one_token,
        "final": client.final,
        "streamed": client.streamed,
        "ttft": client.ttft,
    }


if __name__ == "__main__":
    serve(lambda: make(*sys.argv[1:]))
