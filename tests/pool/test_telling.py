"""Warnings of old names, as a program sees them that has set no filter."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """\
from vllmport.pool.client.llm import warn_of
from vllmport.pool.client.results import result_from

DATA = {"request_id": "a", "prompt": "", "prompt_token_ids": [], "finished": True}

def helper():
    result_from({**DATA, "notes": ["vLLM calls guided_json something else"]})

warn_of({"name": "m", "notes": ["vLLM has removed swap_space"]})
helper()
"""


def test_warnings_are_shown_by_default_and_name_the_callers_line(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True)
    assert f"{path}:9: FutureWarning: model 'm': vLLM has removed swap_space" in done.stderr
    assert f"{path}:7: FutureWarning: vLLM calls guided_json something else" in done.stderr
