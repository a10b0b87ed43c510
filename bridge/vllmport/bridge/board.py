"""What a worker leaves on record while it works, in memory that outlives it.

Pure: reads and writes a buffer. Worker and supervisor map the same file, so that the supervisor
knows without a message, also of a worker that hangs or was killed, how often its loop turned, how
many steps its engine made, whether that sleeps, and of each call whether it was started and how
many tokens it had.

All numbers are in the machine's byte order. A head of 32 bytes: turns of the loop, steps of the
engine, tokens it has made, 1 while it sleeps (u64 each). Then a slot of 24 bytes for each call the
worker holds: client (i64), call id (i64), tokens (u32), state (u32). The state is written last and
cleared first, so that a slot in use is whole, whenever its writer was killed.

A call that has ended stays on record until its slot is needed, and the slot that was free longest
is used first: so whoever never heard of the end of a call, because its worker was killed before it
was sent, can tell it from one that the worker never had.
"""

from collections import deque
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

SLOTS: Final = 8192
"""Calls one worker can hold on record, and so the most it is given at one time."""

_HEAD: Final = Struct("=QQQQ")
_NUMBER: Final = Struct("=Q")
_SLOT: Final = Struct("=qqI")
_HEAD_SIZE: Final = 32
_SLOT_SIZE: Final = 24
_WORDS: Final = _SLOT_SIZE // 4
_TOKENS: Final = (_HEAD_SIZE + 16) // 4
_STATE: Final = (_HEAD_SIZE + 20) // 4
_MAX_TOKENS: Final = 2**32 - 1

SIZE: Final = _HEAD_SIZE + SLOTS * _SLOT_SIZE
"""Bytes of the buffer."""


class Held(IntEnum):
    """How far a call on a worker has come."""

    NOTHING = 0
    """The slot is free."""
    WAITING = 1
    """It waits inside the worker; nothing was computed for it."""
    STARTED = 2
    """The engine has it, or is about to take it."""
    ENDED = 3
    """Its terminal message was sent; the slot is free."""


class OnRecord(NamedTuple):
    """One call, as the board has it."""

    held: Held
    tokens: int


class Board:
    """Both ends of the record.

    Args:
        buffer: Writable for a worker; at least `SIZE` bytes, zero at first.
    """

    def __init__(self, buffer: memoryview | bytearray) -> None:
        self._buffer = buffer
        self._words = memoryview(buffer).cast("I")  # the quickest way to tokens and states
        self._free = deque(range(SLOTS))
        self._turns = 0

    # The worker writes.

    def turn(self, steps: int, tokens: int, *, asleep: bool = False) -> None:
        """Record one more turn of the loop, and how the engine is: steps and tokens so far."""
        self._turns += 1
        _HEAD.pack_into(self._buffer, 0, self._turns, steps, tokens, asleep)

    def hold(self, client: int, call_id: int, held: Held) -> int:
        """Record a call and return its slot.

        Raises:
            IndexError: There are `SLOTS` calls on record already.
        """
        slot = self._free.popleft()
        self._words[slot * _WORDS + _STATE] = Held.NOTHING
        _SLOT.pack_into(self._buffer, _HEAD_SIZE + slot * _SLOT_SIZE, client, call_id, 0)
        self._words[slot * _WORDS + _STATE] = held
        return slot

    def move(self, slot: int, held: Held) -> None:
        """Record that the call starts, or that it has to wait."""
        self._words[slot * _WORDS + _STATE] = held

    def count(self, slot: int, tokens: int) -> None:
        """Record how many tokens a call has had so far."""
        self._words[slot * _WORDS + _TOKENS] = tokens if tokens < _MAX_TOKENS else _MAX_TOKENS

    def end(self, slot: int) -> None:
        """Record that the call has ended, and free its slot."""
        self.move(slot, Held.ENDED)
        self._free.append(slot)

    # The supervisor reads.

    @property
    def turns(self) -> int:
        """How often the worker's loop has turned."""
        return int(_NUMBER.unpack_from(self._buffer, 0)[0])

    @property
    def steps(self) -> int:
        """How many steps the engine has made."""
        return int(_NUMBER.unpack_from(self._buffer, 8)[0])

    @property
    def tokens(self) -> int:
        """How many tokens the engine has generated."""
        return int(_NUMBER.unpack_from(self._buffer, 16)[0])

    @property
    def asleep(self) -> bool:
        """Whether the engine was told to sleep, and works on nothing until it is woken."""
        return bool(_NUMBER.unpack_from(self._buffer, 24)[0])

    def calls(self) -> dict[tuple[int, int], OnRecord]:
        """Return the calls on record, ended ones included: (client, call id) → how far it came."""
        found = {}
        for slot in range(SLOTS):
            state = self._words[slot * _WORDS + _STATE]
            if state != Held.NOTHING:
                at = _HEAD_SIZE + slot * _SLOT_SIZE
                client, call_id, tokens = _SLOT.unpack_from(self._buffer, at)
                found[client, call_id] = OnRecord(Held(state), tokens)
        return found
