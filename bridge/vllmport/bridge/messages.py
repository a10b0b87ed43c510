"""Every message of the protocol, and its frames.

Pure. A message travels as `[header][payload][buffer…]`. The header is a msgpack array: the kind,
then the fields of the class below in their order. Trailing fields that have a default may be
missing, and trailing fields that a newer peer added are ignored. Routers read headers only.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, get_type_hints

from vllmport.bridge.codec import Bytes, Packed, pack_header, unpack_header
from vllmport.bridge.errors import ProtocolError, VllmportError, error_from_code, shown
from vllmport.bridge.limits import MAX_BUFFERS, MAX_HEADER, MAX_NAME, MAX_TEXT, MAX_TIMEOUT_MS

PREPARED: Final = "prepared"
"""The stage a standby reports when it has imported the engine and waits for its LOAD."""


class Kind(IntEnum):
    """The first field of each header."""

    HELLO = 1
    WELCOME = 2
    REGISTER = 3
    LOAD = 4
    PROGRESS = 5
    READY = 6
    CALL = 10
    CANCEL = 11
    CREDIT = 12
    RESULT = 13
    ITEMS = 14
    END = 15
    ERROR = 16
    HOLDS = 17
    FORGET = 18
    BUNDLE = 19
    PING = 20
    PONG = 21
    BYE = 22


Name = str
"""A short text: at most MAX_NAME characters."""


class Hello(NamedTuple):
    """Client → supervisor, first: which protocol versions the client speaks, and who it is."""

    versions: list[int]
    product: Name
    pid: int = 0
    name: Name = ""


class Welcome(NamedTuple):
    """Supervisor → client: the version chosen and the epoch of this supervisor.

    Payload: a map of the limits that hold on this connection.
    """

    version: int
    product: Name
    epoch: Name
    pid: int


class Register(NamedTuple):
    """Worker → supervisor, first: the nonce it was started with, and what it is."""

    nonce: Name
    protocol: int
    product: Name
    pid: int
    pgid: int


class Load(NamedTuple):
    """Supervisor → worker: build this engine. Payload: the engine specification."""

    worker: Name


class Progress(NamedTuple):
    """Worker → supervisor: the stage that loading has reached."""

    stage: Name
    text: Name = ""


class Ready(NamedTuple):
    """Worker → supervisor: the engine stands. Payload: what it resolved its arguments to.

    `capacity` is the number of calls it takes at one time; `mode` is on, off or echo.
    """

    capacity: int
    mode: Name


class Call(NamedTuple):
    """Client → supervisor → worker: do this. Payload: a map of the verb's arguments.

    Attributes:
        id: Chosen by the client, from 1; never used again on its connection.
        model: Name of the model, or "" for the pool itself.
        verb: What to do.
        remaining_ms: Budget left, re-based at each hop; None for no limit.
        window: 0 for one RESULT; else a stream, with this many items of credit to begin with.
        priority: Lower runs first.
        request_id: The caller's own name for the call, for logs and events.
        client: Which client, on the worker's leg; 0 on the client's.
        attempt: Which dispatch this is, from 1; 0 on the client's leg.
        retry: From a client, "resume" to have a call that was started run again if its worker is
            lost. To a worker, "resume" if part of the stream was delivered before: the payload is
            an array of the arguments and a map of what was delivered.
        session: Which session it belongs to, if it belongs to one: its verb is universal, or
            `session` or `affinity` is given. "" is a name as any other. On the worker's leg, the
            supervisor's own name of it.
        affinity: "hint" if "", "strict_queue" or "strict_fail_fast".
        ttl_ms: 0 for a session of this connection alone, which ends with it. Else any connection
            of the same user may name it, and it ends so long after its last call.
    """

    id: int
    model: Name
    verb: Name
    remaining_ms: int | None
    window: int = 0
    priority: int = 0
    request_id: Name = ""
    client: int = 0
    attempt: int = 0
    retry: Name = ""
    session: Name = ""
    affinity: Name = ""
    ttl_ms: int = 0


class Cancel(NamedTuple):
    """Client → supervisor → worker: give the call up. The terminal message still comes."""

    id: int
    client: int = 0


class Credit(NamedTuple):
    """Client → supervisor → worker: the reader of a stream has room for so many more items."""

    id: int
    room: int
    client: int = 0


class Result(NamedTuple):
    """Worker → supervisor → client, terminal: the answer. Payload: its value."""

    id: int
    client: int = 0
    worker: Name = ""
    attempt: int = 0


class Items(NamedTuple):
    """Worker → supervisor → client: what one engine step gave to all streams of one client.

    `entries` holds `[call id, sequence number]`, the number from 0 without gaps for each call.
    Payload: an array of values, one for each entry.
    """

    entries: list[list[int]]
    client: int = 0


class End(NamedTuple):
    """Worker → supervisor → client, terminal for each call it names.

    `entries` holds `[call id, attempt]`. Payload: an array of results or, for streams, summaries,
    one for each entry.
    """

    entries: list[list[int]]
    client: int = 0
    worker: Name = ""


class Error(NamedTuple):
    """Terminal: the call failed. Payload: a map of details.

    With id 0 it concerns no call: a load that failed, or a connection that is refused.
    """

    id: int
    code: Name
    message: str
    retryable: bool = False
    phase: Name = ""
    worker: Name = ""
    attempt: int = 0
    client: int = 0


class Holds(NamedTuple):
    """Worker → supervisor: how many objects a session holds; said when it begins or ends to."""

    session: Name
    refs: int


class Forget(NamedTuple):
    """Supervisor → worker: a session is over; let go of all that it holds."""

    session: Name


class Bundle(NamedTuple):
    """Client → supervisor → worker: several messages in one, none of them with buffers.

    `sizes` holds the bytes of the first header, of its payload, of the second header, and so on.
    Payload: these as one binary, one after the other. See `bundles.py`.
    """

    sizes: list[int]


class Ping(NamedTuple):
    """Either way: answer with a PONG that carries the same token."""

    token: int


class Pong(NamedTuple):
    """The answer to a PING. From a worker, the payload is a map of what its engine reports."""

    token: int


class Bye(NamedTuple):
    """Either way: this side leaves now. To a worker: stop; its open calls are lost."""

    reason: Name = ""


Message = (
    Hello
    | Welcome
    | Register
    | Load
    | Progress
    | Ready
    | Call
    | Cancel
    | Credit
    | Result
    | Items
    | End
    | Error
    | Holds
    | Forget
    | Bundle
    | Ping
    | Pong
    | Bye
)

KINDS: Final[dict[type[Message], Kind]] = {
    Hello: Kind.HELLO,
    Welcome: Kind.WELCOME,
    Register: Kind.REGISTER,
    Load: Kind.LOAD,
    Progress: Kind.PROGRESS,
    Ready: Kind.READY,
    Call: Kind.CALL,
    Cancel: Kind.CANCEL,
    Credit: Kind.CREDIT,
    Result: Kind.RESULT,
    Items: Kind.ITEMS,
    End: Kind.END,
    Error: Kind.ERROR,
    Holds: Kind.HOLDS,
    Forget: Kind.FORGET,
    Bundle: Kind.BUNDLE,
    Ping: Kind.PING,
    Pong: Kind.PONG,
    Bye: Kind.BYE,
}
"""Message class → its kind."""

_NO_PAYLOAD: Final = b"\xc0"
"""msgpack nil: what stands in the payload's place where a message has none."""


