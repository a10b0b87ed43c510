"""Control groups for tests: made where this user may, gone afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from processes import eventually


@contextmanager
def control_group(*ways: tuple[str, str, str]) -> Iterator[Path]:
    """Make a group below this process's own, the first way that works; else skip the test.

    Args:
        ways: Controller ("" for the unified hierarchy), a file in the group, what to write there.
    """
    for controller, file, text in ways:
        group = _own(controller) / f"vllmport-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / file).exists():
                continue
            (group / file).write_text(text)
            yield group
            return
        finally:
            eventually(partial(_is_empty, group))
            group.rmdir()
    names = ", ".join(file for _, file, _ in ways)
    pytest.skip(f"this user may make no control group with {names}")


def _own(controller: str) -> Path:
    """Return the folder of this process's group: of a controller, or the unified one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names == controller:
            return Path("/sys/fs/cgroup") / controller / path.strip("/")
    return Path("/nowhere")


def _is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text().strip()
