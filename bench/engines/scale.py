"""An echo pool under more and more of something: streams, workers, clients. Driven by growth.py.

Each verb returns the rate, and the µs of processor time that the supervisor and this client used
for each item or call.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, NamedTuple

import zmq
from bench.children import cpu_seconds
from bench.peers.harness import SMALL, serve

from vllmport.bridge.codec import pack
from vllmport.bridge.limits import PROTOCOL_VERSION
from vllmport.bridge.messages import Call, Hello, encode
from vllmport.pool import AsyncPool, Pool, SamplingParams

ENDLESS = SamplingParams(max_tokens=60_000, ignore_eos=True)
CALLS_IN_FLIGHT = 64


class Used(NamedTuple):
    """Processor time so far: the supervisor's and this process's."""

    supervisor: float
    client: float


class Scale:
    """One pool; a model for each number of workers."""

    def __init__(self) -> None:
        self._pool = Pool()
        self._pool.llm("echo", name="one", max_num_seqs=1024)
        self._supervisor = int(self._pool.status()["supervisor"]["pid"])
        self._runner = asyncio.Runner()
        self._later: AsyncPool = self._runner.run(_connect(self._pool.endpoint))

    def streams(self, count: int, seconds: float) -> dict[str, float]:
        """Read `count` streams at once; what it takes to begin them is not counted."""
        return self._runner.run(self._read(count, seconds))

    def workers(self, count: int, seconds: float) -> dict[str, float]:
        """Let calls go to `count` workers."""
        name = f"echo-{count}"
        llm = self._pool.llm("echo", name=name, replicas=count)
        try:
            return self._watch(lambda: self._runner.run(self._call(name, seconds)))
        finally:
            llm.close()

    def clients(self, count: int, seconds: float) -> dict[str, float]:
        """Have `count` connections, each with one call in flight."""
        with ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            sockets = [self._hello(context, stack) for _ in range(count)]
            return self._watch(lambda: _ask(sockets, seconds))

    def _watch(self, work: Callable[[], int]) -> dict[str, float]:
        before, start = self._used(), time.perf_counter()
        done = work()
        return self._cost(before, time.perf_counter() - start, done)

    def _cost(self, before: Used, took: float, done: int) -> dict[str, float]:
        after = self._used()
        return {
            "rate": done / took,
            "supervisor": (after.supervisor - before.supervisor) / done * 1e6,
            "client": (after.client - before.client) / done * 1e6,
        }

    def _used(self) -> Used:
        return Used(cpu_seconds([self._supervisor]), cpu_seconds([os.getpid()]))

    async def _read(self, count: int, seconds: float) -> dict[str, float]:
        llm = await self._later.llm(name="one")
        tokens = [0] * count

        async def reader(number: int) -> None:
            while True:
                async for delta in llm.stream("x", ENDLESS):
                    tokens[number] += len(delta.token_ids)

        readers = [asyncio.create_task(reader(number)) for number in range(count)]
        while 0 in tokens:  # noqa: ASYNC110  # counts, that many tasks change
            await asyncio.sleep(0.05)
        before, had, start = self._used(), sum(tokens), time.perf_counter()
        await asyncio.sleep(seconds)
        found = self._cost(before, time.perf_counter() - start, sum(tokens) - had)
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        return found

    async def _call(self, name: str, seconds: float) -> int:
        llm = await self._later.llm(name=name)
        end = time.perf_counter() + seconds

        async def caller() -> int:
            done = 0
            while time.perf_counter() < end:
                await llm.call("echo", SMALL)
                done += 1
            return done

        return await _total(caller() for _ in range(CALLS_IN_FLIGHT))

    def _hello(self, context: "zmq.Context[Any]", stack: ExitStack) -> "zmq.Socket[bytes]":
        """Be a client of one socket and nothing else, as in a process of its own."""
        socket: zmq.Socket[bytes] = stack.enter_context(context.socket(zmq.DEALER))
        socket.linger = 0
        socket.connect(self._pool.endpoint)
        socket.send_multipart(encode(Hello([PROTOCOL_VERSION], "bench", os.getpid(), "bench")))
        socket.recv_multipart()
        return socket


async def _connect(endpoint: str) -> AsyncPool:
    return await AsyncPool.connect(endpoint)


async def _total(work: Any) -> int:
    running: list[Coroutine[Any, Any, int]] = list(work)
    return sum(await asyncio.gather(*running))


def _ask(sockets: "list[zmq.Socket[bytes]]", seconds: float) -> int:
    """Keep one call of each socket open."""
    packed = pack(SMALL)
    poller = zmq.Poller()
    done = 0
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
        socket.send_multipart(encode(Call(1, "one", "echo", 60_000), packed))
    end = time.perf_counter() + seconds
    opened = len(sockets)
    while opened:
        for socket, _ in poller.poll(10_000):
            socket.recv_multipart()
            done += 1
            if time.perf_counter() < end:
                call = encode(Call(done + 1, "one", "echo", 60_000), packed)
                socket.send_multipart(call)
            else:
                opened -= 1
    return done


def make() -> dict[str, Callable[..., Any]]:
    """Return what can be asked."""
    scale = Scale()
    return {"streams": scale.streams, "workers": scale.workers, "clients": scale.clients}


if __name__ == "__main__":
    serve(make)
