"""`make fuzz`, in small."""

import subprocess
import sys
from pathlib import Path

from processes import environment

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_pool.py"


def test_damaged_messages_over_sockets_and_ports_disturb_no_other_client() -> None:
    command = [sys.executable, str(SCRIPT), "--frames", "5000", "--seed", "7"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5000 damaged messages in")
