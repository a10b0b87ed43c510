"""Checks of what earlier runs left: processes, shared memory, memory of GPUs."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.doctor.finding import Finding, fail, ok, warn
from vllmport.pool.endpoint import runtime_dir
from vllmport.pool.reap import reap
from vllmport.pool.supervisor.devices import GIB, DeviceReading, gib

SHARED_PREFIXES: Final = ("psm_", "sem.mp-", "torch_", "vllm", "nccl-")
"""How the files begin that engines make in shared memory."""

HELD: Final = GIB
"""Bytes in use on a device that drivers keep for themselves, at most."""

_SHOWN: Final = 5


def check_orphans(orphans: Sequence[str]) -> Finding:
    """Workers, and what they started, end with their pool.

    Args:
        orphans: What has outlived its pool, a text for each.
    """
    if orphans:
        return fail(
            "orphans",
            f"{len(orphans)} left by pools that are gone: {_some(orphans)}",
            "`vllmport reap --dry-run` shows them, `vllmport reap` ends them",
        )
    return ok("orphans", "no process outlived its pool")


def find_orphans() -> Iterator[str]:
    """Yield what `vllmport reap` would end; nothing where the runtime folder itself is bad."""
    with contextlib.suppress(InvalidRequest):
        for finding in reap(runtime_dir(), dry_run=True):
            if finding.outcome.startswith("would be"):
                yield finding.what


def check_shared_files(folder: Path) -> Finding:
    """Shared memory that nobody has mapped is lost to everybody."""
    mapped = _mapped()
    left = [path for path in _shared_files(folder) if str(path) not in mapped]
    if left:
        names = _some([path.name for path in left])
        return warn(
            "shared files",
            f"{len(left)} files in {folder} that no process here uses: {names}",
            f"remove them from {folder}, unless another container shares that folder",
        )
    return ok("shared files", f"nothing was left in {folder}")


def _shared_files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith(SHARED_PREFIXES) and path.stat().st_uid == os.getuid():
                    yield path


def _mapped() -> str:
    """Return the maps of all processes that may be read."""
    texts = []
    for maps in Path("/proc").glob("[1-9]*/maps"):
        with contextlib.suppress(OSError):
            texts.append(maps.read_text(errors="replace"))
    return "".join(texts)


def check_gpus(readings: Sequence[DeviceReading]) -> Finding:
    """Memory on a GPU belongs to a process, or it is lost until the driver is reset."""
    lost = [r for r in readings if r.pids == () and r.used > HELD]
    if lost:
        each = ", ".join(f"GPU {r.index} {gib(r.used)} GiB" for r in lost)
        return fail(
            "gpu memory",
            f"memory is in use that no process has: {each}",
            "run `vllmport reap`; if that frees nothing, `nvidia-smi --gpu-reset` or a reboot does",
        )
    each = ", ".join(f"GPU {r.index} {gib(r.used)} of {gib(r.total)} GiB in use" for r in readings)
    return ok("gpu memory", each or "no NVIDIA GPU on this machine")


def unreadable_gpus(problem: Exception) -> Finding:
    """There are GPUs, and the driver does not tell of them."""
    return fail(
        "gpu memory",
        f"the GPUs cannot be read: {problem}",
        "until `nvidia-smi` answers, workers start without a look at the memory",
    )


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
