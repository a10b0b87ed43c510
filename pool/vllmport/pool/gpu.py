"""Reads the GPUs through NVIDIA's library, in a child process: a call of it may hang for ever.

`python -m vllmport.pool.gpu` is that child: it prints one line of JSON for each reading, one with
`--every SECONDS` until its stdin ends, else once. Only the child loads the library. `GpuWatch` is
its owner's end: it never blocks, and gives a child up that is silent for too long.
"""

import argparse
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Final, NoReturn

from vllmport.pool.supervisor.devices import DeviceReading

COMMAND: Final = (sys.executable, "-m", "vllmport.pool.gpu")

INTERVAL: Final = 0.5
"""Seconds between two readings while somebody waits for them."""

LEISURE: Final = 5.0
"""Seconds between two readings that only watch memory grow."""

PATIENCE: Final = 15.0
"""Seconds of silence after which a child hangs; a driver that nobody uses takes some to wake up."""

RETRY: Final = 5.0
"""Seconds until a child that failed is followed by another."""

DRIVER_FILES: Final = ("/dev/nvidiactl", "/dev/dxg")


class GpuUnreadable(Exception):
    """Raised when the devices of this machine cannot be read; says why, and what to do."""


def has_gpus() -> bool:
    """Tell whether this machine has an NVIDIA driver, without asking it."""
    return any(os.path.exists(path) for path in DRIVER_FILES)


