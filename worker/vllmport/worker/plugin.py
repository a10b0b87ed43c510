"""What a worker's own vLLM processes do besides: EngineCore, and the workers of each device.

vLLM loads this in each of its processes (the entry point `vllm.general_plugins`). It does nothing
unless our variable is in the environment, so vLLM started by anybody else is as it always was.

- They correct what vLLM would compute wrongly, the worker itself as well; see `no_adapter.py`.
- They have the kernel kill them when the thread that started them ends. vLLM starts all of them
  from a main thread, which lives as long as its process.
- They tell why they fail to start; see `causes.py`.
- The shared memory that Python and vLLM name for them gets the mark into its name, so that it can
  be known and removed when they could not do that themselves, or do not. There is no public way to
  choose those names.
"""

import ctypes
import multiprocessing
import os
import secrets
import signal
import sys
import tempfile
from multiprocessing import process, shared_memory
from typing import Final

from vllmport.worker.causes import tell_causes
from vllmport.worker.no_adapter import spare_rows_without_adapter

WORKER_TAG: Final = "VLLMPORT_WORKER_TAG"
"""Environment variable with the mark of the worker that this process belongs to."""

_PR_SET_PDEATHSIG: Final = 1


def activate() -> None:
    """Correct this process, and make it end with its parent, if it is ours. vLLM calls this."""
    if WORKER_TAG not in os.environ:
        return
    if "vllm" in sys.modules:
        spare_rows_without_adapter()
        name_groups()
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # the worker itself, whose parent is the spawner
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not parent.is_alive():  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)
    name_shared_memory()
    tell_causes()


def name_groups() -> None:
    """Put the mark into the name of the file over which processes that compute together meet.

    vLLM names the memory that they share after it, on the CPU; and leaves that there.
    """
    name = f"vllm_dist_{os.environ[WORKER_TAG]}_"
    for module in map(sys.modules.get, _MEETING):
        if hasattr(module, "get_file_store_init_method"):
            module.get_file_store_init_method = lambda: (  # type: ignore[union-attr]
                f"file://{tempfile.gettempdir()}/{name}{secrets.token_hex(8)}"
            )


_MEETING: Final = (
    "vllm.utils.network_utils",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
)
"""Where vLLM makes that name, and those that may have imported it already."""


def name_shared_memory() -> None:
    """Put the mark into the names of shared memory and semaphores from here on.

    The latter is inherited by the processes that this one starts.
    """
    mark = os.environ.get(WORKER_TAG)
    if mark is None:
        return
    shared_memory._make_filename = lambda: f"/psm_{mark}_{secrets.token_hex(4)}"  # type: ignore[attr-defined]  # noqa: SLF001
    config: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    config["semprefix"] = f"/mp-{mark}"
