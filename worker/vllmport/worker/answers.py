"""How a worker says that a call failed. Pure."""

from vllmport.bridge.codec import Bytes, pack
from vllmport.bridge.errors import EngineError, InvalidRequest, VllmportError, shown
from vllmport.bridge.messages import encode, error_message
from vllmport.worker.engine import Key


def as_ours(error: BaseException) -> VllmportError:
    """Return an error of this project for any; the class of another one is in its details."""
    if isinstance(error, VllmportError):
        return error
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return EngineError(f"{type(error).__name__}: {error}", details={"class": name})


def error_frames(key: Key, request_id: str, error: VllmportError) -> list[Bytes]:
    """Return the message that ends a call with an error."""
    client, call_id = key
    details = error.details_for(request_id)
    try:
        packed = pack(details)
    except InvalidRequest:  # details hold what a caller sent; say at least what went wrong
        packed = pack({name: shown(value) for name, value in details.items()})
    return encode(error_message(error, call_id, client), packed)
