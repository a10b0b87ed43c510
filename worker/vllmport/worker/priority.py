"""How much of the processor this session asks for, where the kernel divides it among sessions.

Outside of control groups Linux gives each session an equal share (autogroups, see `man 7 sched`),
and a worker is a session. A priority of one process says nothing to another session then. An engine
whose processes wait for each other without sleeping keeps all processors busy, and with equal
shares the supervisor and callers came to run seconds late. So a worker asks for less than they; as
they hardly compute, it still has nearly all.
"""

import contextlib
import errno
import random
import time
from pathlib import Path
from typing import Final

AUTOGROUP: Final = Path("/proc/self/autogroup")

WORKING: Final = 5
"""As the nice value of a session: a third of an equal share, where all of it is wanted."""

STANDING_BY: Final = 10
"""A tenth: what is imported for later must not slow the engine that works now."""

_TRIES: Final = 20


def give_way(nice: int) -> None:
    """Ask for the share that this nice value means; where there are no such shares do nothing.

    It may take seconds: the kernel grants one such wish in 100 ms, of all without privileges.
    """
    with contextlib.suppress(OSError):  # a kernel without autogroups, a /proc that is read only
        for _ in range(_TRIES):
            try:
                AUTOGROUP.write_text(str(nice))
            except OSError as exc:
                if exc.errno != errno.EAGAIN:
                    raise
                time.sleep(random.uniform(0.05, 0.2))  # noqa: S311  # no secret
            else:
                return
