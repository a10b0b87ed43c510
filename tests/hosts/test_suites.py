"""Each host's own tests pass."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HOSTS = Path(__file__).parents[2] / "hosts"

SUITES = {
    "node": ["npm", "--silent", "test"],
    "c": ["make", "--silent", "all", "test"],
    "elixir": ["mix", "test", "--warnings-as-errors"],
}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("host", SUITES)
def test_the_tests_of_a_host_pass(host: str, needs: Callable[[str], None]) -> None:
    needs(host)
    done = subprocess.run(
        SUITES[host], cwd=HOSTS / host, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
