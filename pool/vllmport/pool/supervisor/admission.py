"""Decides which of the workers that want to start may start now, and on which GPUs.

Pure: no clock, no driver, no processes. A worker that wants to start makes a `request`; the answer
is a Grant or a Refusal from `take_decisions`. At most `max_loads` workers load at once, one on each
device; the fractions on a device never sum to more than one; and a device whose dead worker still
holds memory takes nobody. Requests are looked at in the order they came; one that only has to wait
keeps its devices from those behind it, so that none waits for ever.

Without GPUs, only the number of loads and the free RAM count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vllmport.bridge.errors import InvalidRequest, StartupFailed, VllmportError
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor.devices import Device, DeviceReading, gib
from vllmport.pool.supervisor.events import EventLog

FRESH: Final = 2.0
"""Seconds after which a reading says nothing about now."""

RAM_POLL: Final = 1.0
"""Seconds between two looks at the RAM while a worker waits for it."""


class Needs(NamedTuple):
    """What one worker takes.

    Attributes:
        devices: How many GPUs; 0 for none, or where somebody else places it.
        fraction: Of the memory of each, from 0 to 1.
        visible: The GPUs it may have, by index or UUID (or the beginning of one); None for all.
        ram: Bytes of RAM while it loads; 0 if that is not known.
    """

    devices: int = 0
    fraction: float = 0.0
    visible: tuple[str, ...] | None = None
    ram: int = 0


class Grant(NamedTuple):
    """Start this worker now. `devices` is empty where it is to find its devices itself."""

    worker: str
    devices: tuple[int, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """The variables that keep the worker to its devices."""
        if not self.devices:
            return {}
        # Without the order CUDA numbers by speed, NVML by slot.
        listed = ",".join(map(str, self.devices))
        return {"CUDA_VISIBLE_DEVICES": listed, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Refusal(NamedTuple):
    """This worker cannot start: InvalidRequest if it never can, StartupFailed if not by now."""

    worker: str
    error: VllmportError


Decision = Grant | Refusal


@dataclass(frozen=True, slots=True)
class _Blocked:
    """Why a worker cannot start now; `stuck` if nothing that is under way will change that."""

    why: str
    stuck: bool = False


_Placing = tuple[int, ...] | _Blocked | VllmportError
"""Where a worker can start, why it cannot now, or why it never can."""


@dataclass(slots=True)
class _Waiting:
    needs: Needs
    since: float
    why: str = "was not looked at yet"
    stuck_since: float = math.inf


@dataclass(slots=True)
class _Held:
    needs: Needs
    devices: tuple[int, ...]
    loading: bool = True


class Admission:
    """The queue of starts, and what runs on which device.

    Args:
        policy: `max_loads` and `memory_timeout`.
        events: Is told what becomes of the devices.
        has_gpus: Whether this machine has any; without, nobody waits for one.
    """

    def __init__(self, policy: Policy, events: EventLog, *, has_gpus: bool) -> None:
        self.devices: dict[int, Device] = {}
        self.unreadable = ""
        self._policy = policy
        self._events = events
        self._has_gpus = has_gpus
        self._waiting: dict[str, _Waiting] = {}
        self._unsettled: dict[str, None] = {}  # of those waiting, who waits for more than its turn
        self._held: dict[str, _Held] = {}
        self._loads = 0
        self._loading_ram = 0  # what running loads may still take
        self._read_at = -math.inf
        self._due = math.inf

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiting)} waiting, {self._loads} loading>"

    # What happens.

    def request(self, worker: str, needs: Needs, now: float) -> None:
        """A worker wants to start, and nothing is left of its last process."""
        assert worker not in self._held, f"{worker} was granted already"
        self._waiting[worker] = _Waiting(needs, now)
        self._unsettled[worker] = None
        self._due = now

    def ready(self, worker: str, now: float) -> None:
        """A worker has loaded. Others may load on its devices from now on."""
        held = self._held.get(worker)
        if held is not None:
            self._loaded(held)
            self._due = now
            self._read_at = -math.inf  # what was read before does not count what it took last
            for index in held.devices:
                self.devices[index].loaded(worker)

    def released(self, worker: str, now: float) -> None:
        """Nothing is left of a worker's processes, however they ended."""
        self._due = now
        held = self._held.pop(worker, None)
        if held is None:
            return
        self._loaded(held)
        for index in held.devices:
            self.devices[index].drop(worker, now + self._policy.memory_timeout)

    def withdraw(self, worker: str, now: float) -> bool:
        """Take a request back; return whether there was one that was not granted yet."""
        self._due = now  # it may have kept others waiting
        self._unsettled.pop(worker, None)
        return self._waiting.pop(worker, None) is not None

    def readings(self, readings: Sequence[DeviceReading], now: float) -> None:
        """Take a reading of every device."""
        self.unreadable = ""
        self._read_at = self._due = now
        self._unsettled.update(dict.fromkeys(self._waiting))  # there may be too few devices now
        for reading in readings:
            device = self.devices.setdefault(reading.index, Device(reading))
            word = device.read(reading, now)
            if word:
                fields = {"device": device.index, "used": reading.used}
                if word != "device.free":
                    fields["expected"] = device.expected
                self._events.add(word, **fields)

    def unread(self, why: str, now: float) -> None:
        """The devices cannot be read: go on without, one load on each."""
        self._due = now
        self.unreadable = why

    # What follows.

    @property
    def wants_readings(self) -> bool:
        """Whether the devices have to be read, repeatedly, until this turns false."""
        return self._has_gpus and (
            any(waiting.needs.devices for waiting in self._waiting.values())
            or any(device.settling or device.quarantined for device in self.devices.values())
        )

    def next_deadline(self) -> float:
        """Return when `take_decisions` has to be called: not in the future if anything happened."""
        return self._due

    def take_decisions(self, now: float, free_ram: int) -> list[Decision]:
        """Decide, and hand over what was decided. The caller must do all of it.

        Args:
            now: Seconds.
            free_ram: Bytes that can be had without harm to anybody.
        """
        self._due = math.inf
        if self.unreadable:
            self._settle_unseen(now)
        decided: dict[str, Decision | None] = {}
        reserved: set[int] = set()
        for worker, request in self._waiting.items():
            if self._all_loading:
                break
            decided[worker] = self._decide(worker, request, reserved, now, free_ram)
        if self._all_loading:  # of the rest, only who does not simply wait for its turn
            for worker in [name for name in self._unsettled if name not in decided]:
                request = self._waiting[worker]
                decided[worker] = self._decide(worker, request, reserved, now, free_ram)
        decisions = [decision for decision in decided.values() if decision is not None]
        for decision in decisions:
            del self._waiting[decision.worker]
            self._unsettled.pop(decision.worker, None)
        return decisions

    def has_room(self, needs: Needs, free_ram: int) -> bool:
        """Tell whether a worker could run beside all that run now, to replace one before it ends.

        Memory that others use is not looked at; a request is.
        """
        if needs.ram > self._left_of(free_ram):
            return False
        if not self._places(needs) or not self.devices:
            return True
        fit = [d for d in self._visible(needs) if not d.quarantined and d.has_room(needs.fraction)]
        return len(fit) >= needs.devices

    def describe(self) -> dict[str, Any]:
        """Return what `status` says: `devices`, `waiting`, `unreadable`."""
        return {
            "devices": [device.describe() for device in self.devices.values()],
            "waiting": [
                {"worker": worker, "since": request.since, "why": request.why}
                for worker, request in self._waiting.items()
            ],
            "unreadable": self.unreadable,
        }

    # Inside.

    @property
    def _all_loading(self) -> bool:
        """Whether as many load as may."""
        return self._loads >= self._policy.max_loads

    def _decide(
        self, worker: str, request: _Waiting, reserved: set[int], now: float, free_ram: int
    ) -> Decision | None:
        """Decide about one that waits; note why it goes on waiting if it does."""
        found: _Placing | None = self._consider(request.needs, reserved, now, free_ram)
        if isinstance(found, _Blocked):
            if self._all_loading:
                self._unsettled.pop(worker, None)
            else:
                self._unsettled[worker] = None
            found = self._too_long(request, found, now)
        if isinstance(found, tuple):
            return self._grant(worker, request.needs, found)
        if found is not None:
            found.worker = worker
            return Refusal(worker, found)
        return None

    def _loaded(self, held: _Held) -> None:
        """Count a load out, once."""
        if held.loading:
            held.loading = False
            self._loads -= 1
            self._loading_ram -= held.needs.ram

    def _left_of(self, free_ram: int) -> int:
        """What is free, less what running loads will still take: they may not have it yet."""
        return free_ram - self._loading_ram

    def _places(self, needs: Needs) -> bool:
        """Whether devices are chosen here. Slices of a GPU have names of their own and are not."""
        sliced = any(name.startswith("MIG-") for name in needs.visible or ())
        return self._has_gpus and needs.devices > 0 and not sliced

    def _consider(self, needs: Needs, reserved: set[int], now: float, free_ram: int) -> _Placing:
        impossible = self._impossible(needs)
        if impossible is not None:
            return impossible
        if self._all_loading:
            return _Blocked(f"waits for its turn: {self._policy.max_loads} load at once")
        chosen = self._choose(needs, reserved, now) if self._places(needs) else ()
        if isinstance(chosen, _Blocked):
            return chosen
        left = self._left_of(free_ram)
        if needs.ram > left:
            self._due = min(self._due, now + RAM_POLL)
            text = f"needs about {gib(needs.ram)} GiB of RAM, and {gib(max(left, 0))} are free"
            return _Blocked(text, stuck=not self._loads)
        return chosen

    def _impossible(self, needs: Needs) -> VllmportError | None:
        """Return the error of a request that no waiting can help."""
        if not self._places(needs):
            return None
        if not 0.0 < needs.fraction <= 1.0:
            text = f"gpu_memory_utilization is above 0 and at most 1, not {needs.fraction:g}"
            return InvalidRequest.of("gpu_memory_utilization", needs.fraction, text)
        if not self.devices:
            return None
        visible = self._visible(needs)
        if len(visible) >= needs.devices:
            return None
        known = ", ".join(f"{d.index} ({d.reading.uuid})" for d in self.devices.values())
        where = f" among CUDA_VISIBLE_DEVICES={','.join(needs.visible)}" if needs.visible else ""
        return InvalidRequest.of(
            "tensor_parallel_size",
            needs.devices,
            f"a worker of this model takes {needs.devices} GPUs, and there are {len(visible)}"
            f"{where}; this machine has {known}; lower tensor_parallel_size or "
            "pipeline_parallel_size, or let it have more GPUs",
        )

    def _visible(self, needs: Needs) -> list[Device]:
        devices = self.devices.values()
        if needs.visible is None:
            return list(devices)
        return [d for d in devices if any(d.is_named(name) for name in needs.visible)]

    def _choose(self, needs: Needs, reserved: set[int], now: float) -> tuple[int, ...] | _Blocked:
        """Choose the devices with the most room, or say what is waited for."""
        if not self.unreadable and now - self._read_at > FRESH:
            return _Blocked("waits for a reading of the GPUs")
        if not self.devices:  # nor can they be read
            blind = any(held.loading and held.needs.devices for held in self._held.values())
            return _Blocked("waits for another load: the GPUs cannot be read") if blind else ()
        count, fraction = needs.devices, needs.fraction
        visible = sorted(self._visible(needs), key=lambda d: (-d.unclaimed, d.index))
        roomy = [d for d in visible if d.has_room(fraction)]
        usable = [d for d in roomy if not d.quarantined]
        if len(usable) < count:
            return _Blocked(self._no_room(visible, needs), stuck=len(roomy) < count)
        busy = [d for d in usable if d.busy or d.index in reserved]
        free = [d for d in usable if d not in busy]
        fit = [d for d in free if self.unreadable or d.has_memory(fraction)]
        if len(fit) >= count:
            return tuple(sorted(d.index for d in fit[:count]))
        if len(fit) + len(busy) < count:
            return _Blocked(_no_memory(free, fraction), stuck=True)
        wanted = [d.index for d in (fit + busy)[:count]]
        reserved.update(wanted)
        listed = ", ".join(map(str, wanted))
        return _Blocked(f"waits for a load, or for memory to come back, on GPU {listed}")

    def _no_room(self, visible: list[Device], needs: Needs) -> str:
        held = "; ".join(f"GPU {device.index}: {device.holders()}" for device in visible)
        return f"needs {needs.fraction:g} of the memory of {needs.devices} GPUs, but {held}"

    def _too_long(self, request: _Waiting, blocked: _Blocked, now: float) -> VllmportError | None:
        """Note why it waits; return an error once nothing has come of it for too long."""
        request.why = blocked.why
        if not blocked.stuck:
            request.stuck_since = math.inf
            return None
        request.stuck_since = min(request.stuck_since, now)
        end = request.stuck_since + self._policy.memory_timeout
        if now < end:
            self._due = min(self._due, end)
            return None
        return StartupFailed(
            f"no place to start: {blocked.why}; stop or unload what is in the way, lower "
            "gpu_memory_utilization of both, or use a smaller model",
            phase="load",
            retryable=True,
        )

    def _grant(self, worker: str, needs: Needs, devices: tuple[int, ...]) -> Grant:
        self._held[worker] = _Held(needs, devices)
        self._loads += 1
        self._loading_ram += needs.ram
        for index in devices:
            self.devices[index].take(worker, needs.fraction)
        return Grant(worker, devices)

    def _settle_unseen(self, now: float) -> None:
        """Where nothing can be read, only time can pass."""
        for device in self.devices.values():
            if device.due <= now:
                device.give_up_waiting()
            self._due = min(self._due, device.due)


def _no_memory(devices: list[Device], fraction: float) -> str:
    short = (device for device in devices if not device.has_memory(fraction))
    return "finds too little memory: " + "; ".join(device.shortage(fraction) for device in short)
