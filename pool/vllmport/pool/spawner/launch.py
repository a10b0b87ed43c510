"""Forks one worker, with a guard in its session.

The child leads a session and a process group of its own before anything else of it runs, so its
process group id equals its pid by construction, and carries its mark (`marks.py`). The guard is in
that session, in a group of its own, so that what kills the group leaves it (`guard.py`).
"""

import contextlib
import os
import signal
from typing import NoReturn

import psutil

from vllmport.pool.guard import GUARD
from vllmport.pool.marks import put_mark
from vllmport.pool.processes import WORKER_TAG, descendants, die_with_parent
from vllmport.pool.spawner.protocol import SpawnRequest

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
        _kill_session(pid)
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)), request.argv[0])
    return pid


def _kill_session(leader: int) -> None:
    """Kill the guard of a worker that did not come to run."""
    for process in descendants():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                process.kill()


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
    group = os.getpgrp()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        os.setpgid(0, 0)
        if os.fork() == 0:
            for signum in _DEAF_TO:
                signal.signal(signum, signal.SIG_IGN)  # stays ignored across exec
            os.dup2(lifeline, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            env = {
                WORKER_TAG: str(request.mark),
                "GROUP": str(group),
                "SCRATCH": request.scratch,
            }
            os.execve(GUARD[0], GUARD, env)  # noqa: S606  # a constant
    finally:
        os._exit(0)
