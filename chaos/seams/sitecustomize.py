"""Read by each Python that is started with this folder on its path: two seams for the matrix.

CHAOS_BLUNT takes the spawner the means to signal anything: the matrix has to turn red then.
CHAOS_SLOW_IMPORT has a worker wait so many seconds before it does anything, so that it can be met
there.
"""

import os
import sys
import time


def _runs(module: str) -> bool:
    return module in sys.orig_argv


def _blunt() -> None:
    import psutil

    def nothing(*_: object) -> None:
        """Signal nobody."""

    for owner, names in {
        os: ("kill", "killpg"),
        __import__("signal"): ("pidfd_send_signal",),
        psutil.Process: ("kill", "terminate", "send_signal"),
    }.items():
        for name in names:
            setattr(owner, name, nothing)


if os.environ.get("CHAOS_BLUNT") and _runs("vllmport.pool.spawner"):
    _blunt()
if os.environ.get("CHAOS_SLOW_IMPORT") and _runs("vllmport.worker"):
    time.sleep(float(os.environ["CHAOS_SLOW_IMPORT"]))
