"""What an engine driver is: the one seam between the worker's port and an engine.

A driver owns an engine and the loop that runs it. It takes requests, hands outputs to the port, and
knows neither sockets nor messages. All methods are called from the thread that runs `run`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from vllmport.worker.universal.performing import Root

Key = tuple[int, int]
"""Names one call in this worker: (client, call id)."""


class Request(NamedTuple):
    """One call, as a driver sees it.

    Attributes:
        key: Its name.
        verb: "generate", "chat", "tokenize", …
        args: The verb's arguments: plain data from a caller, not yet checked.
        stream: Whether deltas are wanted besides the end.
        priority: Lower runs first.
        request_id: The caller's name for it; not unique.
    """

    key: Key
    verb: str
    args: Mapping[str, Any]
    stream: bool
    priority: int
    request_id: str


class Partial(NamedTuple):
    """What a request had reached when it was aborted.

    Attributes:
        phase: "waiting" (in the engine's own queue), "prefill" or "decode".
        tokens: Tokens generated so far, over all its outputs.
        result: The unfinished result in the shape of a finished one, or None.
    """

    phase: str
    tokens: int
    result: dict[str, Any] | None


class Port(Protocol):
    """Where a driver puts what comes out of its engine; `port.py` implements it."""

    @property
    def closed(self) -> bool:
        """Whether the driver has to leave its loop."""

    def fileno(self) -> int:
        """Return a descriptor that turns readable, edge-triggered, when messages may wait."""

    def receive(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages, then handle all that are there.

        Handling calls the driver's `submit` and `abort`. Deadlines that passed are handled too.
        """

    def next_deadline(self) -> float:
        """Return when `receive` has to be called at the latest, on the monotonic clock."""

    def delta(self, key: Key, value: dict[str, Any]) -> None:
        """Add to the stream of a request. Deltas merge where the reader is slow (`merge`)."""

    def finish(self, key: Key, value: Any) -> None:
        """Give the result of a request, or the summary that ends its stream."""

    def fail(self, key: Key, error: BaseException) -> None:
        """Fail a request; errors that are not of this project become EngineError."""

    def flush(self) -> None:
        """Send what was put since the last flush: one message for each client."""

    def progress(self, stage: str, text: str = "") -> None:
        """Say at once which stage loading has reached."""


class Engine(Protocol):
    """A driver around a loaded engine.

    Attributes:
        mode: "on", "off" or "echo".
        capacity: How many calls it takes at one time.
        running_limit: How many of them it works on at one time; the others wait inside it.
        steps: How many steps it has made so far.
        asleep: Whether it was told to sleep, and not woken since.
        info: What the engine resolved its arguments to; plain data.
        roots: What of it universal calls may have, by name: copies, made for each session.
    """

    mode: str
    capacity: int
    running_limit: int
    steps: int
    asleep: bool
    info: dict[str, Any]
    roots: "dict[str, Root]"

    def submit(self, request: Request) -> None:
        """Check a request and start it.

        Raises:
            InvalidRequest: It can never succeed; nothing of it stays in the engine.
        """

    def abort(self, key: Key) -> Partial:
        """Take a request out of the engine and say how far it had come."""

    def stats(self) -> dict[str, Any]:
        """Return what the engine itself reports: `unfinished` requests and `steps` so far."""

    def run(self, port: Port) -> None:
        """Serve until `port.closed`."""

    def close(self) -> None:
        """Let the engine and its processes go."""
