"""LitServe with its fast queue and one worker; JSON, its default; bytes travel as base64 in it."""

import base64
import http.client
import json
import subprocess
import sys
import time
from typing import Any

import litserve
from bench.peers.harness import SMALL, echo_verbs, items, serve
from bench.peers.http_flight import HOST, flight, free_port, wait_for
from fastapi import Request

KIND = "application/json"


class EchoApi(litserve.LitAPI):  # type: ignore[misc]
    """The other end."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: Request) -> Any:
        """Take it as it is."""
        return request

    def predict(self, x: Any) -> Any:
        """Say it back."""
        return x

    def encode_response(self, output: Any) -> Any:
        """Give it as it is."""
        return output


class StreamApi(EchoApi):
    """The other end of streams."""

    def predict(self, x: Any) -> Any:
        """Stream for some time."""
        end = time.perf_counter() + x["seconds"]
        while time.perf_counter() < end:
            yield items(x["batch"])

    def encode_response(self, output: Any) -> Any:
        """One line for each message."""
        for item in output:
            yield json.dumps(item) + "\n"


class LitServe:
    """The client."""

    def __init__(self) -> None:
        self._port = free_port()
        subprocess.Popen([sys.executable, __file__, str(self._port)])
        self._connection = wait_for(self._port, "/health")

    def call(self, value: Any) -> Any:
        try:
            return self._call(value)
        except (OSError, http.client.HTTPException):  # it closes connections idle for 5 s
            self._connection.close()
            return self._call(value)

    def _call(self, value: Any) -> Any:
        sent = {"b": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        with_type = {"Content-Type": KIND}
        self._connection.request("POST", "/echo", json.dumps(sent).encode(), with_type)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {body[:200]!r}")
        found = json.loads(body)
        return base64.b64decode(found["b"]) if isinstance(value, bytes) else found

    def flight(self, width: int, seconds: float) -> int:
        return flight(self._port, "/echo", KIND, json.dumps(SMALL).encode(), width, seconds)

    def stream(self, batch: int, seconds: float) -> int:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
        body = json.dumps({"batch": batch, "seconds": seconds})
        connection.request("POST", "/stream", body, {"Content-Type": KIND})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {answer.read(200)!r}")
        return sum(len(json.loads(line)) for line in answer)


if __name__ == "__main__":
    if sys.argv[1:]:
        apis = [EchoApi(api_path="/echo"), StreamApi(api_path="/stream", stream=True)]
        server = litserve.LitServer(
            apis, accelerator="cpu", timeout=60, fast_queue=True, max_payload_size=None
        )
        server.run(
            host=HOST, port=int(sys.argv[1]), log_level="warning", generate_client_file=False
        )
    else:
        serve(lambda: echo_verbs(LitServe()))
