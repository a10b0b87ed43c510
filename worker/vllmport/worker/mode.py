"""Which way the engine runs: in a process of its own, or in the worker.

A process of its own is safe only where killing the worker takes it along. `proof` looks whether
that is so; `choose_mode` decides, and is pure.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vllmport.bridge.errors import StartupFailed

SWITCH = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""vLLM's own variable for it: "1" or "0"."""

GROUP_KILL = "VLLMPORT_PROCESS_GROUP_KILL"
"""The pool's setting `process_group_kill`: "1" or "0"."""


class Mode(NamedTuple):
    """What was chosen.

    Attributes:
        name: "on" or "off".
        warnings: What the one who configured it should know.
    """

    name: str
    warnings: list[str]


def proof(environment: Mapping[str, str]) -> str:
    """Return why the engine may have no process of its own; "" if it may."""
    if environment.get(GROUP_KILL, "1") == "0":
        return "process_group_kill is false"
    if not os.getsid(0) == os.getpgrp() == os.getpid():
        return "this worker leads no session and process group"
    if not _guarded():
        return "no guard watches this worker"
    return ""


def choose_mode(asked: str, unsafe: str, switch: str | None) -> Mode:
    """Settle "auto", and refuse "on" where it is not safe.

    Args:
        asked: "auto", "on" or "off".
        unsafe: What `proof` says.
        switch: vLLM's own variable as the user set it, or None.

    Raises:
        StartupFailed: "on" was asked for, and it is not safe.
    """
    if asked == "on" and unsafe:
        text = f"v1_multiprocessing=on needs process-group cleanup, but {unsafe}; use auto or off"
        raise StartupFailed(text, phase="load")
    if asked != "auto":
        overridden = switch not in (None, _VALUE[asked])
        note = f"v1_multiprocessing={asked} overrides {SWITCH}={switch} of the environment"
        return Mode(asked, [note] if overridden else [])
    if switch == _VALUE["off"]:
        return Mode("off", [f"{SWITCH}=0 of the environment: v1_multiprocessing=off"])
    if unsafe:
        return Mode("off", [f"{unsafe}: v1_multiprocessing=off; say off to be told no more"])
    return Mode("on", [])


_VALUE = {"on": "1", "off": "0"}


def _guarded() -> bool:
    """Tell whether somebody else is in this session: the guard, for there is no child yet."""
    session, own = str(os.getsid(0)), str(os.getpid())
    for folder in Path("/proc").glob("[1-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[3] == session and folder.name != own:
            return True
    return False
