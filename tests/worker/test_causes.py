"""How a process of vLLM's tells the worker why it could not start."""

import logging
import os
import subprocess
import sys

import pytest

from vllmport.worker.causes import FILE, Cause, CauseFile, cause_file

CHILD = """
import logging
from vllmport.worker.causes import tell_causes

def too_small():
    raise ValueError("no room")

tell_causes()
logger = logging.getLogger("vllm.v1.engine.core")
logger.error("this is no exception")
try:
    too_small()
except ValueError:
    logger.exception("failed to start")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("what came of it")
"""


def told_by(code: str, file: CauseFile) -> Cause | None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    return file.read()


def test_the_first_exception_that_is_logged_is_told() -> None:
    with cause_file() as file:
        assert file.read() is None
        assert told_by(CHILD, file) == Cause(
            "builtins.ValueError", "no room", "__main__", "too_small"
        )
    assert FILE not in os.environ


def test_a_process_of_somebody_else_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with cause_file() as file:
        monkeypatch.delenv(FILE)
        assert told_by(CHILD, file) is None
        monkeypatch.setenv(FILE, "put back")
    tellers = (type(handler).__name__ for handler in logging.getLogger("vllm").handlers)
    assert "_Teller" not in tellers
