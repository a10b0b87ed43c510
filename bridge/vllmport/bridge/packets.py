"""Messages ↔ packets: how frames travel over a plain stream of bytes, for hosts without ZeroMQ.

Pure. A packet is its length as 4 bytes, big-endian, then the frames of one message, each with its
own length before it in the same way. That is what Erlang calls `{packet, 4}`.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from vllmport.bridge.codec import Bytes
from vllmport.bridge.errors import ProtocolError
from vllmport.bridge.limits import MAX_BUFFERS, MAX_FRAME, MAX_PACKET

LENGTH: Final = 4
"""Bytes of a length."""


def to_packet(frames: Sequence[Bytes]) -> bytes:
    """Turn the frames of a message into a packet, its length included.

    Raises:
        ProtocolError: It takes more than MAX_PACKET bytes.
    """
    size = sum(LENGTH + len(frame) for frame in frames)
    if size > MAX_PACKET:
        raise ProtocolError(f"a message of {size} bytes, a packet takes {MAX_PACKET}")
    parts: list[Bytes] = [size.to_bytes(LENGTH, "big")]
    for frame in frames:
        parts += (len(frame).to_bytes(LENGTH, "big"), frame)
    return b"".join(parts)


class PacketReader:
    """Takes bytes as they come, gives messages as they are complete."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished packet are here."""
        return len(self._data)

    def feed(self, data: Bytes) -> Iterator[list[bytes]]:
        """Add bytes; yield the frames of each message that is complete now.

        Raises:
            ProtocolError: The bytes are no packets, or too large ones. Nothing can follow.
        """
        self._data += data
        while len(self._data) >= LENGTH:
            size = int.from_bytes(self._data[:LENGTH], "big")
            if size > MAX_PACKET:
                raise ProtocolError(f"a packet of {size} bytes, the limit is {MAX_PACKET}")
            if len(self._data) < LENGTH + size:
                return
            with memoryview(self._data)[LENGTH : LENGTH + size] as body:
                frames = _frames_of(body)
            del self._data[: LENGTH + size]
            yield frames


def _frames_of(body: memoryview) -> list[bytes]:
    frames: list[bytes] = []
    at = 0
    while at < len(body):
        start = at + LENGTH
        at = start + int.from_bytes(body[at:start], "big")
        if start > len(body) or at > len(body):
            raise ProtocolError("a frame ends outside its packet")
        if at - start > MAX_FRAME:
            raise ProtocolError(f"frame of {at - start} bytes, the limit is {MAX_FRAME}")
        frames.append(bytes(body[start:at]))
        if len(frames) > 2 + MAX_BUFFERS:
            raise ProtocolError(f"a message has 2 to {2 + MAX_BUFFERS} frames, got more")
    if len(frames) < 2:
        raise ProtocolError(f"a message has 2 to {2 + MAX_BUFFERS} frames, got {len(frames)}")
    return frames
