"""Checks of the machine: what the kernel grants, and how much of it."""

import os
import resource
from pathlib import Path
from typing import Final

from vllmport.pool.doctor.finding import Finding, fail, ok, warn
from vllmport.pool.marks import can_mark
from vllmport.pool.processes import PR_SET_CHILD_SUBREAPER, become_subreaper, prctl
from vllmport.pool.supervisor.devices import GIB, gib

CGROUPS: Final = Path("/sys/fs/cgroup")

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # the kernel's name for it

ENOUGH_SHARED_MEMORY: Final = GIB
"""Bytes that tensor-parallel workers get by with; containers have 64 MiB unless told otherwise."""

ENOUGH_FILES: Final = 4096
FEW_FILES: Final = 256
"""Descriptors: two for each client, some for each worker, hundreds in an engine."""

ENOUGH_PROCESSES: Final = 4096
FEW_PROCESSES: Final = 512
"""Processes and threads of the user; one engine has a hundred threads and more."""

ENOUGH_LOCKED: Final = 64 * 2**20
"""Bytes that may be pinned; transfers between GPUs of several machines pin buffers."""


def check_pidfd() -> Finding:
    """The death of a process is seen through its pidfd."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as exc:
        return fail(
            "pidfd",
            f"pidfd_open is refused ({exc.strerror}), so a pool could not see its owner end",
            "use Linux 5.3 or newer, and a container whose seccomp profile allows pidfd_open",
        )
    return ok("pidfd", "processes can be watched by descriptor")


def check_subreaper() -> Finding:
    """What loses its parent has to fall to the spawner."""
    try:
        become_subreaper()
        prctl(PR_SET_CHILD_SUBREAPER, 0)
    except OSError as exc:
        return fail(
            "subreaper",
            f"PR_SET_CHILD_SUBREAPER is refused ({exc.strerror}), so orphans could escape",
            "use a container whose seccomp profile allows prctl",
        )
    return ok("subreaper", "orphans fall to their pool")


def check_mark() -> Finding:
    """A worker and all it starts are known by a resource limit that they inherit."""
    if can_mark():
        return ok("mark", "processes can be marked by a resource limit")
    return warn(
        "mark",
        "the hard limit RLIMIT_RTTIME is finite, so a child that clears its environment and leaves "
        "its session is known only while it descends from its pool",
        "raise it: `ulimit -R unlimited`, or LimitRTTIME=infinity in the unit",
    )


def check_cgroup(own: str, root: Path = CGROUPS) -> Finding:
    """With a cgroup of its own, a pool can kill even what hides from it.

    Args:
        own: The text of /proc/self/cgroup.
        root: Where cgroups are mounted.
    """
    lines = [line for line in own.splitlines() if line.startswith("0::/")]
    if not lines or not (root / "cgroup.controllers").exists():
        return _no_cgroup("this machine has no cgroup v2", "boot with the unified hierarchy")
    folder = root / lines[0].removeprefix("0::/")
    if not (folder / "cgroup.kill").exists():
        return _no_cgroup(
            f"{folder} has no cgroup.kill", "use Linux 5.14 or newer, below the root cgroup"
        )
    if not (os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)):
        return _no_cgroup(
            f"{folder} is not delegated to this user",
            "run the pool in a unit with Delegate=yes, or by "
            "`systemd-run --user --scope -p Delegate=yes`",
        )
    return ok("cgroup", f"{folder} is delegated and can be killed as a whole")


def _no_cgroup(text: str, remedy: str) -> Finding:
    lost = "a child that leaves its session and clears its environment may outlive its pool"
    return warn("cgroup", f"{text}: {lost}", remedy)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Processes of one engine talk through shared memory."""
    remedy = "mount a tmpfs there; a container takes `--shm-size=2g`, a pod an emptyDir in memory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return fail("shm", f"{folder} cannot be written", remedy)
    info = os.statvfs(folder)
    size, free = info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize
    text = f"{folder} has {gib(size)} GiB, {gib(free)} of it free"
    if free < ENOUGH_SHARED_MEMORY:
        return warn("shm", f"{text}: too little for tensor-parallel models", remedy)
    return ok("shm", text)


def check_open_files() -> Finding:
    """Each client and each worker takes descriptors."""
    return _check_limit(
        "open files", resource.RLIMIT_NOFILE, FEW_FILES, ENOUGH_FILES, "ulimit -n", "LimitNOFILE="
    )


def check_processes() -> Finding:
    """Threads count as processes here."""
    return _check_limit(
        "processes",
        resource.RLIMIT_NPROC,
        FEW_PROCESSES,
        ENOUGH_PROCESSES,
        "ulimit -u",
        "LimitNPROC=",
    )


def check_locked_memory(*, has_gpus: bool) -> Finding:
    """Pinned memory matters to GPUs only."""
    if not has_gpus:
        return ok("locked memory", "no GPU here needs pinned memory")
    return _check_limit(
        "locked memory", resource.RLIMIT_MEMLOCK, 0, ENOUGH_LOCKED, "ulimit -l", "LimitMEMLOCK="
    )


def _check_limit(
    name: str, limit: int, few: int, enough: int, command: str, setting: str
) -> Finding:
    soft, _ = resource.getrlimit(limit)
    if soft == resource.RLIM_INFINITY or soft >= enough:
        shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        return ok(name, f"the limit is {shown}")
    text = f"the limit is {soft}, and {enough} are advised"
    remedy = f"raise it: `{command} {enough}`, or {setting}{enough} in the unit"
    return fail(name, text, remedy) if soft < few else warn(name, text, remedy)
