"""What workers write to stderr: into a file each, the last lines at hand."""

import contextlib
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections import deque
from io import FileIO
from typing import Final

logger = logging.getLogger("vllmport.supervisor")

TAIL_LINES: Final = 40
MAX_FILE: Final = 8 * 2**20
KEEP_FILES: Final = 3
MAX_LINE: Final = 4096


class WorkerStderr:
    """Reads one worker's stderr pipe and writes it to a file that rotates."""

    def __init__(self, folder: str, worker: str) -> None:
        self._folder = folder
        self.path = _log_path(folder, worker)
        self._pipe, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._write_end, True)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._rest = b""
        self._file = _open(self.path)

    def fileno(self) -> int:
        return self._pipe

    @property
    def write_end(self) -> int:
        """The end for the worker; close it here once it was handed over."""
        return self._write_end

    def handed_over(self) -> None:
        """Close the worker's end in this process."""
        os.close(self._write_end)

    @property
    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        rest = [self._rest.decode(errors="replace")] if self._rest else []
        return [*self._tail, *rest]

    def read(self) -> bool:
        """Take what is there; return False at end of file."""
        try:
            data = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._write(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_LINE:]
        self._tail.extend(line[:MAX_LINE].decode(errors="replace") for line in lines[-TAIL_LINES:])
        return True

    def drain(self) -> None:
        """Take all that is left, after the worker ended."""
        while True:
            before = (len(self._tail), self._rest)
            if not self.read() or before == (len(self._tail), self._rest):
                return

    def rename(self, worker: str) -> None:
        """Go on in this worker's file; what was written so far moves to its end."""
        before, self.path = self.path, _log_path(self._folder, worker)
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = _open(self.path)
        with contextlib.suppress(OSError):
            with open(before, "rb") as so_far:
                shutil.copyfileobj(so_far, self._file)
            os.unlink(before)

    def close(self) -> None:
        """Close the pipe and the file."""
        os.close(self._pipe)
        self._file.close()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the supervisor
            if self._file.tell() > MAX_FILE:
                self._rotate()
            self._file.write(data)

    def _rotate(self) -> None:
        """Begin a new file, whatever became of the older ones: somebody may have removed them."""
        with contextlib.suppress(OSError):
            self._file.close()
        names = [self.path, *(f"{self.path}.{index}" for index in range(1, KEEP_FILES + 1))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(OSError):
                os.replace(newer, older)
        self._file = _open(self.path)


def _open(path: str) -> FileIO:
    """Open for as long as the worker lives; nowhere, if the folder cannot be written to."""
    try:
        return FileIO(path, "ab")
    except OSError as exc:
        logger.warning("no log of a worker's stderr: %s", exc)
        return FileIO(os.devnull, "ab")


def _log_path(folder: str, worker: str) -> str:
    """Name the file after the worker, also where its name is no file name."""
    readable = re.sub(r"[^\w.-]+", "_", worker)[-80:]
    unique = hashlib.blake2s(worker.encode(), digest_size=4).hexdigest()
    return f"{folder}/{readable}-{unique}.stderr"
