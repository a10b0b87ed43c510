"""What `make gpu-check` runs on a machine with an NVIDIA GPU; no other run collects it."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Stay out of every run that did not ask for these tests."""
    return True if config.getoption("markexpr") != "gpu" else None
