"""How a stream's reader lets its sender go on. Pure."""

from vllmport.bridge.limits import DEFAULT_WINDOW


class Window:
    """The items that were read since the sender was given room.

    Args:
        size: How many items the sender had room for to begin with.
    """

    def __init__(self, size: int = DEFAULT_WINDOW) -> None:
        self.size = size
        self._taken = 0

    def took(self) -> int:
        """Count an item; return how many to give room for now: half a window, mostly none."""
        self._taken += 1
        if self._taken < self.size // 2:
            return 0
        taken, self._taken = self._taken, 0
        return taken
