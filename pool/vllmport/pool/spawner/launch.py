"""Forks one worker, with a guard in its session.

The child leads a session and a process group of its own before anything else of it runs, so its
process group id equals its pid by construction. The guard is a shell that blocks on the lifeline
and, at end of file, kills the group: it acts when supervisor, spawner and worker all died at once.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from vllmport.pool.processes import die_with_parent

# The shell's built-in read blocks until end of file; 0 is the group of the caller.
GUARD = ("/bin/sh", "-c", "read -r line; kill -KILL 0")

_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(argv: Sequence[str], env: Mapping[str, str], stderr: int, lifeline: int) -> int:
    """Start `argv` in its own session and return its pid once it runs.

    Raises:
        OSError: It could not be executed.
    """
    spawner = os.getpid()
    failed, failed_kept = os.pipe2(os.O_CLOEXEC)  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        _become_worker(argv, env, stderr, lifeline, spawner, failed_kept)
    os.close(failed_kept)
    with os.fdopen(failed, "rb") as pipe:
        code = pipe.read()
    if code:
        os.waitpid(pid, 0)
        raise OSError(int(code), os.strerror(int(code)), argv[0])
    return pid


def _become_worker(
    argv: Sequence[str],
    env: Mapping[str, str],
    stderr: int,
    lifeline: int,
    spawner: int,
    failed: int,
) -> NoReturn:
    """Run in the child: never return, never run the parent's code."""
    try:
        os.setsid()
        _fork_guard(lifeline)
        die_with_parent(spawner)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        for signum in (*_DEAF_TO, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        os.execve(argv[0], list(argv), dict(env))  # noqa: S606  # an argument list, no shell
    except OSError as exc:
        os.write(failed, str(exc.errno).encode())
    finally:
        os._exit(127)


def _fork_guard(lifeline: int) -> None:
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
            os.execve(GUARD[0], GUARD, {})  # noqa: S606  # a constant
    finally:
        os._exit(0)
