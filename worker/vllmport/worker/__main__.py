"""The worker process: register, load the engine, serve, leave.

Started by the spawner as `python -m vllmport.worker ENDPOINT`, in a session of its own, with the
nonce in the environment. Standard output belongs to nobody: it is joined to stderr. A standby is a
worker whose first LOAD says `prepare`: it imports the engine and waits for another LOAD.
"""

import logging
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import zmq

from vllmport.bridge.board import SIZE, SLOTS, Board
from vllmport.bridge.codec import Bytes, pack, unpack
from vllmport.bridge.errors import EngineDead, StartupFailed, VllmportError
from vllmport.bridge.limits import MAX_FRAME, PROTOCOL_VERSION
from vllmport.bridge.messages import (
    PREPARED,
    Bye,
    Load,
    Progress,
    Ready,
    Register,
    decode,
    encode,
    error_message,
)
from vllmport.worker.engine import Engine
from vllmport.worker.mode import SWITCH, choose_mode, proof
from vllmport.worker.port import SocketPort
from vllmport.worker.priority import STANDING_BY, give_way
from vllmport.worker.universal.allow import allow_list
from vllmport.worker.universal.desk import Desk, Limits

logger = logging.getLogger("vllmport.worker")

EXIT_LOAD_FAILED = 3
EXIT_ENGINE_DIED = 4
REGISTER_TIMEOUT_MS = 60_000


def main(argv: list[str]) -> int:
    """Run one worker to its end and return its exit status."""
    (endpoint,) = argv
    os.dup2(2, 1)  # a stray print must not look like anything but a log line
    logging.basicConfig(level=logging.INFO, format="%(levelname)s vllmport.worker: %(message)s")
    nonce = os.environ.pop("VLLMPORT_NONCE")
    with zmq.Context() as context:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, nonce.encode())
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 1000)
        with socket.connect(endpoint):
            return _serve(socket, nonce)


def _serve(socket: "zmq.Socket[bytes]", nonce: str) -> int:
    socket.send_multipart(
        encode(Register(nonce, PROTOCOL_VERSION, version("vllmport"), os.getpid(), os.getpgrp()))
    )
    loaded = _wait_for_load(socket, REGISTER_TIMEOUT_MS)
    if loaded is not None and loaded[1]["prepare"]:
        _prepare(socket)
        loaded = _wait_for_load(socket, None)
    if loaded is None:
        return 0
    worker, spec = loaded
    os.environ.update(spec["env"])
    board = _map_board(spec["board"])
    port = SocketPort(socket, worker, board)
    with _watched(spec) as stands:
        try:
            engine = _load(spec, port)
        except VllmportError as exc:
            exc.worker = worker
            socket.send_multipart(encode(error_message(exc), pack(exc.details)))
            logger.error("load failed: %s", exc.message)
            return EXIT_LOAD_FAILED
        port.attach(engine, _desk(spec, worker, board, engine, socket.send_multipart))
        capacity = min(engine.capacity, SLOTS)
        socket.send_multipart(encode(Ready(capacity, engine.mode), pack(engine.info)))
        stands()
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # a load simply ends by it
            engine.run(port)
        except SystemExit:
            logger.info("stopped by SIGTERM")
        except EngineDead as exc:
            # First the word that concerns the whole worker: it is given no more calls.
            socket.send_multipart(encode(error_message(exc), pack(exc.details)))
            port.fail_all(exc)
            logger.error("engine died: %s", exc.message)
            return EXIT_ENGINE_DIED
    engine.close()
    return 0


def _desk(
    spec: Mapping[str, Any],
    worker: str,
    board: Board,
    engine: Engine,
    send: Callable[[list[Bytes]], object],
) -> Desk:
    """Open the desk for universal calls; nothing of it costs anything before the first."""
    universal = spec["universal"]
    allow = allow_list(spec["engine"], universal["modules"])
    limits = Limits(universal["max_refs"], universal["max_sessions"])
    return Desk(worker, board, allow, engine.roots, limits, send)


@contextmanager
def _watched(spec: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """End this process if one of the engine's ends in the block; yield what says that it stands."""
    if spec["engine"] != "vllm":
        yield lambda: None
        return
    from vllmport.worker.relatives import Watch  # psutil is only for those

    watch = Watch(_die_with)
    try:
        yield watch.loaded
    finally:
        watch.close()


def _die_with(pid: int) -> None:
    sys.stderr.write(f"ERROR vllmport.worker: engine process {pid} has ended\n")
    sys.stderr.flush()
    os._exit(EXIT_ENGINE_DIED)


def _prepare(socket: "zmq.Socket[bytes]") -> None:
    """Do all that takes time and needs no model, then say so."""
    from vllmport.worker.engines.vllm import import_vllm

    give_way(STANDING_BY)
    import_vllm()
    socket.send_multipart(encode(Progress(PREPARED)))
    logger.info("standing by")


def _wait_for_load(
    socket: "zmq.Socket[bytes]", timeout_ms: int | None
) -> tuple[str, Mapping[str, Any]] | None:
    """Wait for the worker's name and specification; None if no worker is wanted after all."""
    if not socket.poll(timeout_ms):
        logger.error("no answer to REGISTER within %s ms", timeout_ms)
        return None
    message, payload, buffers = decode(socket.recv_multipart())
    if isinstance(message, Bye):
        logger.info("not wanted: %s", message.reason)
        return None
    assert isinstance(message, Load), f"LOAD comes first, not {message}"
    spec = unpack(payload, buffers)
    assert isinstance(spec, dict)
    return message.worker, spec


def _map_board(path: str) -> Board:
    """Map the file that the supervisor made, where it can read how far this worker came."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Board(memoryview(mmap.mmap(fd, SIZE)))
    finally:
        os.close(fd)


def _load(spec: Mapping[str, Any], port: SocketPort) -> Engine:
    """Build the engine.

    Raises:
        InvalidRequest: The specification can never work.
        StartupFailed: It did not work this time.
    """
    try:
        if spec["engine"] == "echo":
            from vllmport.worker.engines.echo import EchoEngine

            return EchoEngine(spec["engine_args"], port)
        from vllmport.worker.engines.vllm import load_vllm  # imports torch

        return load_vllm(_with_mode(spec), port)
    except VllmportError as exc:
        exc.details.setdefault("interpreter", sys.executable)
        exc.details.setdefault("path", spec["model"])
        raise
    except Exception as exc:  # outermost: whatever the engine raises is a failed start
        traceback.print_exc()
        raise StartupFailed(
            f"{type(exc).__name__}: {exc}",
            phase="load",
            details={
                "interpreter": sys.executable,
                "path": spec["model"],
                "class": f"{type(exc).__module__}.{type(exc).__qualname__}",
            },
        ) from exc


def _with_mode(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Settle how the engine runs, before anything of it is there."""
    unsafe = proof(os.environ)
    mode = choose_mode(spec["v1_multiprocessing"], unsafe, os.environ.get(SWITCH))
    for text in mode.warnings:
        logger.warning("%s", text)
    return {**spec, "mode": mode.name, "warnings": mode.warnings}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # The engine is closed and the socket flushed. Taking torch apart would only cost seconds.
    sys.stderr.flush()
    os._exit(status)
