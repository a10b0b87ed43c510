"""How long a call may take: the named profiles and the order in which they apply.

Pure. Seconds inside the program, milliseconds on the wire.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from vllmport.bridge.errors import InvalidRequest, shown
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


class Timeouts(NamedTuple):
    """What holds in one pool; WELCOME tells each client.

    Attributes:
        profiles: Name → seconds; the built-in ones and the pool's own.
        library: The profile of a call that names neither a timeout nor a profile.
        first_token: Seconds a stream may take to its first tokens.
        between_tokens: Seconds a stream may take between tokens.
    """

    profiles: Mapping[str, float] = PROFILES
    library: str = LIBRARY_PROFILE
    first_token: float = math.inf
    between_tokens: float = math.inf

    def seconds(self, timeout: float | None = None, profile: str | None = None) -> float:
        """Choose the seconds a call may take; see `resolve_timeout`."""
        return resolve_timeout(timeout, self.library if profile is None else profile, self.profiles)

    def pauses(
        self, first_token: float | None = None, between_tokens: float | None = None
    ) -> tuple[float, float]:
        """Choose the seconds a stream may wait for its first tokens, and for each that follow.

        Raises:
            InvalidRequest: One of them is not a positive number.
        """
        return (
            self.first_token if first_token is None else _positive("first_token", first_token),
            self.between_tokens
            if between_tokens is None
            else _positive("between_tokens", between_tokens),
        )

    def to_wire(self) -> dict[str, Any]:
        """Return plain data."""
        return {**self._asdict(), "profiles": dict(self.profiles)}


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
        if not isinstance(name, str) or name not in profiles:
            known = ", ".join(sorted(profiles))
            value = name if isinstance(name, str) else shown(name)
            text = f"unknown timeout profile {shown(name)}; known: {known}"
            raise InvalidRequest.of("timeout_profile", value, text)
        return profiles[name]
    return _positive("timeout", timeout)


def with_timeout(
    options: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    timeout_profile: str | None = None,
) -> dict[str, Any]:
    """Return options for a call with a timeout among them: `llm.generate(p, **with_timeout(…))`.

    Args:
        options: What the call is given besides.
        timeout: Seconds; wins over a profile.
        timeout_profile: The name of a profile.

    Raises:
        InvalidRequest: Neither is given, or the timeout is not a positive number.
    """
    if timeout is None and timeout_profile is None:
        text = "with_timeout needs timeout= or timeout_profile="
        raise InvalidRequest.of("timeout", None, text)
    limits: dict[str, Any] = {}
    if timeout is not None:
        limits["timeout"] = _positive("timeout", timeout)
    if timeout_profile is not None:
        limits["timeout_profile"] = timeout_profile
    return {**(options or {}), **limits}


def _positive(name: str, seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        text = f"{name} must be a positive number of seconds (math.inf for none), not {seconds!r}"
        raise InvalidRequest.of(name, seconds, text)
    return float(seconds)


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