def encode(message: Message, packed: Packed | None = None) -> list[Bytes]:
    """Turn a message, and its packed payload if it has one, into frames ready to be sent."""
    header = pack_header((int(KINDS[type(message)]), *message))
    if packed is None:
        return [header, _NO_PAYLOAD]
    return [header, packed.payload, *packed.buffers]


def check(message: Message) -> None:
    """Refuse what the other side would refuse.

    Raises:
        ProtocolError: A field of it cannot be what it is: a name too long, say.
    """
    _SCHEMA_OF[type(message)].check(message)


def decode_header(frame: Bytes) -> Message:
    """Turn a header frame back into its message.

    Raises:
        ProtocolError: The header is too large, no msgpack, or not a message of this protocol.
    """
    if len(frame) > MAX_HEADER:
        raise ProtocolError(f"header of {len(frame)} bytes, the limit is {MAX_HEADER}")
    fields = unpack_header(frame)
    if type(fields) is not list or not fields:
        raise ProtocolError("a header is an array that begins with a kind")
    schema = _SCHEMAS.get(fields[0]) if type(fields[0]) is int else None
    if schema is None:
        raise ProtocolError(f"unknown message kind {shown(fields[0])}")
    return schema.read(fields)


def decode(frames: Sequence[Bytes]) -> tuple[Message, Bytes, Sequence[Bytes]]:
    """Split the frames of a message into its header (decoded), its payload and its buffers.

    Raises:
        ProtocolError: There is no payload frame, too many buffers, or the header is bad.
    """
    if not 2 <= len(frames) <= 2 + MAX_BUFFERS:
        raise ProtocolError(f"a message has 2 to {2 + MAX_BUFFERS} frames, got {len(frames)}")
    return decode_header(frames[0]), frames[1], frames[2:]


