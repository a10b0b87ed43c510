"""How long a stream may keep its reader waiting: for the first tokens, and between tokens.

Pure. Only the time that the reader really waits counts, not the time it takes over a token.
"""

import math
from collections.abc import Iterable

from vllmport.bridge.errors import DeadlineExceeded
from vllmport.pool.client.results import Delta


class Pauses:
    """The two limits of one stream.

    Args:
        first: Seconds to the first tokens, from `now`, waiting in the queue included.
        between: Seconds between tokens.
        now: When the call was made.
    """

    def __init__(self, first: float, between: float, now: float) -> None:
        self._first, self._between = first, between
        self._due = now + first
        self.tokens = 0

    def left(self, now: float) -> float | None:
        """Return for how long to wait for the next tokens; None for as long as it takes."""
        seconds = self._between if self.tokens else self._due - now
        return None if math.isinf(seconds) else max(0.0, seconds)

    def took(self, deltas: Iterable[Delta]) -> None:
        """Count what came."""
        self.tokens += sum(len(delta.token_ids) for delta in deltas)

    def exceeded(self) -> DeadlineExceeded:
        """Build the error for a wait that was too long."""
        limit = "between_tokens" if self.tokens else "first_token"
        seconds = self._between if self.tokens else self._first
        what = f"after {self.tokens} tokens none came" if self.tokens else "no token came"
        return DeadlineExceeded(
            f"{what} within {seconds:g} s ({limit})",
            phase="decode" if self.tokens else "prefill",
            details={"tokens": self.tokens, "partial": None, "limit": limit},
        )
