"""Runs every check, in the order in which one reads them."""

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from vllmport.pool.doctor.finding import Finding
from vllmport.pool.doctor.installation import (
    check_engine,
    check_interpreter,
    check_torchvision,
    check_versions,
    no_interpreter,
    probe,
)
from vllmport.pool.doctor.leftovers import (
    check_gpus,
    check_orphans,
    check_shared_files,
    find_orphans,
    unreadable_gpus,
)
from vllmport.pool.doctor.machine import (
    SHARED_MEMORY,
    check_cgroup,
    check_locked_memory,
    check_mark,
    check_open_files,
    check_pidfd,
    check_processes,
    check_shared_memory,
    check_subreaper,
)
from vllmport.pool.doctor.places import check_endpoint, check_folder
from vllmport.pool.gpu import GpuUnreadable, has_gpus, read_gpus


def examine(
    python: str, endpoint: str | None, orphans: Callable[[], Iterable[str]] = find_orphans
) -> Iterator[Finding]:
    """Yield what each check finds, as it finds it.

    Args:
        python: The interpreter of the workers.
        endpoint: Where the pool listens, or is to listen; None for the usual place.
        orphans: Finds what has outlived its pool.
    """
    gpus = has_gpus()
    yield check_versions()
    yield check_pidfd()
    yield check_subreaper()
    yield check_mark()
    yield check_cgroup(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    yield check_shared_memory()
    yield check_open_files()
    yield check_processes()
    yield check_locked_memory(has_gpus=gpus)
    yield check_folder()
    yield check_endpoint(endpoint)
    yield check_orphans(list(orphans()))
    yield check_shared_files(SHARED_MEMORY)
    yield _gpus(there=gpus)
    yield from _workers(python, has_gpus=gpus)


def _gpus(*, there: bool) -> Finding:
    try:
        return check_gpus(read_gpus() if there else [])
    except GpuUnreadable as exc:
        return unreadable_gpus(exc)


def _workers(python: str, *, has_gpus: bool) -> Iterator[Finding]:
    try:
        found = probe(python)
    except OSError as exc:
        yield no_interpreter(exc)
        return
    yield check_interpreter(found, version("vllmport"))
    yield check_engine(found, has_gpus=has_gpus)
    yield check_torchvision(found)
