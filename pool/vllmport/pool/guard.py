"""The guard: a shell beside each worker that acts when supervisor, spawner and worker died at once.

It blocks on the lifeline, whose other end only the spawner holds, and at end of file kills the
worker's group and all that carries its mark. Whoever else kills a worker kills the guard last:
until then there is one who finishes the work, whoever dies meanwhile.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import psutil

from vllmport.pool.processes import WORKER_TAG

# The shell's built-in read blocks until end of file. All killing is built in as well, for a guard
# must not depend on a fork. It reads the mark of every process from its limits, as often as it
# finds one that is no zombie; each time may be the first that sees a child of the one before. It
# does not count itself. Then the files go that nobody holds any more (`leftovers.py`).
GUARD: Final = (
    "/bin/sh",
    "-c",
    f"MARK=${WORKER_TAG}"
    """
read -r line
kill -KILL "-$GROUP"
cd /proc
for round in 1 2 3 4 5 6 7 8 9; do
    found=
    for limits in [1-9]*/limits; do
        pid=${limits%/*}
        [ "$pid" != $$ ] && [ -O "$limits" ] || continue
        while read -r _ what _ soft _; do
            [ "$what $soft" = "realtime $MARK" ] || continue
            read -r stat <"$pid/stat"
            case ${stat##*) } in [ZX]*) continue ;; esac
            kill -KILL "$pid" && found=1
        done <"$limits"
    done
    [ "$found" ] || break
done
[ "$MARK" ] && rm -rf /dev/shm/*"$MARK"* "$SCRATCH"
""",
)


def guards_last(found: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Leave the guards out while anybody else is there."""
    everybody = list(found)
    others = [process for process in everybody if not _is_guard(process)]
    return others or everybody


def _is_guard(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return tuple(process.cmdline()) == GUARD
    return False
