"""Holds every start back until there is room for it: admission, with what it has to know.

Owns the child that reads the GPUs, where there are any; on other machines nothing is started. The
decisions are made in `admission.py`. While `recycle_gpu_memory` is set, the GPUs are also read,
less often, when nobody waits.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence

from vllmport.pool.gpu import INTERVAL, LEISURE, GpuUnreadable, GpuWatch, has_gpus
from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.admission import Admission, Decision
from vllmport.pool.supervisor.descriptors import Descriptors
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.needs import needs_of
from vllmport.pool.supervisor.vitals import free_memory


class Starts:
    """What wants to start, and what has started.

    Args:
        policy: How much at once, how long to wait, and whether memory is to be watched.
        events: Is told what becomes of the GPUs.
        descriptors: Watches the readings.
        decided: Is called with each Grant and each Refusal, by `tick`.
        environ: The supervisor's environment.
        gpus: Whether there are any; found out if not given.
    """

    def __init__(
        self,
        policy: Policy,
        events: EventLog,
        descriptors: Descriptors,
        decided: Callable[[Decision, float], None],
        environ: Mapping[str, str] = os.environ,
        *,
        gpus: bool | None = None,
    ) -> None:
        self._gpus = has_gpus() if gpus is None else gpus
        self._environ = environ
        self._decided = decided
        self._watches_memory = policy.recycle_gpu_memory > 0
        self._admission = Admission(policy, events, has_gpus=self._gpus)
        self._watch = GpuWatch() if self._gpus else None
        if self._watch is not None:
            descriptors.watch(self._watch.fileno(), self._on_readable)

    def ask(self, worker: str, spec: ModelSpec, now: float) -> None:
        """A worker wants to start; nothing is left of its last process."""
        needs = needs_of(spec, self._environ, has_gpus=self._gpus)
        self._admission.request(worker, needs, now)

    def withdraw(self, worker: str, now: float) -> bool:
        """Take back what was asked; return whether it was still to be decided."""
        return self._admission.withdraw(worker, now)

    def loaded(self, worker: str, now: float) -> None:
        """A worker is READY."""
        self._admission.ready(worker, now)

    def gone(self, worker: str, now: float) -> None:
        """Nothing is left of a worker's processes; one that was never granted counts nothing."""
        self._admission.released(worker, now)

    def has_room(self, spec: ModelSpec) -> bool:
        """Tell whether one more worker of this kind could run beside all that run now."""
        needs = needs_of(spec, self._environ, has_gpus=self._gpus)
        return self._admission.has_room(needs, free_memory())

    def gpu_memory(self, pids: Sequence[int]) -> int:
        """Return the bytes that these processes use on all GPUs, as far as the driver tells now."""
        if self._admission.unreadable:
            return 0
        readings = [device.reading for device in self._admission.devices.values()]
        return sum(reading.memory.get(pid, 0) for reading in readings for pid in pids)

    def describe(self) -> dict[str, object]:
        """Return what `status` says."""
        return self._admission.describe()

    def next_deadline(self) -> float:
        """Return when `tick` has to be called at the latest."""
        due = self._admission.next_deadline()
        return due if self._watch is None else min(due, self._watch.next_deadline())

    def tick(self, now: float) -> None:
        """Decide what can be decided, and see to it that the GPUs are read while they matter."""
        if self._watch is not None:
            try:
                self._watch.check(now)
            except GpuUnreadable as exc:
                self._admission.unread(str(exc), now)
        if self._admission.next_deadline() <= now:
            for decision in self._admission.take_decisions(now, free_memory()):
                self._decided(decision, now)
        if self._watch is not None:
            self._keep(self._watch, now)

    def close(self) -> None:
        """End the child that reads the GPUs."""
        if self._watch is not None:
            self._watch.close()

    def _on_readable(self) -> None:
        assert self._watch is not None, "nothing else is watched"
        now = time.monotonic()
        try:
            found = self._watch.receive(now)
        except GpuUnreadable as exc:
            self._admission.unread(str(exc), now)
        else:
            if found is not None:
                self._admission.readings(found, now)
        self._keep(self._watch, now)

    def _keep(self, watch: GpuWatch, now: float) -> None:
        hurry = self._admission.wants_readings
        every = INTERVAL if hurry else LEISURE
        watch.keep(now, wanted=hurry or self._watches_memory, every=every)
