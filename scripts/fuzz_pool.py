"""Send damaged messages to a real pool, over ZeroMQ and ports, beside a client that is served.

Headers, payloads and the framing of packets are damaged. It fails if the other client is not
served, if the supervisor dies, or if it grows. `--frames` says how many, `--seed` which.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Final

import psutil
import zmq

from vllmport.bridge.codec import Array, pack
from vllmport.bridge.messages import Call, Cancel, Credit, Hello, Ping, encode
from vllmport.bridge.packets import to_packet
from vllmport.pool import LLM, Pool

THROUGH_PORTS: Final = 0.1
"""Share of the messages that go through ports."""

CHECK_EVERY: Final = 2000
"""Messages between two looks at the other client."""

GROWTH: Final = 200 << 20
"""Bytes that the supervisor may grow by."""

ARGUMENTS: Final = {"prompt": "abc", "sampling_params": {"max_tokens": 3}}

HELLO: Final = [bytes(frame) for frame in encode(Hello([1], "fuzz", 1, "fuzz"))]

VALID: Final = [
    [bytes(frame) for frame in frames]
    for frames in (
        HELLO,
        encode(Call(1, "echo", "generate", 1000, 2), pack(ARGUMENTS)),
        encode(
            Call(2, "echo", "chat", 1000), pack({"messages": [{"role": "user", "content": "a"}]})
        ),
        encode(
            Call(3, "echo", "echo", 1000), pack([(1, {2}), Array("int8", (4096,), bytes(4096))])
        ),
        encode(Call(4, "", "load", 1000), pack({"model": "echo", "engine_args": {"a": [1]}})),
        encode(Call(5, "", "status", 1000), pack({})),
        encode(Credit(1, 2)),
        encode(Cancel(1)),
        encode(Ping(7)),
    )
]


def flip(rng: random.Random, data: bytearray) -> None:
    """Change some bits."""
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    """Drop the end."""
    del data[rng.randrange(len(data)) :]


def insert(rng: random.Random, data: bytearray) -> None:
    """Put noise in."""
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randrange(1, 9))


def repeat(rng: random.Random, data: bytearray) -> None:
    """Repeat or nest a piece many times."""
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randrange(1, 5)] * rng.choice([2, 64, 600])


DAMAGES: Final[list[Callable[[random.Random, bytearray], None]]] = [flip, flip, cut, insert, repeat]


def damaged(rng: random.Random, odd: float) -> list[bytes]:
    """Return a message with one damaged frame; a share of `odd` has too many frames, or too few."""
    frames = [bytearray(frame) for frame in rng.choice(VALID)]
    frame = rng.choice(frames)
    rng.choice(DAMAGES)(rng, frame)
    if rng.random() < odd:
        frames = frames * 2 if rng.random() < 0.5 else frames[:1]
    return [bytes(frame) for frame in frames]


def over_zmq(endpoint: str, rng: random.Random) -> Generator[None, None, None]:
    """Send one message after the other; say HELLO again on a new connection now and then."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        while True:
            with context.socket(zmq.DEALER) as own:
                own.setsockopt(zmq.LINGER, 0)
                own.connect(endpoint)
                own.send_multipart(HELLO)
                for _ in range(CHECK_EVERY):
                    own.send_multipart(damaged(rng, 0.05))
                    with contextlib.suppress(zmq.Again):
                        while True:
                            own.recv_multipart(zmq.NOBLOCK)
                    yield
    finally:
        context.term()


def through_ports(endpoint: str, rng: random.Random) -> Generator[None, None, None]:
    """Send packets, some of which are damaged as a whole; start another port when one has ended."""
    command = [sys.executable, "-m", "vllmport.pool.cli", "port", "--connect", endpoint]
    while True:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        ) as port:
            assert port.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                port.stdin.write(to_packet(HELLO))
                while port.poll() is None:
                    packet = bytearray(to_packet(damaged(rng, 0.001)))
                    if rng.random() < 0.001:  # what breaks the framing ends the port
                        flip(rng, packet)
                    port.stdin.write(packet)
                    yield
            port.kill()
        if port.returncode not in (0, 7, -9):
            raise SystemExit(f"a port ended with {port.returncode}")


def check(pool: Pool, llm: LLM, memory: int) -> None:
    """Fail unless the other client is served and the supervisor has not grown."""
    (result,) = llm.generate("still here", timeout=60)
    if result.outputs[0].text != "still here":
        raise SystemExit(f"the other client got {result}")
    supervisor = psutil.Process(pool.status()["supervisor"]["pid"])
    grown = supervisor.memory_info().rss - memory
    if grown > GROWTH:
        raise SystemExit(f"the supervisor grew by {grown >> 20} MiB")


def main() -> None:
    """Send them all; say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)  # noqa: S311  # damage needs no cryptography
    with Pool() as pool:
        llm = pool.llm("echo")
        pid = pool.status()["supervisor"]["pid"]
        memory = psutil.Process(pid).memory_info().rss
        zmq_side, port_side = over_zmq(pool.endpoint, rng), through_ports(pool.endpoint, rng)
        start = time.monotonic()
        for number in range(1, args.frames + 1):
            next(port_side if rng.random() < THROUGH_PORTS else zmq_side)
            if number % CHECK_EVERY == 0 or number == args.frames:
                check(pool, llm, memory)
        took = time.monotonic() - start
        zmq_side.close()
        port_side.close()
        if pool.status()["supervisor"]["pid"] != pid:
            raise SystemExit("the supervisor was another one in the end")
        print(f"{args.frames} damaged messages in {took:.0f} s; the pool serves its clients")


if __name__ == "__main__":
    main()
