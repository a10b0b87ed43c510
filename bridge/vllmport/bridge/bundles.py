"""Several small messages in one: what is sent at one time costs one wake-up on each hop.

Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from vllmport.bridge.codec import Bytes, pack, unpack
from vllmport.bridge.errors import ProtocolError
from vllmport.bridge.limits import MAX_BUNDLE
from vllmport.bridge.messages import Bundle, Message, decode, encode

FULL: Final = 32
"""Messages in a bundle. More would let whoever reads them idle while they are collected."""

FULL_BYTES: Final = 16 * 1024
"""Bytes after which a bundle is full; messages that large go by themselves."""


def bundled(messages: Iterable[list[Bytes]]) -> Iterator[tuple[int, list[Bytes]]]:
    """Turn messages into fewer that say the same in the same order; yield how many each holds."""
    small: list[list[Bytes]] = []
    size = 0
    for frames in messages:
        if not is_small(frames):
            if small:
                yield len(small), _joined(small)
                small, size = [], 0
            yield 1, frames
            continue
        small.append(frames)
        size += len(frames[1])
        if len(small) == FULL or size > FULL_BYTES:
            yield len(small), _joined(small)
            small, size = [], 0
    if small:
        yield len(small), _joined(small)


def is_small(frames: list[Bytes]) -> bool:
    """Tell whether a message may be in a bundle."""
    return len(frames) == 2 and len(frames[1]) < FULL_BYTES


def unbundled(frames: Sequence[Bytes]) -> Iterator[tuple[Message, Sequence[Bytes]]]:
    """Yield the messages that arrived as one, decoded, each with its frames.

    Raises:
        ProtocolError: One of them is bad; those before it were yielded.
    """
    message, payload, _ = decode(frames)
    if not isinstance(message, Bundle):
        yield message, frames
        return
    for part in _parts(message.sizes, unpack(payload)):
        inner, _, _ = decode(part)
        if isinstance(inner, Bundle):
            raise ProtocolError("a bundle inside a bundle")
        yield inner, part


def _joined(messages: list[list[Bytes]]) -> list[Bytes]:
    if len(messages) == 1:
        return messages[0]
    parts = [frame for frames in messages for frame in frames]
    return encode(Bundle(list(map(len, parts))), pack(b"".join(parts)))


def _parts(sizes: list[int], joined: Any) -> Iterator[list[Bytes]]:
    if not 1 <= len(sizes) // 2 <= MAX_BUNDLE or len(sizes) % 2 or min(sizes) < 0:
        raise ProtocolError(f"a bundle has 1 to {MAX_BUNDLE} messages, two sizes for each")
    if not isinstance(joined, bytes) or sum(sizes) != len(joined):
        raise ProtocolError("the payload of a bundle is binary, and as long as its sizes say")
    at = 0
    pairs = iter(sizes)
    for header, body in zip(pairs, pairs, strict=True):
        middle = at + header
        end = middle + body
        yield [joined[at:middle], joined[middle:end]]
        at = end
