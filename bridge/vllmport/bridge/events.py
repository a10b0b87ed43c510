"""What a pool tells those who watch it: a closed catalogue, in one table.

Pure. An event is a map: `event`, its name; `seq`, a number that grows by one; `time`, seconds since
1970; and the fields that the table gives for its name, all of them always.
"""

from typing import Any, Final

EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "pool.started": ("pid", "epoch"),
    "pool.stopping": ("drain", "open_calls"),
    "client.connected": ("client", "pid", "name"),
    "client.gone": ("client", "pid", "reason"),
    "model.ready": ("model",),
    "model.failed": ("model", "error"),
    "model.unavailable": ("model", "retry_after", "reason"),
    "model.unloaded": ("model",),
    "worker.spawned": ("worker", "pid", "attempt"),
    "worker.registered": ("worker", "pid"),
    "worker.ready": ("worker", "pid", "mode", "took"),
    "worker.draining": ("worker", "pid", "reason"),
    "worker.signalled": ("worker", "pid", "signal", "scope"),
    "worker.hung": ("worker", "pid", "reason"),
    "worker.exited": ("worker", "pid", "cause", "expected", "in_flight"),
    "worker.cleared": ("worker", "pid", "took"),
    "worker.unkillable": ("worker", "pid", "left"),
    "worker.restarting": ("worker", "pause", "deaths"),
    "worker.gave_up": ("worker", "error"),
    "worker.recycling": ("worker", "pid", "reason"),
    "standby.ready": ("pid", "took"),
    "standby.gone": ("pid", "cause"),
    "standby.adopted": ("worker", "pid"),
    "call.lost": ("request_id", "worker", "attempt", "tokens"),
    "call.retried": ("request_id", "worker", "attempt", "tokens"),
    "call.poisoned": ("request_id", "worker", "attempt"),
    "call.expired": ("request_id", "worker", "phase"),
    "spawner.lost": ("pid",),
    "device.waiting": ("device", "used", "expected"),
    "device.quarantined": ("device", "used", "expected"),
    "device.free": ("device", "used"),
    "orphan.reaped": ("what", "whose", "outcome"),
}
"""Name → its fields."""


def event(name: str, seq: int, time: float, fields: dict[str, Any]) -> dict[str, Any]:
    """Build one event.

    Raises:
        AssertionError: It is not in the catalogue as it stands; that is a bug here.
    """
    assert tuple(sorted(fields)) == tuple(sorted(EVENTS[name])), f"{name}: {sorted(fields)}"
    return {"event": name, "seq": seq, "time": time, **fields}


def line(event: dict[str, Any]) -> str:
    """Write an event on one line, for people: its name, then its fields."""
    fields = (f"{k}={v}" for k, v in event.items() if k not in ("event", "seq", "time"))
    return " ".join((event["event"], *fields))
