"""How long a call may take: the named profiles and the order in which they apply.

Pure. Seconds inside the program, milliseconds on the wire.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.limits import MAX_TIMEOUT_MS

PROFILES: Final[Mapping[str, float]] = MappingProxyType(
    {
        "default": 120.0,
        "streaming": 1800.0,
        "ml_inference": 600.0,
        "batch_job": 3600.0,
    }
)
"""Profile name → seconds for the whole call, waiting in the queue included."""

LIBRARY_PROFILE: Final = "ml_inference"
"""The profile of a call that names neither a timeout nor a profile."""


def resolve_timeout(
    timeout: float | None = None,
    profile: str | None = None,
    profiles: Mapping[str, float] = PROFILES,
) -> float:
    """Choose the seconds a call may take: exact timeout, else profile, else the library's.

    Args:
        timeout: Seconds; `math.inf` for no limit; None to let the profile decide.
        profile: A key of `profiles`; ignored where `timeout` is given.
        profiles: The table to look `profile` up in.

    Returns:
        Seconds, possibly `math.inf`.

    Raises:
        InvalidRequest: The timeout is not a positive number or the profile is unknown.
    """
    if timeout is None:
        name = LIBRARY_PROFILE if profile is None else profile
        if name not in profiles:
            known = ", ".join(sorted(profiles))
            raise InvalidRequest.of(
                "timeout_profile", profile, f"unknown timeout profile {name!r}; known: {known}"
            )
        return profiles[name]
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise InvalidRequest.of(
            "timeout",
            timeout,
            f"timeout must be a positive number of seconds (math.inf for none), not {timeout!r}",
        )
    return float(timeout)


def to_wire(seconds: float) -> int | None:
    """Turn seconds left into the wire's whole milliseconds; None stands for no limit.

    More than MAX_TIMEOUT_MS is cut to it.
    """
    if math.isinf(seconds):
        return None
    return math.ceil(min(max(seconds * 1000, 0), MAX_TIMEOUT_MS))


def milliseconds(seconds: float) -> int | None:
    """Turn seconds to wait into what poll(2) takes: rounded up, never negative, None for ever."""
    if math.isinf(seconds):
        return None
    return min(max(math.ceil(seconds * 1000), 0), MAX_TIMEOUT_MS)


def from_wire(remaining_ms: int | None, now: float) -> float:
    """Turn the wire's milliseconds left into an absolute deadline on this hop's clock."""
    return math.inf if remaining_ms is None else now + remaining_ms / 1000
