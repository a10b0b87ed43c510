"""The descriptors a supervisor watches besides its sockets, each with what is to be done."""

import select
from collections.abc import Callable


class Descriptors:
    """An epoll set that calls a handler for each descriptor that turns readable.

    It is a descriptor itself, so that a poller of sockets can hold all of it as one.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        """Return the descriptor that stands for all."""
        return self._epoll.fileno()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call the handler whenever `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Stop watching, if it is watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def unwatch_all(self, handler: Callable[[], None]) -> None:
        """Stop watching all that this handler was given for."""
        for fd in [fd for fd, known in self._handlers.items() if known == handler]:
            self.unwatch(fd)

    def handle(self) -> None:
        """Call the handlers of all that is readable now."""
        for fd, _ in self._epoll.poll(0):
            handler = self._handlers.get(fd)  # an earlier one may have ended the watch
            if handler is not None:
                handler()