class GpuWatch:
    """A child that reads the devices again and again while somebody wants that.

    The owner polls `fileno()`, calls `receive` when it is readable, `keep` whenever its wish may
    have changed, and `check` and `keep` at `next_deadline()`.
    """

    def __init__(
        self, command: Sequence[str] = COMMAND, patience: float = PATIENCE, retry: float = RETRY
    ) -> None:
        self._command = command
        self._patience = patience
        self._retry = retry
        self._every = 0.0  # 0 while no readings are wanted
        self._child: subprocess.Popen[bytes] | None = None
        # One that hangs in the kernel cannot even be killed: until it is gone there is no other.
        self._dying: subprocess.Popen[bytes] | None = None
        self._line = b""
        self._due = math.inf  # the child's next line, or the next child
        self._epoll = select.epoll()  # one descriptor for all children in turn

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def pid(self) -> int:
        """The child, or 0."""
        return self._child.pid if self._child is not None else 0

    def keep(self, now: float, *, wanted: bool, every: float = INTERVAL) -> None:
        """Start a child that reads so often, or end it; one of another pace is replaced."""
        pace = every if wanted else 0.0
        if pace != self._every:
            self._end()
            self._every, self._due = pace, now
        if pace and self._child is None and self._dying is None and now >= self._due:
            self._start(now)

    def receive(self, now: float) -> list[DeviceReading] | None:
        """Return a reading, if a whole one has come.

        Raises:
            GpuUnreadable: The child could not read the devices; another one follows.
        """
        self._bury()
        if self._child is None:
            return None
        data = _read(self._child)
        if data is None:
            return None
        if not data:
            self._fail("the process that reads the GPUs ended without a word", now)
        *lines, self._line = (self._line + data).split(b"\n")
        if not lines:
            return None
        self._due = now + self._every + self._patience
        found = json.loads(lines[-1])
        if "error" in found:
            self._fail(found["error"], now)
        return [
            DeviceReading(
                index,
                uuid,
                total,
                used,
                None if pids is None else tuple(pids),
                {int(pid): size for pid, size in memory.items()},
            )
            for index, uuid, total, used, pids, memory in found["devices"]
        ]

    def next_deadline(self) -> float:
        """Return when `check` and `keep` have to be called at the latest."""
        return self._due if self._every and self._dying is None else math.inf

    def check(self, now: float) -> None:
        """See whether the child is silent for too long.

        Raises:
            GpuUnreadable: It is, and was given up.
        """
        if self._child is not None and now >= self._due:
            self._fail(f"the driver did not answer within {self._patience:g} s; see `dmesg`", now)

    def close(self) -> None:
        """End the child, and the watch."""
        self._end()
        if self._dying is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._dying.wait(1.0)
            _close(self._dying)
        self._epoll.close()

    def _start(self, now: float) -> None:
        self._child = subprocess.Popen(
            [*self._command, "--every", str(self._every)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        os.set_blocking(_output(self._child), False)
        self._epoll.register(_output(self._child), select.EPOLLIN)
        self._line = b""
        self._due = now + self._patience

    def _fail(self, why: str, now: float) -> NoReturn:
        self._end()
        self._due = now + self._retry
        raise GpuUnreadable(why)

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._dying, self._child = self._child, None

    def _bury(self) -> None:
        """Collect a killed child once its pipe says that it is gone."""
        if self._dying is not None and _read(self._dying) == b"":
            self._epoll.unregister(_output(self._dying))
            self._dying.wait()
            _close(self._dying)
            self._dying = None


def read_gpus(command: Sequence[str] = COMMAND, patience: float = PATIENCE) -> list[DeviceReading]:
    """Read all devices once, and wait for it.

    Raises:
        GpuUnreadable: That is not possible, or takes longer than `patience` seconds.
    """
    watch = GpuWatch(command, patience)
    try:
        watch.keep(time.monotonic(), wanted=True)
        while True:
            wait = max(watch.next_deadline() - time.monotonic(), 0.0)
            ready, _, _ = select.select([watch], [], [], wait)
            found = watch.receive(time.monotonic()) if ready else None
            if found is not None:
                return found
            watch.check(time.monotonic())
    finally:
        watch.close()


def _output(child: "subprocess.Popen[bytes]") -> int:
    assert child.stdout is not None, "it was started with a pipe"
    return child.stdout.fileno()


def _read(child: "subprocess.Popen[bytes]") -> bytes | None:
    """Read what is there: None if nothing is, nothing at end of file."""
    try:
        return os.read(_output(child), 1 << 16)
    except BlockingIOError:
        return None


def _close(child: "subprocess.Popen[bytes]") -> None:
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None, "it was started with a pipe"
        pipe.close()


# The child.


def main(argv: Sequence[str]) -> int:
    """Print readings until stdin ends; an error is printed like a reading, and ends it."""
    parser = argparse.ArgumentParser(prog="vllmport.pool.gpu", description=__doc__)
    parser.add_argument("--every", type=float, default=0.0, metavar="SECONDS")
    every = parser.parse_args(argv).every
    try:
        read = _open()
        while True:
            _say({"devices": [astuple(reading) for reading in read()]})
            if not every or select.select([sys.stdin], [], [], every)[0]:
                return 0
    except GpuUnreadable as exc:
        _say({"error": str(exc)})
        return 1


def _open() -> Callable[[], list[DeviceReading]]:
    """Load the library; return what reads all devices."""
    try:
        import pynvml as nvml
    except ImportError as exc:
        raise GpuUnreadable(
            "the library that reads the GPUs is missing: `pip install nvidia-ml-py`"
        ) from exc

    def read() -> list[DeviceReading]:
        try:
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            return [_device(nvml, index, handle) for index, handle in enumerate(handles)]
        except nvml.NVMLError as exc:
            raise GpuUnreadable(f"the driver cannot read the GPUs: {exc}") from exc

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        raise GpuUnreadable(
            f"the NVIDIA driver does not answer: {exc}; a container needs the capability "
            '"utility" in NVIDIA_DRIVER_CAPABILITIES'
        ) from exc
    return read


def _device(nvml: Any, index: int, handle: Any) -> DeviceReading:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        total, used = memory.total - memory.reserved, memory.used
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        total = used = 0  # memory that it shares with the processor, or a very old driver
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        running += nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
        pids = tuple(sorted({process.pid for process in running}))
    except nvml.NVMLError:
        running, pids = [], None
    # One that computes and draws is listed twice, each time with all that it uses.
    known = {p.pid: p.usedGpuMemory for p in running if p.usedGpuMemory is not None}
    return DeviceReading(index, uuid, total, used, pids, known)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
