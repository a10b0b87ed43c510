"""Names for calls whose caller gives none: a random one for the process, and a number.

A random name for each call would cost a system call each.
"""

import itertools
import os
import secrets


class _RequestIds:
    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._process = secrets.token_hex(5)
        self._numbers = itertools.count(1)

    def new(self) -> str:
        """Return a name that no call of any process has had."""
        return f"{self._process}-{next(self._numbers)}"


new_request_id = _RequestIds().new
