"""What is done with every socket of a supervisor: sending without a wait, looking for messages."""

from typing import Final

import zmq

from vllmport.bridge.codec import Bytes

# As plain numbers: pyzmq's own are flags of Python, which cost more than the call they are for.
DONT_WAIT: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


def send(socket: "zmq.Socket[bytes]", frames: tuple[Bytes, ...]) -> None:
    """Send a message now or not at all; large frames are not copied once more.

    Raises:
        zmq.Again: There is no room for it.
        zmq.ZMQError: Its receiver is gone.
    """
    for frame in frames[:-1]:
        socket.send(frame, _MORE, copy=False)
    socket.send(frames[-1], DONT_WAIT, copy=False)


def has_message(socket: "zmq.Socket[bytes]") -> bool:
    """Tell whether a message is there."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)
