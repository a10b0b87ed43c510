"""Messages ↔ frames."""

from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings

from vllmport.bridge.codec import pack, unpack
from vllmport.bridge.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    VllmportError,
)
from vllmport.bridge.limits import (
    MAX_BUFFERS,
    MAX_HEADER,
    MAX_NAME,
    MAX_TEXT,
    MAX_TIMEOUT_MS,
)
from vllmport.bridge.messages import (
    KINDS,
    Bye,
    Call,
    Error,
    Items,
    Kind,
    Message,
    Ping,
    decode,
    decode_header,
    encode,
    error_from,
    error_message,
)
from wire_strategies import messages


def header(*fields: Any) -> bytes:
    frame = msgpack.packb(fields)
    assert isinstance(frame, bytes)
    return frame


@given(messages)
@settings(max_examples=150, deadline=None)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    back, payload, buffers = decode(encode(message))
    assert (type(back), back) == (type(message), message)
    assert unpack(payload, buffers) is None


def test_each_kind_has_one_message_and_each_message_one_kind() -> None:
    assert sorted(KINDS.values()) == sorted(Kind)


def test_payload_and_buffers_pass_through_untouched() -> None:
    frames = [*encode(Ping(1))[:1], b"not msgpack \xc1", b"one", b"two"]
    assert decode(frames) == (Ping(1), b"not msgpack \xc1", [b"one", b"two"])


def test_trailing_defaults_may_be_missing() -> None:
    assert decode_header(header(Kind.CALL, 7, "m", "generate", None)) == Call(
        7, "m", "generate", None
    )


def test_trailing_fields_of_a_newer_peer_are_ignored() -> None:
    assert decode_header(header(Kind.BYE, "why", 1, ["new"], "newer")) == Bye("why")


@pytest.mark.parametrize(
    "frame",
    [
        header(),
        header(99),
        header("CALL"),
        header(True),  # noqa: FBT003  # one bad field
        header(None),
        header([Kind.PING], 1),
        msgpack.packb(Kind.PING),
        msgpack.packb({0: Kind.PING, 1: 1}),
        header(Kind.PING),
        header(Kind.PING, "1"),
        header(Kind.PING, True),  # noqa: FBT003  # as above
        header(Kind.PING, 1.0),
        header(Kind.PING, 2**63),
        header(Kind.BYE, "x" * (MAX_NAME + 1)),
        header(Kind.ERROR, 1, "code", "x" * (MAX_TEXT + 1)),
        header(Kind.ERROR, 1, "code", "text", 1),
        header(Kind.HELLO, 1, "0"),
        header(Kind.HELLO, ["1"], "0"),
        header(Kind.ITEMS, [[1, 2, 3]]),
        header(Kind.ITEMS, [1, 2]),
        header(Kind.CALL, 0, "m", "v", None),
        header(Kind.CALL, -1, "m", "v", None),
        header(Kind.CALL, 1, "m", "v", -1),
        header(Kind.CALL, 1, "m", "v", MAX_TIMEOUT_MS + 1),
        header(Kind.CALL, 1, "m", "v", None, -1),
    ],
    ids=lambda frame: frame[:16].hex(" "),
)
def test_a_header_that_is_no_message_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_header(frame)


@pytest.mark.parametrize("fields", [b"\x91", b"\x94\x0a", b"\x92\x0e"])
def test_deep_nesting_in_a_field_is_a_protocol_error(fields: bytes) -> None:
    """Such a value cannot even be shown by repr."""
    with pytest.raises(ProtocolError):
        decode_header(fields + b"\x91" * 1000 + b"\x01" * 4)


def test_a_header_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="the limit is"):
        decode_header(bytes(MAX_HEADER + 1))


def test_a_complaint_quotes_little_of_what_it_complains_about() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_header(header(Kind.PING, "x" * 100_000))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("count", [0, 1, 3 + MAX_BUFFERS])
def test_the_number_of_frames_is_bounded(count: int) -> None:
    with pytest.raises(ProtocolError, match="frames"):
        decode([encode(Ping(1))[0]] * count)


def test_the_longest_error_text_fits_into_a_header() -> None:
    frames = encode(error_message(VllmportError("😀" * 2 * MAX_TEXT), 2**62, 2**62))
    assert len(frames[0]) <= MAX_HEADER
    decode_header(frames[0])


def test_an_error_text_that_is_no_unicode_travels_escaped() -> None:
    """Names of files may hold such text."""
    frames = encode(error_message(VllmportError("no \udcff here")))
    message = decode_header(frames[0])
    assert isinstance(message, Error)
    assert message.message == "no \\udcff here"


def test_a_message_that_cannot_travel_is_refused_by_its_sender() -> None:
    with pytest.raises(InvalidRequest):
        encode(Call(1, "\ud800", "generate", None))


class Case(NamedTuple):
    error: VllmportError
    attribute: str
    value: Any


@pytest.mark.parametrize(
    "case",
    [
        Case(Overloaded("full", phase="queue", details={"retry_after": 2.5}), "retry_after", 2.5),
        Case(DeadlineExceeded("late", worker="m/0", attempt=2, details={"tokens": 3}), "tokens", 3),
        Case(InvalidRequest.of("top_p", 7, "no", retryable=True), "parameter", "top_p"),
    ],
    ids=lambda case: case.error.code,
)
def test_errors_cross_the_wire_whole(case: Case) -> None:
    error = case.error
    frames = encode(error_message(error, 7, 3), pack(error.details))
    message, payload, buffers = decode(frames)
    assert isinstance(message, Error)
    assert (message.id, message.client) == (7, 3)
    back = error_from(message, unpack(payload, buffers))
    assert type(back) is type(error)
    assert vars(back) == vars(error) | {"retryable": error.retryable, "code": error.code}
    assert getattr(back, case.attribute) == case.value


def test_details_that_are_no_map_are_dropped() -> None:
    assert error_from(Error(1, "cancelled", "why"), ["no", "map"]).details == {}


def test_a_batch_of_a_thousand_streams_is_a_small_header() -> None:
    entries = [[number, 10_000] for number in range(1000)]
    assert len(encode(Items(entries, 1))[0]) < MAX_HEADER // 10
