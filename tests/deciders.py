"""What the supervisor's deciders said, unpacked; and all of them together, without any I/O."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from vllmport.bridge.board import Held, OnRecord
from vllmport.bridge.codec import pack, unpack
from vllmport.bridge.errors import PoolClosed
from vllmport.bridge.messages import Call, End, Error, Message, Result, decode
from vllmport.pool.plan import Policy
from vllmport.pool.supervisor import actions as do
from vllmport.pool.supervisor.control import Control
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.outgoing import ToClient, ToWorker


class Sent(NamedTuple):
    """One message, and who it is for: a client's number or a worker's id."""

    to: int | str
    message: Message
    value: Any


def unpacked(outgoing: Iterable[ToClient | ToWorker]) -> list[Sent]:
    """Read the frames that a decider wants to have sent."""
    sent = []
    for item in outgoing:
        message, payload, buffers = decode(item.frames)
        sent.append(Sent(item[0], message, unpack(payload, buffers)))
    return sent


def ended_calls(sent: Sent) -> list[int]:
    """Return the calls that a message to a client ends."""
    match sent.message:
        case Result(call_id) | Error(call_id):
            return [call_id]
        case End(entries):
            return [call_id for call_id, _ in entries]
    return []


class Deciders:
    """Dispatcher, fleet and control, connected as the supervisor connects them.

    Processes are names in `processes`: worker → nonce of the one that lives.
    """

    def __init__(self, policy: Policy) -> None:
        self.now = 1000.0
        self.policy = policy
        self.processes: dict[str, str] = {}
        self.sent: list[Sent] = []
        self.killed: set[str] = set()
        self.said_bye: set[str] = set()
        self.shut_down: list[bool] = []
        self.removed: list[str] = []
        self.events = EventLog(lambda: self.now)
        self._nonces = iter(map(str, range(10**9)))
        self.dispatcher = Dispatcher(
            policy.max_queue, policy.max_queue_bytes, policy.abort_grace, self.events
        )
        self.fleet = Fleet(policy, self.events, lambda: next(self._nonces), jitter=lambda: 0.5)
        self.control = Control(
            self.fleet,
            self.dispatcher,
            self.events,
            {"tiny": "/models/tiny", "echo": "echo"},
            lambda: {"supervisor": {}, "spawner": {}},
            self.shut_down.append,
        )

    def take(self) -> list[Sent]:
        """Hand over what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent

    def call(self, client: int, header: Call, args: Any = None) -> None:
        """Take a call of a client and do what is decided."""
        decider = self.dispatcher if header.model else self.control
        decider.call(client, header, pack({} if args is None else args), self.now)
        self.act()

    def client_gone(self, client: int) -> None:
        """Forget a client everywhere."""
        self.dispatcher.client_gone(client, self.now)
        self.control.client_gone(client)
        self.fleet.client_gone(client, self.now)
        self.act()

    def register(self, worker: str) -> None:
        """Let a process say who it is."""
        self.fleet.registered(worker, self.now)
        self.act()

    def ready(self, worker: str, capacity: int = 2) -> None:
        """Let a process finish loading."""
        self.fleet.ready(worker, capacity, "echo", {"max_model_len": 8}, self.now)
        self.act()

    def bring_up(self, model: str) -> None:
        """Let all processes of a model register and finish loading."""
        for worker in list(self.processes):
            if worker.startswith(f"{model}/"):
                self.register(worker)
                self.ready(worker)

    def die(self, worker: str, cause: str = "killed by SIGKILL") -> None:
        """End a process; it had started all that was given to it."""
        del self.processes[worker]
        self.killed.discard(worker)
        self.said_bye.discard(worker)
        held = self.dispatcher._calls.on(worker)
        started = dict.fromkeys(held, OnRecord(Held.STARTED, 0))
        self.dispatcher.worker_gone(worker, cause, started, self.now)
        self.control.worker_gone(worker)
        self.fleet.exited(worker, cause, ["last words"], self.now)
        self.act()

    def next_deadline(self) -> float:
        """Return when something is due."""
        return min(d.next_deadline() for d in (self.dispatcher, self.control, self.fleet))

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what is due by then."""
        self.now += seconds
        self.dispatcher.expire(self.now)
        self.control.expire(self.now)
        self.fleet.tick(self.now)
        self.act()

    def act(self) -> None:
        """Do what was decided, until nothing more is."""
        while True:
            outgoing = self.dispatcher.take_outgoing() + self.control.take_outgoing()
            actions = self.fleet.take_actions()
            self.sent += unpacked(outgoing)
            for action in actions:
                self._do(action)
            empty = [w for w in self.fleet.emptying if not self.dispatcher.in_flight(w)]
            for worker in empty:
                self.fleet.drained(worker, self.now)
            new = self.events.take_new()
            self.control.publish(new)
            if not (outgoing or actions or empty or new):
                return

    def _do(self, action: do.Action) -> None:  # noqa: C901  # one flat table of actions
        match action:
            case do.Spawn(worker, nonce):
                assert worker not in self.processes, "one process for each place"
                self.processes[worker] = nonce
            case do.Serve(worker, model, capacity):
                self.dispatcher.worker_ready(worker, model, capacity, self.now)
            case do.Drain(worker):
                self.dispatcher.worker_draining(worker, self.now)
            case do.SayBye(worker):
                self.said_bye.add(worker)
            case do.Kill(worker, _, gently):
                if not gently:
                    self.killed.add(worker)
            case do.Adopt():
                raise AssertionError("no standbys here")
            case do.Refuse(model, error):
                self.dispatcher.refuse(model, error)
            case do.Settled(model, settled_error):
                self.control.settled(model, settled_error, self.now)
            case do.Removed(model):
                self.removed.append(model)
                self.dispatcher.remove_model(model, PoolClosed(f"model {model!r} was unloaded"))
                self.control.removed(model)
