"""`vllmport port`: a host that has only pipes, and what is left when either end goes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import (
    PATIENCE,
    all_gone,
    at_most,
    echoed,
    endless,
    environment,
    eventually,
    identify,
    program,
    read_line,
    serving,
    unfinished,
    vllmport,
)
from vllmport.bridge.codec import pack, unpack
from vllmport.bridge.messages import (
    Call,
    Cancel,
    End,
    Error,
    Hello,
    Items,
    Message,
    Result,
    Welcome,
    decode,
    encode,
)
from vllmport.bridge.packets import PacketReader, to_packet
from vllmport.pool import Pool

PORT = (sys.executable, "-m", "vllmport.pool.cli", "port")

GONE = 2.0
"""Seconds within which nothing is left of a pool whose host has gone."""

REFUSED = json.loads(
    (Path(__file__).parents[2] / "bridge" / "vectors" / "packets.json").read_text()
)["refused"]


class Host:
    """A host without ZeroMQ: packets out, packets in."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.reader = PacketReader()
        self.waiting: list[list[bytes]] = []

    def send(self, message: Message, value: Any = None) -> None:
        assert self.process.stdin is not None
        packet = to_packet(encode(message, None if value is None else pack(value)))
        self.process.stdin.write(packet)
        self.process.stdin.flush()

    def receive(self) -> tuple[Message, Any]:
        assert self.process.stdout is not None
        while not self.waiting:
            data = self.process.stdout.read1()  # type: ignore[attr-defined]
            assert data, f"the port ended with {self.process.wait(PATIENCE)}"
            self.waiting = list(self.reader.feed(data))
        message, payload, buffers = decode(self.waiting.pop(0))
        return message, unpack(payload, buffers)

    def hello(self) -> Welcome:
        self.send(Hello([1], "test"))
        message, _ = self.receive()
        assert isinstance(message, Welcome)
        return message

    def call(self, call_id: int, model: str, verb: str, args: Any, window: int = 0) -> None:
        self.send(Call(call_id, model, verb, 60_000, window), args)

    def ask(self, call_id: int, model: str, verb: str, args: Any) -> Any:
        """Call and return the one result."""
        self.call(call_id, model, verb, args)
        message, value = self.receive()
        assert isinstance(message, (Result, End)), message
        return value if isinstance(message, Result) else value[0]

    def load(self, **engine_args: Any) -> None:
        self.ask(1_000_000, "", "load", {"model": "echo", "engine_args": engine_args})

    def status(self) -> dict[str, Any]:
        return dict(self.ask(2_000_000, "", "status", {}))


@contextlib.contextmanager
def porting(*args: str) -> Iterator[Host]:
    """Start a port as a host does; it is ended by end of file."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*PORT, *args], stdin=pipe, stdout=pipe, stderr=pipe, env=environment()
    ) as process:
        try:
            yield Host(process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(PATIENCE)


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with a pool of its own, greeted."""
    with porting() as host:
        host.hello()
        yield host


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


def family(host: Host) -> list[psutil.Process]:
    """Return the port and all that belongs to its pool."""
    supervisor = psutil.Process(host.status()["supervisor"]["pid"])
    return [*identify(host.process.pid), supervisor, *supervisor.children(recursive=True)]


def ending(host: Host) -> tuple[int, str]:
    """Wait for the end of a port; return its exit status and what it said to stderr."""
    assert host.process.stderr is not None
    said = host.process.stderr.read().decode()
    return host.process.wait(PATIENCE), said


# Messages.


def test_calls_and_streams_pass_through(host: Host) -> None:
    host.load()
    params = {"max_tokens": 5, "ignore_eos": True}
    result = host.ask(1, "echo", "generate", {"prompt": "abc", "sampling_params": params})
    assert result["outputs"][0]["text"] == echoed("abc", 5)
    host.call(2, "echo", "generate", {"prompt": "abc", "sampling_params": params}, window=8)
    said = ""
    while True:
        message, values = host.receive()
        if isinstance(message, End):
            break
        assert isinstance(message, Items)
        said += "".join(output["text"] for item in values for output in item["outputs"])
    assert said == echoed("abc", 5)


def test_large_values_pass_both_ways(host: Host) -> None:
    host.load()
    value = {"a": b"x" * 5_000_000}
    assert host.ask(1, "echo", "echo", value) == value


