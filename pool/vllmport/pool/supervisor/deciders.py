"""The objects that decide, together. None of them does I/O; each hands over what is to be done."""

from dataclasses import dataclass

from vllmport.pool.supervisor.control import Control
from vllmport.pool.supervisor.dispatch import Dispatcher
from vllmport.pool.supervisor.events import EventLog
from vllmport.pool.supervisor.fleet import Fleet
from vllmport.pool.supervisor.standby import Standbys


@dataclass(frozen=True, slots=True)
class Deciders:
    """What one supervisor decides with.

    Attributes:
        events: What happened.
        dispatcher: Calls and queues.
        fleet: Models and their workers.
        standbys: Processes at hand.
        control: The pool's own verbs.
    """

    events: EventLog
    dispatcher: Dispatcher
    fleet: Fleet
    standbys: Standbys
    control: Control
