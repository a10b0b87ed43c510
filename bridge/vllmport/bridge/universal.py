"""Universal calls: the verbs that reach any documented object of the library in the worker.

Pure: names only. What they take and give is in section 17 of `bridge/PROTOCOL.md`.
"""

from enum import StrEnum
from typing import Final


class Verb(StrEnum):
    """The verbs of universal calls; the role `ffi` is for them."""

    CALL = "ffi.call"
    """Call a function, a class or a method of a class, by module and dotted name."""
    GET = "ffi.get"
    """Read a value, by module and dotted name."""
    ATTR = "ffi.attr"
    """Read an attribute of a ref."""
    SET_ATTR = "ffi.set_attr"
    """Set an attribute of a ref."""
    METHOD = "ffi.method"
    """Call a method of a ref."""
    ITEM = "ffi.item"
    """Read `ref[key]`."""
    ITERATE = "ffi.iterate"
    """Stream what iterating over a ref gives."""
    RELEASE = "ffi.release"
    """Let go of refs."""
    END = "ffi.end"
    """End the session; the supervisor answers this one."""


UNIVERSAL: Final = frozenset(Verb)
"""All verbs of universal calls."""


class Affinity(StrEnum):
    """What becomes of a call whose session's worker has no room."""

    HINT = "hint"
    """It goes to another worker if the session holds no refs, else it waits."""
    STRICT_QUEUE = "strict_queue"
    """It waits for that worker."""
    STRICT_FAIL_FAST = "strict_fail_fast"
    """It fails at once with `overloaded`."""


ROOT: Final = "engine"
"""The module name under which the loaded engine's own objects are."""

MAX_NESTED: Final = 12
"""Containers inside each other in a result; what lies deeper becomes a ref."""
