"""The numbers both ends of the wire agree on; `bridge/PROTOCOL.md` repeats them.

Pure: constants only.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""The version this code speaks. HELLO offers a list, WELCOME picks one."""

MAX_HEADER: Final = 256 * 1024
"""Bytes in a header frame. A header of 1,000 streams in one ITEMS takes about 12 KiB."""

MAX_PAYLOAD: Final = 16 * 1024 * 1024
"""Bytes in a payload frame: structured data. Bulk data travels in buffers."""

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes in any one frame; the transport cuts off a peer that sends more."""

MAX_BUFFERS: Final = 64
"""Buffer frames in one message."""

MAX_BUNDLE: Final = 256
"""Messages in a bundle: as many as are taken from one side before the others get their turn."""

MAX_PACKET: Final = 128 * 1024 * 1024
"""Bytes in a packet, which is a whole message on a stream of bytes."""

MAX_DEPTH: Final = 16
"""Extension types inside extension types: each level copies what is in it. Dimensions of an array.

Plain arrays and maps nest to msgpack's own limit."""

MAX_BIGINT: Final = 1024
"""Bytes in an integer beyond 64 bits; Python prints none of more than 4,300 digits."""

BUFFER_THRESHOLD: Final = 4096
"""Arrays of this many bytes or more leave the payload and become a buffer frame."""

MAX_CONTROL: Final = 1024 * 1024
"""Bytes of arguments in a call to the pool itself, which the supervisor has to unpack."""

MAX_NAME: Final = 1024
"""Characters in a model name, a verb, a request id."""

MAX_TEXT: Final = 32 * 1024
"""Characters in an error message: with four bytes each they still fit into a header."""

MAX_TIMEOUT_MS: Final = 2_000_000_000
"""Milliseconds, 23 days: operating systems wait for 2**31 - 1 at most. Longer is cut to it."""

DEFAULT_WINDOW: Final = 256
"""Stream items that may be on their way before the reader grants more."""

DEADLINE_GRACE_MS: Final = 1000
"""How long after a deadline the hop above waits for the hop below to report it."""
