"""gRPC over a unix socket: an asyncio server, msgpack as its serializer, no generated code."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgpack
from bench.peers.harness import SMALL, echo_verbs, items, serve

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ECHO, STREAM = "/bench.Echo/Echo", "/bench.Echo/Stream"


class Grpc:
    """The client: a blocking channel for single calls, an asyncio one for many."""

    def __init__(self) -> None:
        self._address = f"unix:{tempfile.mkdtemp(prefix='grpc-')}/socket"
        subprocess.Popen([sys.executable, __file__, self._address])
        channel = grpc.insecure_channel(self._address, OPTIONS)
        grpc.channel_ready_future(channel).result(30)
        codec = {"request_serializer": msgpack.packb, "response_deserializer": msgpack.unpackb}
        self._codec = codec
        self._echo = channel.unary_unary(ECHO, **codec)
        self._stream = channel.unary_stream(STREAM, **codec)

    def call(self, value: Any) -> Any:
        return self._echo(value)

    def flight(self, width: int, seconds: float) -> int:
        return asyncio.run(self._flight(width, seconds))

    def stream(self, batch: int, seconds: float) -> int:
        return sum(len(found) for found in self._stream([batch, seconds]))

    async def _flight(self, width: int, seconds: float) -> int:
        async with grpc.aio.insecure_channel(self._address, OPTIONS) as channel:
            call = channel.unary_unary(ECHO, **self._codec)
            end = time.perf_counter() + seconds

            async def caller() -> int:
                done = 0
                while time.perf_counter() < end:
                    await call(SMALL)
                    done += 1
                return done

            return sum(await asyncio.gather(*(caller() for _ in range(width))))


async def answer(value: Any, _context: Any) -> Any:
    """Say back what comes."""
    return value


async def produce(value: Any, _context: Any) -> AsyncIterator[Any]:
    """Stream for some time."""
    batch, seconds = value
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield items(batch)


async def server(address: str) -> None:
    """Be the server."""
    codec = {"request_deserializer": msgpack.unpackb, "response_serializer": msgpack.packb}
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(answer, **codec),
        "Stream": grpc.unary_stream_rpc_method_handler(produce, **codec),
    }
    made = grpc.aio.server(options=OPTIONS)
    made.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", handlers)])
    made.add_insecure_port(address)
    await made.start()
    await made.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(server(sys.argv[1]))
    serve(lambda: echo_verbs(Grpc()))
