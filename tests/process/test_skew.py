"""A worker of another version is refused, with both versions named."""

import stat
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from vllmport.pool import Pool, StartupFailed

OTHER_VERSION = """#!{python}
import importlib.metadata, runpy, sys

real = importlib.metadata.version
importlib.metadata.version = lambda name: "9.9.9" if name == "vllmport" else real(name)
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_worker_of_another_version_is_refused_and_both_are_named(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(OTHER_VERSION.format(python=sys.executable))
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    with Pool(python=str(interpreter)) as pool, pytest.raises(StartupFailed) as caught:
        pool.llm("echo")
    assert "9.9.9" in str(caught.value)
    assert version("vllmport") in str(caught.value)
    assert caught.value.interpreter == str(interpreter)
