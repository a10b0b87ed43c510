"""Python's own warnings, for the person whose program calls: of old names that were translated.

They are of a class that is shown unless it is switched off, and point at the caller's own line.
"""

import sys
import warnings


def tell(text: str) -> None:
    """Warn of something old in the call that is being made."""
    level, frame = 1, sys._getframe()  # noqa: SLF001  # documented; inspect reads sources
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("vllmport."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, FutureWarning, stacklevel=level)
