"""Decides which processes wait at hand with the engine imported, to become workers in no time.

Pure. One for each environment that the pool's models have, started some time after a model is
READY and only where memory allows; it holds no model and touches no device.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from vllmport.pool.plan import ModelSpec, Policy
from vllmport.pool.supervisor.actions import Action, Kill, Spawn
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Spare
from vllmport.pool.supervisor.places import Model

Kind = tuple[tuple[str, str], ...]
"""What processes have in common that can stand in for each other: their environment."""

PREFIX: Final = "standby/"
RETRY: Final = 30.0
"""Seconds before another try after a standby died or memory was short; doubles with each death."""

MAX_DEATHS: Final = 3


@dataclass(slots=True)
class _Place:
    """The standby of one kind: wanted, on its way, or waiting."""

    spec: ModelSpec
    due: float
    id: str = ""
    nonce: str = ""
    pid: int = 0
    spawned: float = 0.0
    waiting: bool = False
    ended: bool = False
    deaths: int = 0


class Standbys:
    """The standby processes of a pool."""

    def __init__(self, policy: Policy, events: EventLog, new_nonce: Callable[[], str]) -> None:
        self._policy = policy
        self._events = events
        self._new_nonce = new_nonce
        self._places: dict[Kind, _Place] = {}
        self._leaving: dict[str, int] = {}  # killed, not yet gone: id → pid
        self._actions: list[Action] = []

    def __contains__(self, standby: str) -> bool:
        return standby in self._leaving or any(p.id == standby for p in self._places.values())

    def take_actions(self) -> list[Action]:
        """Hand over what has to be done, in order. The caller must do all of it."""
        actions, self._actions = self._actions, []
        return actions

    def describe(self) -> list[dict[str, object]]:
        """Describe the standbys as plain data."""
        return [
            {"id": place.id, "pid": place.pid, "waiting": place.waiting}
            for place in self._places.values()
            if place.id
        ]

    def want(self, models: Iterable[Model], now: float) -> None:
        """Say which models there are; what no model could use is ended."""
        specs = {
            kind_of(model.spec): model.spec
            for model in models
            if model.spec.engine == "vllm" and model.info and not model.leaving
        }
        if not self._policy.standby:
            specs = {}
        for kind in self._places.keys() - specs.keys():
            place = self._places.pop(kind)
            if place.id:
                self._leaving[place.id] = place.pid
                self._actions.append(Kill(place.id))
        for kind in specs.keys() - self._places.keys():
            self._places[kind] = _Place(specs[kind], now + self._policy.standby_delay)

    def take(self, spec: ModelSpec) -> Spare | None:
        """Hand over a standby for a worker of this specification, if one waits.

        Its place is made anew when its model is READY again.
        """
        place = self._places.get(kind_of(spec))
        if place is None or not place.waiting or spec.engine != "vllm":
            return None
        del self._places[kind_of(spec)]
        return Spare(place.id, place.nonce)

    def spec_of(self, standby: str) -> ModelSpec:
        """Return a specification with the environment of this standby."""
        return self._of(standby).spec

    def expects(self, nonce: str) -> str | None:
        """Return the standby that registers with this nonce."""
        return next((p.id for p in self._places.values() if p.id and p.nonce == nonce), None)

    def spawned(self, standby: str, pid: int, now: float) -> None:
        """The process exists."""
        if standby in self._leaving:
            self._leaving[standby] = pid
        else:
            place = self._of(standby)
            place.pid, place.spawned = pid, now

    def waits(self, standby: str, now: float) -> None:
        """It has imported the engine."""
        place = self._places_by_id().get(standby)
        if place is not None and not place.ended:
            place.waiting = True
            took = round(now - place.spawned, 3)
            self._events.add("standby.ready", pid=place.pid, took=took)

    def stalled(self, standby: str) -> None:
        """It will not come up any more: end it."""
        if standby not in self._leaving:
            self._actions.append(Kill(standby))

    def ended(self, standby: str) -> None:
        """It has ended, and what it started is being killed: nobody can have it any more."""
        place = self._places_by_id().get(standby)
        if place is not None:
            place.ended, place.waiting = True, False

    def exited(self, standby: str, cause: str, now: float) -> None:
        """Nothing is left of it."""
        if standby in self._leaving:
            pid = self._leaving.pop(standby)
        else:
            place = self._of(standby)
            pid = place.pid
            place.id, place.pid, place.ended, place.waiting = "", 0, False, False
            place.deaths += 1
            again = place.deaths < MAX_DEATHS
            place.due = now + RETRY * 2.0 ** (place.deaths - 1) if again else math.inf
        self._events.add("standby.gone", pid=pid, cause=cause)

    def next_deadline(self) -> float:
        """Return when `tick` has to be called at the latest."""
        return min((place.due for place in self._places.values()), default=math.inf)

    def tick(self, now: float, free_memory: int) -> None:
        """Start what is due, if there is room for it."""
        for place in self._places.values():
            if place.due > now:
                continue
            if free_memory < self._policy.standby_memory:
                place.due = now + RETRY
                continue
            place.id, place.nonce = self._free_id(), self._new_nonce()
            place.due = math.inf
            self._actions.append(Spawn(place.id, place.nonce))

    def _free_id(self) -> str:
        number = 0
        while f"{PREFIX}{number}" in self:
            number += 1
        return f"{PREFIX}{number}"

    def _places_by_id(self) -> dict[str, _Place]:
        return {place.id: place for place in self._places.values() if place.id}

    def _of(self, standby: str) -> _Place:
        return self._places_by_id()[standby]


def kind_of(spec: ModelSpec) -> Kind:
    """Return what a process must have to stand in for a worker of this specification."""
    return tuple(sorted(spec.env.items()))
