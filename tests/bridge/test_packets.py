"""Packets: however a stream is cut, the same messages come out; any bytes do, or are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmport.bridge.errors import ProtocolError
from vllmport.bridge.limits import MAX_PACKET
from vllmport.bridge.packets import PacketReader, to_packet

messages = st.lists(st.lists(st.binary(max_size=40), min_size=2, max_size=5), max_size=5)


@given(messages, st.data())
@settings(max_examples=100, deadline=None)
def test_messages_come_out_however_the_stream_is_cut(
    sent: list[list[bytes]], data: st.DataObject
) -> None:
    stream = b"".join(map(to_packet, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = PacketReader()
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [frames for part in parts for frames in reader.feed(part)] == sent
    assert reader.pending == 0


@given(messages.filter(bool), st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_gives_messages_or_one_error(
    sent: list[list[bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(map(to_packet, sent)))
    stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        for frames in PacketReader().feed(stream):
            assert len(frames) >= 2
    except ProtocolError:
        pass


def test_a_message_that_no_packet_holds_is_refused() -> None:
    half = bytes(MAX_PACKET // 2)
    with pytest.raises(ProtocolError, match="a packet takes"):
        to_packet([half, half])