def error_message(error: VllmportError, call_id: int = 0, client: int = 0) -> Error:
    """Describe an error as the header of its ERROR message; the payload is `error.details`.

    The message may quote anything; what is no Unicode in it is escaped.
    """
    return Error(
        id=call_id,
        code=error.code,
        message=error.message[:MAX_TEXT].encode(errors="backslashreplace").decode()[:MAX_TEXT],
        retryable=error.retryable,
        phase=error.phase,
        worker=error.worker,
        attempt=error.attempt,
        client=client,
    )


def error_from(message: Error, details: Any) -> VllmportError:
    """Rebuild the error that an ERROR message and its unpacked payload describe."""
    return error_from_code(
        message.code,
        message.message,
        details=details if isinstance(details, dict) else {},
        retryable=message.retryable,
        phase=message.phase,
        worker=message.worker,
        attempt=message.attempt,
    )


# Field checks. Each returns whether the decoded value may stand in the field.


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_call_id(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**63


def _is_window(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_budget(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_TIMEOUT_MS)


def _is_ints(value: Any) -> bool:
    return type(value) is list and all(map(_is_int, value))


def _is_pairs(value: Any) -> bool:
    return type(value) is list and all(_is_ints(pair) and len(pair) == 2 for pair in value)


_CHECKS: Final[dict[Any, Callable[[Any], bool]]] = {
    int: _is_int,
    str: _is_name,
    bool: _is_bool,
    int | None: _is_budget,
    list[int]: _is_ints,
    list[list[int]]: _is_pairs,
}

_OWN_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "Error.message": _is_text,
    "Call.id": _is_call_id,
    "Call.window": _is_window,
    "Call.ttl_ms": _is_window,
}
"""Fields that take less, or more, than their type says."""


class _Schema:
    """What the annotations of one class ask of its fields."""

    def __init__(self, cls: type[Message], kind: Kind) -> None:
        hints = get_type_hints(cls)
        names = cls._fields
        self._kind = kind
        self._make = cls._make
        self._defaults = [cls._field_defaults.get(name) for name in names]
        self._required = len(names) - len(cls._field_defaults)
        self._checks = [
            (_OWN_CHECKS.get(f"{cls.__name__}.{name}") or _CHECKS[hints[name]], name)
            for name in names
        ]

    def check(self, values: Sequence[Any]) -> None:
        """Refuse a value that cannot stand in its field.

        Raises:
            ProtocolError: There is one.
        """
        for value, (fits, name) in zip(values, self._checks, strict=False):
            if not fits(value):
                raise ProtocolError(f"{self._kind.name}.{name} cannot be {shown(value)}")

    def read(self, fields: list[Any]) -> Message:
        """Make the message of a header's fields, the kind among them.

        Raises:
            ProtocolError: There are too few, or one cannot be.
        """
        values = fields[1 : len(self._checks) + 1]
        if len(values) < self._required:
            raise ProtocolError(
                f"{self._kind.name} has {self._required} fields or more, got {len(values)}"
            )
        self.check(values)
        if len(values) < len(self._checks):
            values += self._defaults[len(values) :]
        return self._make(values)


_SCHEMAS: Final[dict[int, _Schema]] = {int(kind): _Schema(cls, kind) for cls, kind in KINDS.items()}
_SCHEMA_OF: Final[dict[type[Message], _Schema]] = {
    cls: _SCHEMAS[int(kind)] for cls, kind in KINDS.items()
}
