"""Forks one worker, with a guard in its session.

The child leads a session and a process group of its own before anything else of it runs, so its
process group id equals its pid by construction, and carries its mark (`marks.py`). The guard is a
shell that blocks on the lifeline and, at end of file, kills the group and what else has the mark:
it acts when supervisor, spawner and worker all died at once.
"""

import os
import signal
from typing import NoReturn

from vllmport.pool.marks import put_mark
from vllmport.pool.processes import die_with_parent, kill_group
from vllmport.pool.spawner.protocol import SpawnRequest

# The shell's built-in read blocks until end of file. All killing is built in as well, for a guard
# must not depend on a fork. It reads the mark of every process from its limits, as often as it
# finds one that is no zombie; each time may be the first that sees a child of the one before. It
# does not count itself. Then the files go that nobody holds any more (`leftovers.py`). 0 is the
# group of the caller.
GUARD = (
    "/bin/sh",
    "-c",
    """read -r line
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
for group in "$SCRATCH"/vllm_dist_*; do
    rm -f /dev/shm/"${group##*/}"*
done
[ "$MARK" ] && rm -rf /dev/shm/*"$MARK"* "$SCRATCH"
kill -KILL 0""",
)

_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(request: SpawnRequest, stderr: int, lifeline: int) -> int:
    """Start what is asked for in its own session and return its pid once it runs.

    Raises:
        OSError: It could not be executed.
    """
    spawner = os.getpid()
    failed, failed_kept = os.pipe2(os.O_CLOEXEC)  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        _become_worker(request, stderr, lifeline, spawner, failed_kept)
    os.close(failed_kept)
    with os.fdopen(failed, "rb") as pipe:
        code = pipe.read()
    if code:
        kill_group(pid)  # the guard is in it
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)), request.argv[0])
    return pid


def _become_worker(
    request: SpawnRequest, stderr: int, lifeline: int, spawner: int, failed: int
) -> NoReturn:
    """Run in the child: never return, never run the parent's code."""
    try:
        os.setsid()
        put_mark(request.mark)
        _fork_guard(request, lifeline)
        die_with_parent(spawner)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        for signum in (*_DEAF_TO, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        os.execve(request.argv[0], request.argv, request.env)  # noqa: S606  # no shell
    except OSError as exc:
        os.write(failed, str(exc.errno).encode())
    finally:
        os._exit(127)


def _fork_guard(request: SpawnRequest, lifeline: int) -> None:
    """Leave a guard in this session. Forked twice: the worker must not meet an unknown child."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        if os.fork() == 0:
            for signum in _DEAF_TO:
                signal.signal(signum, signal.SIG_IGN)  # stays ignored across exec
            os.dup2(lifeline, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            env = {"MARK": str(request.mark), "SCRATCH": request.scratch}
            os.execve(GUARD[0], GUARD, env)  # noqa: S606  # a constant
    finally:
        os._exit(0)
