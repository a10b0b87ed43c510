"""Why a process of vLLM's own could not start: told to the worker, which sees only that it did not.

vLLM logs what went wrong in the process where it went wrong, and the worker gets a general error.
There, a handler of that log writes the exception's class and origin into a file that the worker
named; the first one counts. Nothing here imports vLLM.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = "VLLMPORT_CAUSE_FILE"
"""Environment variable with the file's path."""


class Cause(NamedTuple):
    """What an exception was.

    Attributes:
        name: Full name of its class.
        text: Its message.
        module: Where it was raised.
        function: In which function.
    """

    name: str
    text: str
    module: str
    function: str

    @classmethod
    def of(cls, error: BaseException) -> "Cause":
        """Describe an exception that was raised."""
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        trace = error.__traceback__
        if trace is None:
            return cls(name, str(error), "", "")
        while trace.tb_next is not None:
            trace = trace.tb_next
        frame = trace.tb_frame
        return cls(name, str(error), frame.f_globals.get("__name__", ""), frame.f_code.co_name)


class CauseFile:
    """The file, as the worker sees it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> Cause | None:
        """Return what was told, if anything was."""
        text = Path(self._path).read_text()
        return Cause(*json.loads(text)) if text else None


@contextmanager
def cause_file() -> Iterator[CauseFile]:
    """Have processes that are started in the block tell why they fail."""
    with tempfile.NamedTemporaryFile(prefix="vllmport-cause-") as file:
        os.environ[FILE] = file.name
        try:
            yield CauseFile(file.name)
        finally:
            del os.environ[FILE]


def tell_causes() -> None:
    """Tell what vLLM logs of exceptions in this process, if a worker wants to know."""
    path = os.environ.get(FILE)
    if path is not None:
        logging.getLogger("vllm").addHandler(_Teller(path))


class _Teller(logging.Handler):
    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        try:
            if Path(self._path).stat().st_size == 0:
                Path(self._path).write_text(json.dumps(Cause.of(error)))
        except OSError:  # the worker has gone on, or is gone
            self.handleError(record)
