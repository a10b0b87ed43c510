"""Bundles: fewer messages that say the same in the same order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmport.bridge.bundles import FULL, FULL_BYTES, bundled, unbundled
from vllmport.bridge.codec import Bytes, Packed, pack
from vllmport.bridge.errors import ProtocolError
from vllmport.bridge.limits import MAX_BUNDLE
from vllmport.bridge.messages import Bundle, Call, Cancel, Credit, Message, decode, encode

_messages = st.one_of(
    st.integers(1, 2**60).map(lambda n: encode(Cancel(n))),
    st.binary(max_size=2 * FULL_BYTES).map(lambda b: encode(Call(1, "m", "v", None), pack(b))),
    st.just(encode(Call(2, "m", "v", 5), Packed(b"\x80", [b"." * 5000]))),
)


def unpacked(frames: list[Bytes]) -> list[tuple[Message, list[Bytes]]]:
    return [(message, list(parts)) for message, parts in unbundled(frames)]


@given(st.lists(_messages, max_size=3 * FULL))
def test_what_was_bundled_comes_out_again_in_its_order(messages: list[list[Bytes]]) -> None:
    sent = list(bundled(messages))
    assert sum(count for count, _ in sent) == len(messages)
    out = [parts for _, frames in sent for _, parts in unpacked(frames)]
    assert [list(map(bytes, parts)) for parts in out] == [list(map(bytes, m)) for m in messages]


def test_small_messages_travel_together_and_large_ones_alone() -> None:
    small, large = encode(Credit(1, 2)), encode(Call(1, "m", "v", None), pack(b"." * FULL_BYTES))
    counts = [count for count, _ in bundled([small] * (FULL + 2) + [large] + [small])]
    assert counts == [FULL, 2, 1, 1]


def test_one_message_is_sent_as_it_is() -> None:
    frames = encode(Cancel(7))
    assert list(bundled([frames])) == [(1, frames)]


@pytest.mark.parametrize(
    ("sizes", "payload"),
    [
        ([], b""),
        ([4], b"...."),
        ([4, 2], b"....."),
        ([-1, 6], b"....."),
        ([1, 0] * (MAX_BUNDLE + 1), b"." * (MAX_BUNDLE + 1)),
        ([1, 0], "."),
        ([1, 0], b"."),
    ],
)
def test_a_bundle_that_does_not_divide_is_refused(sizes: list[int], payload: object) -> None:
    with pytest.raises(ProtocolError):
        unpacked(encode(Bundle(sizes), pack(payload)))


def test_a_bundle_inside_a_bundle_is_refused() -> None:
    ((_, inner),) = bundled([encode(Cancel(7)), encode(Cancel(8))])
    sizes = [len(frame) for frame in inner]
    outer = encode(Bundle(sizes), pack(b"".join(inner)))
    assert isinstance(decode(outer)[0], Bundle)
    with pytest.raises(ProtocolError, match="inside"):
        unpacked(outer)
