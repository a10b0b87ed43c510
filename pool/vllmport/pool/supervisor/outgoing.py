"""What deciders want to have sent, as plain data. Pure."""

from typing import NamedTuple

from vllmport.bridge.codec import Bytes


class ToClient(NamedTuple):
    """Frames for one client."""

    client: int
    frames: list[Bytes]


class ToWorker(NamedTuple):
    """Frames for one worker."""

    worker: str
    frames: list[Bytes]
