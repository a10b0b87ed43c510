"""When vLLM's engine may run in a process of its own."""

import os

import pytest

from vllmport.bridge.errors import StartupFailed
from vllmport.worker.mode import GROUP_KILL, choose_mode, proof

WHY = "process_group_kill is false"


@pytest.mark.parametrize(
    ("asked", "unsafe", "switch", "name", "warned"),
    [
        ("auto", "", None, "on", ""),
        ("auto", "", "1", "on", ""),
        ("auto", "", "0", "off", "environment"),
        ("auto", WHY, None, "off", WHY),
        ("auto", WHY, "1", "off", WHY),
        ("on", "", None, "on", ""),
        ("on", "", "0", "on", "overrides"),
        ("off", "", None, "off", ""),
        ("off", WHY, None, "off", ""),
        ("off", "", "1", "off", "overrides"),
    ],
)
def test_the_mode_and_what_is_said_of_it(
    asked: str, unsafe: str, switch: str | None, name: str, warned: str
) -> None:
    mode = choose_mode(asked, unsafe, switch)
    assert mode.name == name
    assert bool(mode.warnings) == bool(warned)
    assert all(warned in text for text in mode.warnings)


def test_on_fails_fast_where_cleaning_up_is_not_sure() -> None:
    with pytest.raises(StartupFailed, match="process-group cleanup, but process_group_kill"):
        choose_mode("on", WHY, None)


def test_a_process_without_guard_or_session_is_not_safe() -> None:
    assert proof({GROUP_KILL: "0"}) == WHY
    expected = "guard" if os.getsid(0) == os.getpid() else "session"
    assert expected in proof({})
