"""One GPU as the supervisor sees it: what was placed on it, and whether memory came back.

Pure. Nothing here knows of the queue of workers that want to start; that is `admission.py`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

GIB: Final = 2**30

TOLERANCE: Final = 0.02
"""Share of a device's memory by which two readings of the same state may differ."""

MIN_TOLERANCE: Final = 256 * 2**20

READS: Final = 2
"""Readings in a row that have to show the memory back, without moving."""

ROUNDING: Final = 1e-6
"""Three times a third is one."""


def gib(size: float) -> str:
    """Write a size in GiB."""
    return f"{size / GIB:.1f}"


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What the driver said of one device.

    Attributes:
        index: As `nvidia-smi` counts.
        uuid: Stays the same when the numbers change.
        total: Bytes that programs can have; 0 where the driver does not tell.
        used: Bytes in use, by whomever.
        pids: Who uses it, as the driver numbers them: for people to read, never to kill by, since
            a container sees the numbers of another namespace. None where the driver does not tell.
        memory: Pid → bytes that it uses, of those of which the driver tells.
    """

    index: int
    uuid: str
    total: int
    used: int
    pids: tuple[int, ...] | None = None
    memory: dict[int, int] = field(default_factory=dict)

    def users(self) -> str:
        """Say who uses it."""
        if self.pids is None:
            return "processes that the driver does not name"
        return ", ".join(f"pid {pid}" for pid in self.pids) or "no process"


@dataclass(slots=True)
class Device:
    """A device, the workers on it, and the memory that dead ones owe.

    Attributes:
        reading: The last one.
        floor: Bytes that were in use before the first of our workers came.
        claims: Worker → the fraction of the memory that it may take.
        loading: The worker that is loading on it, or "".
        due: When the memory of the dead has to be back; infinite while none is awaited.
        quarantined: The memory did not come back: nothing is placed here.
    """

    reading: DeviceReading
    floor: int = 0
    claims: dict[str, float] = field(default_factory=dict)
    loading: str = ""
    due: float = math.inf
    quarantined: bool = False
    _announced: bool = False
    _owed: float = 0.0
    _good: int = 0
    _before: int = 0

    @property
    def index(self) -> int:
        return self.reading.index

    @property
    def settling(self) -> bool:
        """Whether memory of a dead worker is awaited."""
        return self.due < math.inf

    @property
    def busy(self) -> bool:
        """Whether a start has to wait here, for a load or for memory."""
        return bool(self.loading) or self.settling

    @property
    def claimed(self) -> float:
        """The fractions of all workers on it together."""
        return sum(self.claims.values())

    @property
    def unclaimed(self) -> float:
        """The share of the memory that neither a worker may take nor anybody uses."""
        used = self.reading.used / self.reading.total if self.reading.total else 0.0
        return 1.0 - max(self.claimed, used)

    @property
    def expected(self) -> int:
        """Bytes that may be in use once the dead have given theirs back."""
        return self.floor + int(self.claimed * self.reading.total)

    def has_room(self, fraction: float) -> bool:
        """Tell whether the fractions still sum to at most one."""
        return self.claimed + fraction <= 1.0 + ROUNDING

    def has_memory(self, fraction: float) -> bool:
        """Tell whether so much is free now; vLLM refuses to start with less."""
        total, used = self.reading.total, self.reading.used
        return not total or total - used >= int(fraction * total)

    def take(self, worker: str, fraction: float) -> None:
        """Place a worker, which begins to load."""
        self.claims[worker] = fraction
        self.loading = worker

    def loaded(self, worker: str) -> None:
        """The worker has all it takes."""
        if self.loading == worker:
            self.loading = ""

    def drop(self, worker: str, due: float) -> None:
        """The worker is gone; its memory has to be back by `due`."""
        self.loaded(worker)
        self._owed = max(self._owed, self.claims.pop(worker))
        self._good = 0
        if not self.quarantined:
            self.due = due

    def read(self, reading: DeviceReading, now: float) -> str:
        """Take a reading; return what it shows anew, in the words of the events, or ""."""
        self.reading = reading
        word = ""
        if self.settling or self.quarantined:
            word = self._judge(now)
        elif not self.claims:
            self.floor = reading.used
        self._before = reading.used
        return word

    def give_up_waiting(self) -> None:
        """Nobody can say whether the memory is back: let the next start find out."""
        self._settle()

    def _judge(self, now: float) -> str:
        """See whether the memory is back; say so if it was said that it is not."""
        tolerance = max(int(TOLERANCE * self.reading.total), MIN_TOLERANCE)
        used = self.reading.used
        late = self.quarantined or now >= self.due
        # What somebody else took meanwhile may stay taken, as long as one like the dead fits in.
        enough = used <= self.expected + tolerance or (late and self.has_memory(self._owed))
        still = late or not self._good or abs(used - self._before) <= tolerance
        self._good = (self._good + 1 if still else 1) if enough else 0
        announced = self._announced
        if self._good >= READS:
            self._settle()
            return "device.free" if announced else ""
        if late and not enough and not self.quarantined:
            self.quarantined, self.due, self._announced = True, math.inf, True
            return "device.quarantined"
        if not enough and not announced:
            self._announced = True
            return "device.waiting"
        return ""

    def _settle(self) -> None:
        if not self.claims:
            self.floor = self.reading.used
        self.due, self.quarantined, self._announced = math.inf, False, False
        self._owed, self._good = 0.0, 0

    # Words.

    def is_named(self, name: str) -> bool:
        """Tell whether an entry of CUDA_VISIBLE_DEVICES means this device."""
        if name.isdecimal():
            return int(name) == self.index
        return bool(name) and self.reading.uuid.startswith(name)

    def holders(self) -> str:
        """Say whose it is."""
        if self.quarantined:
            return "quarantined"
        return ", ".join(f"{worker} has {f:g}" for worker, f in self.claims.items()) or "free"

    def shortage(self, fraction: float) -> str:
        """Say how much memory is missing for this fraction."""
        total, used = self.reading.total, self.reading.used
        return (
            f"GPU {self.index} has {gib(total - used)} of {gib(total)} GiB free, and "
            f"{gib(fraction * total)} are needed (in use by {self.reading.users()})"
        )

    def debt(self) -> str:
        """Say what is not given back."""
        return (
            f"GPU {self.index} holds {gib(self.reading.used - self.expected)} GiB more than before "
            f"its dead worker started (in use by {self.reading.users()}); nothing is placed on it "
            "until that is back"
        )

    def describe(self) -> dict[str, Any]:
        """Return what `status` says of it."""
        states = {
            "quarantined": self.quarantined,
            "settling": self.settling,
            "loading": bool(self.loading),
        }
        return {
            "index": self.index,
            "uuid": self.reading.uuid,
            "state": next((state for state, holds in states.items() if holds), "free"),
            "total": self.reading.total,
            "used": self.reading.used,
            "claims": dict(self.claims),
            "pids": self.reading.pids,
            "note": self.debt() if self.quarantined else "",
        }
