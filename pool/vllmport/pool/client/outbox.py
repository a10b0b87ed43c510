"""What a client says at one time, and so sends together: calls, and notes on calls, in their order.

Not safe to use from many threads: the connection's lock guards it, like the socket.
"""

from typing import Final

import zmq

from vllmport.bridge.bundles import FULL, bundled, is_small
from vllmport.bridge.codec import Bytes

_DONT_WAIT: Final = int(zmq.NOBLOCK)


class Outbox:
    """Messages that wait to be sent.

    Args:
        socket: Where they go.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._waiting: list[tuple[int, list[Bytes]]] = []
        self._large = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether there is no use in waiting for more."""
        return self._large or len(self._waiting) >= FULL

    def add(self, frames: list[Bytes], call_id: int = 0) -> None:
        """Add a message; `call_id` if it is a call."""
        self._waiting.append((call_id, frames))
        self._large = self._large or not is_small(frames)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting, self._large = [], False

    def send(self) -> list[int]:
        """Send it all; return what the other side does not take now: call ids, 0 for a note."""
        waiting = self._waiting
        self.clear()
        sent = 0
        try:
            for count, frames in bundled(frames for _, frames in waiting):
                self._socket.send_multipart(frames, _DONT_WAIT)
                sent += count
        except zmq.Again:
            return [call_id for call_id, _ in waiting[sent:]]
        return []
