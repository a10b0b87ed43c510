"""The files that dead workers leave, and how to know whose they were.

Each worker has a temporary folder of its own, named after its mark: sockets and files that vLLM
makes by `tempfile` are in there, and go with it. Shared memory has no folders, so its names tell:
what Python's multiprocessing names (`psm_…`, `sem.mp-…`), and vLLM (`vllm_dist_…`), has the mark in
its name, because the worker and the plugin in its children see to that (`worker/…/plugin.py`).

So nothing is removed that could be anybody else's, and what a killed program of the user left is
not touched. Knows files; whoever calls knows that the workers are dead.
"""

import contextlib
import getpass
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from vllmport.pool.marks import Wanted, is_mark

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # the kernel's name for it

_MAX_SOCKET_PATH: Final = 107 - len("/00000000-0000-0000-0000-000000000000")
_NUMBERS: Final = re.compile(r"\d{19}")


def scratch_of(mark: int, env: Mapping[str, str]) -> Path:
    """Return the path of the temporary folder for a worker with this environment."""
    path = Path(env.get("TMPDIR") or tempfile.gettempdir()) / f"vllmport-{mark}"
    if len(bytes(path)) <= _MAX_SOCKET_PATH:
        return path
    return Path("/tmp") / path.name  # noqa: S108  # else vLLM's sockets would not fit


def with_scratch(env: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Lead a worker's temporary files into its folder.

    Caches that outlive workers, and places where others are found, stay where they were.
    """
    usual = tempfile.gettempdir()
    changed = {**env, "TMPDIR": str(scratch)}
    # Not first: setproctitle looks for the first one where exec put it, and torch sets this anew.
    changed.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{usual}/torchinductor_{_user()}")
    changed.setdefault("RAY_TMPDIR", usual)
    return changed


def _user() -> str:
    """Return the user's name as torch writes it in the name of its cache."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have none
        return f"uid_{os.getuid()}"


def leftovers(wanted: Wanted, scratches: Iterable[Path]) -> list[Path]:
    """Return the shared memory and the folders that dead workers left."""
    folders = [path for path in scratches if path.is_dir() and not path.is_symlink()]
    return [*(path for path in SHARED_MEMORY.iterdir() if _is_of(path, wanted)), *folders]


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders; one that is gone, or not ours to remove, is passed over."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_of(path: Path, wanted: Wanted) -> bool:
    numbers = map(int, _NUMBERS.findall(path.name))
    return any(is_mark(number) and wanted(number) for number in numbers)
