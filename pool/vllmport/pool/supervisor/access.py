"""Who may do what: the keys that clients come with, their roles and quotas.

Pure: names, roles and counts. `door.py` reads the file and speaks to ZeroMQ.

Loading a model is code execution, and so is whatever names code or a file on the server: that
takes the role `admin`. `call` is for what is loaded already, `ffi` for universal calls besides. A
client on a local socket is the user that the pool belongs to, and may do everything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from vllmport.bridge.codec import Packed, Shape, outline
from vllmport.bridge.errors import (
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    VllmportError,
    shown,
)
from vllmport.bridge.messages import Call
from vllmport.bridge.universal import UNIVERSAL

QUOTA_PAUSE: Final = 0.25
"""Seconds after which a key that has used up its quota may try again."""

_SETTINGS: Final = {"key", "role", "max_connections", "max_calls", "max_queued", "max_bytes"}
"""What the section of a key may say."""

_Z85: Final = frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
)
_KEY_LENGTH: Final = 40

CALL_POOL_VERBS: Final = frozenset({"load", "release", "status", "engine_config", "events"})
"""What `call` may ask of the pool itself; of `load` only what attaches by name."""

CALL_ENGINE_VERBS: Final = frozenset(
    {
        "generate",
        "chat",
        "tokenize",
        "detokenize",
        "echo",
        "apply_chat_template",
        "vocabulary",
        "beam_search",
        "embed",
        "classify",
        "pool",
        "score",
        "list_loras",
        "metrics",
        "is_sleeping",
    }
)
"""What `call` may ask of an engine. A verb that is not here takes `admin`, also a new one."""

ADMIN_ARGUMENTS: Final = frozenset({"chat_template", "mm_processor_kwargs"})
"""Arguments that are code, or go to code that may load some."""


class Role(StrEnum):
    """What a key is for."""

    CALL = "call"
    FFI = "ffi"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Guest:
    """Whoever comes with one key, over any number of connections.

    Attributes:
        name: What the file of keys calls it.
        role: What it may do.
        key: Its public key in Z85.
        max_connections: Connections that it may have at one time.
        max_calls: Calls that it may have open at one time.
        max_queued: Calls that may wait for workers at one time.
        max_bytes: Bytes of arguments of its open calls.
    """

    name: str
    role: Role = Role.CALL
    key: str = ""
    max_connections: int = 256
    max_calls: int = 1024
    max_queued: int = 1024
    max_bytes: int = 64 * 2**20


OWNER: Final = Guest("", Role.ADMIN, "", 2**63, 2**63, 2**63, 2**63)
"""The user that the pool belongs to, on a local socket."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a guest holds at the moment: open calls, those that wait, bytes of their arguments."""

    calls: int
    queued: int
    bytes: int


def guests_from(data: Mapping[str, Any]) -> dict[str, Guest]:
    """Read the file of keys: a section for each, `[NAME]` with `key`, `role` and quotas.

    Returns:
        Public key, in Z85 → guest.

    Raises:
        InvalidRequest: Something in it cannot be meant.
    """
    guests: dict[str, Guest] = {}
    for name, section in data.items():
        if not isinstance(section, dict):
            raise _wrong(name, f"each key has a section: [{name}]")
        if unknown := section.keys() - _SETTINGS:
            raise _wrong(name, f"[{name}] has unknown settings: {', '.join(sorted(unknown))}")
        quotas = {key: value for key, value in section.items() if key.startswith("max_")}
        if any(type(value) is not int or value < 1 for value in quotas.values()):
            raise _wrong(name, f"[{name}]: quotas are whole numbers from 1")
        key = section.get("key")
        if not isinstance(key, str) or not is_key(key):
            raise _wrong(name, f"[{name}]: key is the public key that `vllmport keygen` printed")
        if key in guests:
            raise _wrong(name, f"[{name}] and [{guests[key].name}] have the same key")
        guests[key] = Guest(name, _role(name, section.get("role", Role.CALL)), key, **quotas)
    return guests


def is_key(text: str) -> bool:
    """Tell whether this is a key in Z85."""
    return len(text) == _KEY_LENGTH and _Z85.issuperset(text)


def forbidden(guest: Guest, call: Call, packed: Packed) -> VllmportError | None:
    """Return why a guest may not make this call, None if it may.

    Raises:
        ProtocolError: The arguments are no map.
    """
    if guest.role is Role.ADMIN:
        return None
    if call.priority < 0:
        return _denied(guest, "a priority below 0")
    if call.model and call.verb in UNIVERSAL:
        allowed = guest.role is Role.FFI
        return None if allowed else _denied(guest, "a universal call", Role.FFI)
    if call.verb not in (CALL_ENGINE_VERBS if call.model else CALL_POOL_VERBS):
        return _denied(guest, f"the verb {shown(call.verb)}")
    if call.model or call.verb == "load":
        what = _beyond_call(call, packed)
        return _denied(guest, what) if what else None
    return None


def too_much(guest: Guest, used: Usage, call: Call, size: int) -> Overloaded | None:
    """Return which quota one more call would break, None if it fits.

    Args:
        guest: Who makes it.
        used: What it holds already.
        call: The call.
        size: Bytes of its arguments.
    """
    for name, amount, limit in (
        ("max_calls", used.calls + 1, guest.max_calls),
        ("max_queued", used.queued + bool(call.model), guest.max_queued),
        ("max_bytes", used.bytes + size, guest.max_bytes),
    ):
        if amount > limit:
            return _full(guest, name, limit, f"with this call it would have {amount}")
    return None


def too_many(guest: Guest, connections: int) -> Overloaded | None:
    """Return why a guest may not have one more connection, None if it may."""
    limit = guest.max_connections
    if connections < limit:
        return None
    return _full(guest, "max_connections", limit, f"and has {connections} already")


def sum_of(used: Iterable[Usage]) -> Usage:
    """Add up what several connections hold."""
    parts = list(used)
    return Usage(*(sum(getattr(part, name) for part in parts) for name in Usage.__slots__))


def _beyond_call(call: Call, packed: Packed) -> str:
    """Say which of the arguments takes more than `call`; "" if none does."""
    found = {
        key: shape for key, shape in outline(packed.payload).items() if shape is not Shape.NOTHING
    }
    if not call.model:
        attaches = found.get("name") is Shape.TEXT and not found.keys() & {"model"}
        return "" if attaches else "to load a model"
    for key in sorted(found.keys() & ADMIN_ARGUMENTS):
        return f"the argument {key!r}"
    if found.get("lora_request", Shape.TEXT) is not Shape.TEXT:
        return "an adapter that is not named by what is loaded"
    return ""


def _denied(guest: Guest, what: str, role: Role = Role.ADMIN) -> PermissionDenied:
    text = f"{what} takes the role {role}, and {guest.name!r} has {guest.role}"
    return PermissionDenied(text, details={"role": role.value})


def _full(guest: Guest, quota: str, limit: int, words: str) -> Overloaded:
    return Overloaded(
        f"{guest.name!r} may have {quota} = {limit}, {words}; try again in {QUOTA_PAUSE:g} s",
        phase="queue" if quota != "max_connections" else "connect",
        details={"retry_after": QUOTA_PAUSE, "quota": quota},
    )


def _role(name: str, value: Any) -> Role:
    try:
        return Role(value)
    except ValueError:
        raise _wrong(name, f"[{name}]: role is one of {', '.join(Role)}") from None


def _wrong(name: str, text: str) -> InvalidRequest:
    return InvalidRequest.of("security.clients", name, text)
