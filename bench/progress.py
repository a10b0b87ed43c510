"""What a long run says while it goes on."""

import time
from typing import Final

BEGUN: Final = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - BEGUN:6.1f} s] {text}", flush=True)
