"""The verbs of the pool itself: load, release, unload, status, engine_config, shutdown.

Pure, like `dispatch.py` and `fleet.py`, which it connects to callers: a call stays open here until
the fleet has settled what it waits for. What has to be sent is collected in `outgoing`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vllmport.bridge.codec import Packed, pack, unpack
from vllmport.bridge.deadlines import Deadlines
from vllmport.bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    PoolClosed,
    ProtocolError,
    VllmportError,
    shown,
)
from vllmport.bridge.limits import MAX_CONTROL
from vllmport.bridge.messages import Call, End, Items, Ping, Result, encode, error_message
from vllmport.bridge.states import WorkerState
from vllmport.bridge.timeouts import from_wire
from vllmport.pool.supervisor.calls import Key
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker
from vllmport.pool.supervisor.places import Model
from vllmport.pool.supervisor.specification import spec_from

PONG_WAIT: Final = 0.25
"""Seconds that `status` waits for what the engines report, before it gives what it last heard."""

MAX_NESTED: Final = 32
"""Arrays and maps inside each other in the arguments of a verb."""


@dataclass(slots=True)
class _Waiting:
    """A call to the pool that is not answered yet."""

    header: Call
    verb: str
    model: str = ""
    sequence: int = 0
    pings: set[int] = field(default_factory=set)


class Control:
    """Answers the calls that go to the pool itself.

    Args:
        fleet: Whose models are loaded and unloaded.
        dispatcher: Whose queues are shown.
        events: What happened lately, for those who begin to watch.
        aliases: Model name as callers write it → what it stands for.
        identity: What `status` says of the supervisor and the spawner.
        stop: Called when somebody asked for the pool to stop; the argument says whether to drain.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        events: EventLog,
        aliases: Mapping[str, str],
        identity: Callable[[], dict[str, Any]],
        stop: Callable[[bool], None],
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._events = events
        self._aliases = aliases
        self._identity = identity
        self._stop = stop
        self._waiting: dict[Key, _Waiting] = {}
        self._due: Deadlines[Key] = Deadlines()
        self._stats: dict[str, dict[str, Any]] = {}
        self._tokens = itertools.count(1)
        self._outgoing: list[ToClient | ToWorker] = []
        self._verbs: dict[str, Callable[[Key, Call, dict[str, Any], float], None]] = {
            "load": self._load,
            "release": self._release,
            "unload": self._unload,
            "restart": self._restart,
            "status": self._status,
            "engine_config": self._engine_config,
            "events": self._watch,
            "shutdown": self._shutdown,
        }

    def take_outgoing(self) -> list[ToClient | ToWorker]:
        """Hand over what has to be sent, in order. The caller must send all of it."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_deadline(self) -> float:
        """Return when `expire` has to be called at the latest."""
        return self._due.next()

    def call(self, client: int, header: Call, packed: Packed, now: float) -> None:
        """Take a call to the pool; every error becomes its answer."""
        key = (client, header.id)
        try:
            if key in self._waiting:  # the first one goes on
                text = f"call id {header.id} is already open on this connection"
                self._tell(key, ProtocolError(text))
                return
            verb = self._verbs.get(header.verb)
            if verb is None:
                known = ", ".join(sorted(self._verbs))
                text = f"the pool has no verb {header.verb!r}; known: {known}"
                raise InvalidRequest.of("verb", header.verb, text)
            args = _arguments(packed)
            verb(key, header, args, now)
        except VllmportError as exc:
            self._fail(key, exc)

    def waiting_for(self, client: int) -> int:
        """Return how many calls of a client are not answered yet."""
        return sum(key[0] == client for key in self._waiting)

    def cancel(self, client: int, call_id: int, now: float) -> None:
        """Give up waiting, and the lease that a `load` took."""
        key = (client, call_id)
        if key in self._waiting:
            self._give_lease_back(key, now)
            self._fail(key, Cancelled("the caller cancelled the call", phase="load"))

    def client_gone(self, client: int) -> None:
        """Forget what a client waited for."""
        for key in [key for key in self._waiting if key[0] == client]:
            self._forget(key)

    def progress(self, worker: str, now: float) -> None:
        """Tell those who wait for this worker's model where it stands."""
        record = self._fleet.workers.get(worker)
        if record is None:
            return
        value = {
            "worker": worker,
            "state": record.state.value,
            "stage": record.stage,
            "elapsed": round(now - record.since, 3),
        }
        for key, waiting in self._waiting.items():
            if waiting.verb == "load" and waiting.model == record.model and waiting.header.window:
                self._send_items(key, waiting, [value])

    def settled(self, model: str, error: VllmportError | None, now: float) -> None:
        """Answer those who wait for a model to be ready."""
        for key, waiting in list(self._waiting.items()):
            if waiting.verb not in ("load", "restart") or waiting.model != model:
                continue
            if error is None:
                self._answer(key, describe_model(self._fleet.models[model]))
            else:
                self._give_lease_back(key, now)
                self._fail(key, error)

    def publish(self, events: list[dict[str, Any]]) -> None:
        """Send what happened to all who watch."""
        if events:
            for key, waiting in self._waiting.items():
                if waiting.verb == "events":
                    self._send_items(key, waiting, events)

    def removed(self, model: str) -> None:
        """Answer those who wait for a model to be gone, and those who still wanted it."""
        for key, waiting in list(self._waiting.items()):
            if waiting.model == model and waiting.verb == "unload":
                self._answer(key, None)
            elif waiting.model == model and waiting.verb in ("load", "restart"):
                text = f"model {model!r} was unloaded before it was ready"
                self._fail(key, PoolClosed(text, phase="load"))

    def pong(self, worker: str, token: int, stats: dict[str, Any]) -> None:
        """Note what an engine reports, and answer the `status` calls that waited for it alone."""
        self._stats[worker] = stats
        for key, waiting in list(self._waiting.items()):
            if token in waiting.pings:
                waiting.pings.discard(token)
                if not waiting.pings:
                    self._answer(key, self.status())

    def worker_gone(self, worker: str) -> None:
        """Forget what an engine reported."""
        self._stats.pop(worker, None)

    def expire(self, now: float) -> None:
        """Answer the calls whose budget ran out; a `status` gives what is known."""
        for key in self._due.pop_due(now):
            if self._waiting[key].verb == "status":
                self._answer(key, self.status())
            else:
                verb, model = self._waiting[key].verb, self._waiting[key].model
                text = f"the deadline passed while {verb} of {model!r} went on"
                self._give_lease_back(key, now)
                self._fail(key, DeadlineExceeded(text, phase="load"))

    def status(self) -> dict[str, Any]:
        """Describe the pool as plain data; the keys are documented in `bridge/PROTOCOL.md`."""
        return {
            **self._identity(),
            "models": [
                {**describe_model(model), "queued": self._dispatcher.queued(name)}
                for name, model in self._fleet.models.items()
            ],
            "workers": [self._describe_worker(worker) for worker in self._fleet.workers],
            "counters": asdict(self._dispatcher.counters),
        }

    # Verbs.

    def _load(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        wait = args.pop("wait", True)
        running = self._fleet.models.get(str(args.get("name")))
        if running is not None and not args.get("model"):  # a name alone: whatever runs under it
            spec = running.spec
        else:
            spec = spec_from(args, self._aliases)
        model = self._fleet.load(spec, now, key[0])
        self._dispatcher.add_model(spec.name)
        if not wait or all(w.state is WorkerState.READY for w in model.workers.values()):
            self._open(key, header, "load", spec.name, now)
            self._answer(key, describe_model(model))
            return
        self._open(key, header, "load", spec.name, now)

    def _release(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        self._fleet.release(_text(args, "name"), key[0], now)
        self._open(key, header, "release", "", now)
        self._answer(key, None)

    def _unload(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        name = _text(args, "name")
        self._fleet.unload(name, now)
        self._open(key, header, "unload", name, now)

    def _status(self, key: Key, header: Call, _args: dict[str, Any], now: float) -> None:
        waiting = self._open(key, header, "status", "", now)
        for worker in self._fleet.workers.values():
            if worker.mode and worker.state in (WorkerState.READY, WorkerState.DRAINING):
                token = next(self._tokens)
                waiting.pings.add(token)
                self._outgoing.append(ToWorker(worker.id, encode(Ping(token))))
        if waiting.pings:
            self._due.set(key, min(now + PONG_WAIT, from_wire(header.remaining_ms, now)))
        else:
            self._answer(key, self.status())

    def _restart(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        name = _text(args, "name")
        model = self._fleet.restart(name, now)
        self._open(key, header, "restart", name, now)
        if model.ready:
            self._answer(key, describe_model(model))

    def _watch(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        last = args.get("last", 0)
        if type(last) is not int or last < 0:
            raise InvalidRequest.of("last", shown(last), "last is a whole number from 0")
        if not header.window:
            text = "events come as a stream: give the call a window"
            raise InvalidRequest.of("window", header.window, text)
        waiting = self._open(key, header, "events", "", now)
        kept = list(self._events.kept)
        if last and kept:
            self._send_items(key, waiting, kept[-last:])

    def _engine_config(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        name = _text(args, "name")
        if name not in self._fleet.models:
            raise InvalidRequest.of("name", name, f"no model {name!r} in this pool")
        self._open(key, header, "engine_config", name, now)
        self._answer(key, self._fleet.models[name].info)

    def _shutdown(self, key: Key, header: Call, args: dict[str, Any], now: float) -> None:
        self._open(key, header, "shutdown", "", now)
        self._answer(key, None)
        self._stop(bool(args.get("drain", True)))

    # Inside.

    def _open(self, key: Key, header: Call, verb: str, model: str, now: float) -> _Waiting:
        waiting = self._waiting[key] = _Waiting(header, verb, model)
        self._due.set(key, from_wire(header.remaining_ms, now))
        return waiting

    def _send_items(self, key: Key, waiting: _Waiting, values: list[Any]) -> None:
        client, call_id = key
        first = waiting.sequence
        waiting.sequence += len(values)
        items = Items([[call_id, number] for number in range(first, waiting.sequence)], client)
        self._outgoing.append(ToClient(client, encode(items, pack(values))))

    def _give_lease_back(self, key: Key, now: float) -> None:
        """A `load` that nobody waits for any more has given nobody a handle."""
        if self._waiting[key].verb == "load":
            self._fleet.release(self._waiting[key].model, key[0], now)

    def _forget(self, key: Key) -> _Waiting | None:
        self._due.discard(key)
        return self._waiting.pop(key, None)

    def _answer(self, key: Key, value: Any) -> None:
        waiting = self._forget(key)
        assert waiting is not None, "answered once, by the one who opened it"
        client, call_id = key
        message = End([[call_id, 1]], client) if waiting.header.window else Result(call_id, client)
        try:
            packed = pack([value] if waiting.header.window else value)
        except InvalidRequest as exc:  # it is what callers loaded, all together, that is too large
            self._tell(key, EngineError(f"the answer cannot travel: {exc}"))
            return
        self._outgoing.append(ToClient(client, encode(message, packed)))

    def _fail(self, key: Key, error: VllmportError) -> None:
        self._forget(key)
        self._tell(key, error)

    def _tell(self, key: Key, error: VllmportError) -> None:
        client, call_id = key
        frames = encode(error_message(error, call_id, client), pack(error.details))
        self._outgoing.append(ToClient(client, frames))

    def _describe_worker(self, worker_id: str) -> dict[str, Any]:
        worker = self._fleet.workers[worker_id]
        return {
            "id": worker.id,
            "model": worker.model,
            "pid": worker.pid or None,
            "pgid": worker.pid or None,
            "state": worker.state.value,
            "stage": worker.stage,
            "mode": worker.mode,
            "in_flight": self._dispatcher.in_flight(worker_id),
            "sessions": self._dispatcher.sessions_on(worker_id),
            "unfinished": self._stats.get(worker_id, {}).get("unfinished", 0),
            "steps": self._stats.get(worker_id, {}).get("steps", 0),
            "restarts": worker.restarts,
            "calls": self._dispatcher.done_by(worker_id),
            "last_exit": worker.last_exit or None,
            "error": worker.error.message if worker.error is not None else None,
        }


def describe_model(model: Model) -> dict[str, Any]:
    """Describe a model as plain data; environment values stay out, they may be secret."""
    spec = model.spec
    return {
        "name": spec.name,
        "model": spec.model,
        "engine": spec.engine,
        "state": model.state.value,
        "replicas": spec.replicas,
        "loras": spec.loras,
        "v1_multiprocessing": spec.v1_multiprocessing,
        "engine_args": spec.engine_args,
        "notes": list(spec.notes),
        "env": sorted(spec.env),
        "declared": model.declared,
        "leases": model.leases.total(),
    }


def _arguments(packed: Packed) -> dict[str, Any]:
    """Unpack the arguments of a verb.

    Raises:
        InvalidRequest: They are no map, too large, or nested too deeply to be worked with.
        ProtocolError: They are no value at all.
    """
    if len(packed.payload) > MAX_CONTROL:
        text = f"the arguments take {len(packed.payload)} bytes, the limit is {MAX_CONTROL} here"
        raise InvalidRequest(text)
    args = unpack(*packed)
    if not isinstance(args, dict):
        raise InvalidRequest("the payload of a CALL is a map of arguments")
    if not _is_shallow(args, MAX_NESTED):
        raise InvalidRequest(f"the arguments are nested more than {MAX_NESTED} levels deep")
    return args


def _is_shallow(value: Any, levels: int) -> bool:
    match value:
        case dict():
            inner: Iterable[Any] = itertools.chain(value, value.values())
        case list() | tuple() | set() | frozenset():
            inner = value
        case _:
            return True
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def _text(args: dict[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise InvalidRequest.of(name, shown(value), f"{name} must be text, not {shown(value)}")
    return value