def test_a_host_that_reads_nothing_costs_the_port_little_memory(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[policy]\nmax_client_bytes = 1_000_000_000\n")
    with porting(str(tmp_path / "pool.toml")) as host:
        host.hello()
        host.load()
        port = psutil.Process(host.process.pid)
        before = port.memory_info().rss
        for call_id in range(1, 101):
            host.call(call_id, "echo", "echo", {"a": b"x" * 1_000_000})
        eventually(lambda: pool_has_answered(port, 100))
        assert port.memory_info().rss - before < 60_000_000
        ended: list[int] = []
        while len(ended) < 100:
            message, _ = host.receive()
            assert isinstance(message, End)
            ended += [call_id for call_id, _ in message.entries]
        assert sorted(ended) == list(range(1, 101))


def pool_has_answered(port: psutil.Process, calls: int) -> bool:
    """Ask the port's pool through a connection of our own."""
    supervisor = next(p for p in port.children() if "vllmport.pool.supervisor" in p.cmdline())
    socket = next(c.laddr for c in supervisor.net_connections("unix") if "pool.sock" in c.laddr)
    with Pool.connect(f"ipc://{socket}") as pool:
        return bool(pool.status()["counters"]["finished"] >= calls)


def test_what_is_printed_goes_to_stderr_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else in the process prints to descriptor 1, from its start to its end."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def chatter():\n"
        "    while 'vllmport.pool.config' not in sys.modules: time.sleep(0.001)\n"
        "    while True: os.write(1, b'stray\\n'); print('stray', flush=True); time.sleep(0.001)\n"
        "if 'port' in sys.orig_argv: threading.Thread(target=chatter, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with porting() as host:
        assert host.hello().version == 1
        host.load()
        assert host.ask(1, "echo", "tokenize", {"prompt": "a"})["count"] == 1
        assert host.process.stdin is not None
        host.process.stdin.close()
        status, said = ending(host)
    assert status == 0
    assert "stray" in said


# Refusals.


@pytest.mark.parametrize("vector", REFUSED, ids=lambda v: str(v["name"]))
def test_what_is_no_packet_is_refused_and_ends_the_port(pool: Pool, vector: Any) -> None:
    with porting("--connect", pool.endpoint) as host:
        host.hello()
        assert host.process.stdin is not None
        host.process.stdin.write(bytes.fromhex(vector["bytes"]))
        host.process.stdin.flush()
        message, _ = host.receive()
        assert isinstance(message, Error)
        assert (message.id, message.code) == (0, "protocol_error")
        status, said = ending(host)
    assert (status, said) == (7, f"vllmport: {message.message}\n")


@pytest.mark.parametrize("seed", range(6))
def test_damaged_packets_end_their_port_at_most_and_disturb_nobody(pool: Pool, seed: int) -> None:
    rng = random.Random(seed)
    llm = pool.llm("echo")
    with porting("--connect", pool.endpoint) as host:
        host.hello()
        for call_id in range(1, 200):
            args = pack({"prompt": "abc", "sampling_params": {"max_tokens": 3}})
            packet = bytearray(to_packet(encode(Call(call_id, "echo", "generate", 1000), args)))
            packet[rng.randrange(len(packet))] = rng.randrange(256)
            try:
                assert host.process.stdin is not None
                host.process.stdin.write(packet)
                host.process.stdin.flush()
            except BrokenPipeError:
                break
        assert llm.generate("still here", timeout=PATIENCE)[0].outputs[0].text == "still here"
    assert host.process.returncode in (0, 7)


def test_a_pool_that_is_not_there_is_said_as_a_message_too(endpoint: str) -> None:
    with porting("--connect", endpoint) as host:
        message, details = host.receive()
        assert isinstance(message, Error)
        assert (message.id, message.code) == (0, "connect_failed")
        assert details == {"endpoint": endpoint}
        assert ending(host)[0] == 3


def test_a_configuration_that_cannot_work_is_said_as_a_message_too(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("endpint = 'x'")
    with porting(str(tmp_path / "pool.toml")) as host:
        message, details = host.receive()
        assert isinstance(message, Error)
        assert (message.code, details["parameter"]) == ("invalid_request", "endpint")
        assert ending(host)[0] == 1


def test_joining_and_configuring_are_not_for_the_same_port(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").touch()
    done = vllmport("port", "--connect", "ipc:///x", str(tmp_path / "pool.toml"))
    assert (done.returncode, done.stdout) == (2, "")


# Ends.


def test_end_of_file_takes_everything_with_it(host: Host) -> None:
    host.load(step_delay=0.001)
    host.call(1, "echo", "generate", {"prompt": "abc", "sampling_params": endless()}, window=8)
    host.receive()
    everything = family_of_busy(host)
    assert host.process.stdin is not None
    with at_most(GONE):
        host.process.stdin.close()
        eventually(lambda: all_gone(everything))
    assert host.process.wait(PATIENCE) == 0


def family_of_busy(host: Host) -> list[psutil.Process]:
    """Return the processes of a port whose host has other messages on their way."""
    port = psutil.Process(host.process.pid)
    return [port, *port.children(recursive=True)]


def test_end_of_file_takes_a_hung_worker_and_a_stopped_supervisor_too(host: Host) -> None:
    host.load()
    host.call(1, "echo", "fault", {"kind": "hang"})
    everything = family_of_busy(host)
    supervisor = next(p for p in everything if "vllmport.pool.supervisor" in p.cmdline())
    supervisor.suspend()
    assert host.process.stdin is not None
    with at_most(GONE):
        host.process.stdin.close()
        eventually(lambda: all_gone(everything))


HOST = """
import subprocess, sys, time
port = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
keeper = subprocess.Popen(["sleep", "60"], pass_fds=[port.stdin.fileno()])
print(port.pid, keeper.pid, flush=True)
time.sleep(60)
"""


def test_a_host_that_is_killed_leaves_nothing_even_if_its_child_keeps_the_pipe(
    tmp_path: Path,
) -> None:
    (tmp_path / "pool.toml").write_text("[models.echo]\nmodel = 'echo'\n")
    with program(sys.executable, "-c", HOST, *PORT, str(tmp_path / "pool.toml")) as host:
        pid, keeper = map(int, read_line(host).split())
        port = psutil.Process(pid)
        eventually(lambda: has_worker(port))
        everything = [port, *port.children(recursive=True)]
        with at_most(GONE):
            host.send_signal(signal.SIGKILL)
            eventually(lambda: all_gone(everything))
        os.kill(keeper, signal.SIGKILL)


def has_worker(port: psutil.Process) -> bool:
    """Tell whether a worker runs below the port; a process that just ends is passed over."""
    for child in port.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "vllmport.worker" in child.cmdline():
                return True
    return False


def test_a_port_that_is_killed_leaves_nothing(host: Host) -> None:
    host.load()
    everything = family(host)
    with at_most(GONE):
        host.process.kill()
        eventually(lambda: all_gone(everything))


def test_a_port_ends_with_its_supervisor_and_says_so(host: Host) -> None:
    host.load()
    os.kill(host.status()["supervisor"]["pid"], signal.SIGKILL)
    message, _ = host.receive()
    assert isinstance(message, Error)
    assert (message.id, message.code, message.retryable) == (0, "pool_lost", True)
    assert ending(host)[0] == 3


def test_of_a_pool_that_was_joined_only_the_calls_of_this_host_end(endpoint: str) -> None:
    with serving(endpoint, "--model", "echo"), Pool.connect(endpoint) as pool:
        llm = pool.llm(name="echo")
        with porting("--connect", endpoint) as host:
            host.hello()
            args = {"prompt": "abc", "sampling_params": endless(10**9)}
            host.call(1, "echo", "generate", args, window=8)
            host.receive()
            mine = llm.stream("abc", endless())
            next(mine)
            assert unfinished(pool) == 2
            host.process.kill()
            eventually(lambda: unfinished(pool) == 1)
            assert next(mine).text
            mine.close()


def test_a_host_may_cancel(host: Host) -> None:
    host.load(step_delay=0.001)
    host.call(1, "echo", "generate", {"prompt": "abc", "sampling_params": endless()}, window=8)
    host.receive()
    host.send(Cancel(1))
    while not isinstance(message := host.receive()[0], Error):
        pass
    assert (message.id, message.code) == (1, "cancelled")
