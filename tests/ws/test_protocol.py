"""Frames as they are read: what comes at once is what comes byte by byte. Short texts have a way of their own.

The handshake's side of the protocol is in test_handshake.py.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.utils import apply_mask

from sidecar.ws.protocol import SHORT_BYTES, EdgeProtocol

MAX_BYTES = 2_000
MASK = b"\x01\x80\xff\x7f"
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
Seen = tuple[list[tuple[Opcode, bytes, bool]], list[int], bytes]


class Peer:
    """A protocol that is open, and what becomes of what comes. It takes so many frames."""

    def __init__(self, frames: int = 1_000, max_bytes: int = MAX_BYTES) -> None:
        self.failed: list[int] = []
        self.frames = frames
        self.protocol = EdgeProtocol(
            max_inbound_bytes=max_bytes,
            logger=logging.getLogger("websockets"),
            admit_frame=self._admit,
            on_fail=self.failed.append,
            on_refused=lambda _: None,
        )
        self.protocol.receive_data(REQUEST)
        (request,) = self.protocol.events_received()
        assert isinstance(request, Request)
        self.protocol.send_response(self.protocol.accept(request))
        self.protocol.data_to_send()

    def _admit(self) -> bool:
        self.frames -= 1
        return self.frames >= 0

    def seen(self, *pieces: bytes) -> Seen:
        """The frames, why it failed, and what was answered."""
        events: list[Frame] = []
        for piece in pieces:
            text = self.protocol.take_text(piece)
            if text is None:
                self.protocol.receive_data(piece)
            else:
                events.append(Frame(Opcode.TEXT, text))
            events += [event for event in self.protocol.events_received() if isinstance(event, Frame)]
        told = [(event.opcode, bytes(event.data), event.fin) for event in events]
        return told, self.failed, b"".join(self.protocol.data_to_send())


def frame(
    payload: bytes, opcode: int = 1, *, fin: bool = True, reserved: int = 0, mask: bool = True, code: int | None = None
) -> bytes:
    """As a client makes it; `code` is how its length is said, where another than the shortest."""
    length = len(payload)
    if code is None:
        code = length if length < 126 else 126 if length < 65_536 else 127
    following = {126: 2, 127: 8}.get(code, 0)
    head = bytes((fin << 7 | reserved << 4 | opcode, mask << 7 | code))
    head += length.to_bytes(following, "big") if following else b""
    return head + (MASK + apply_mask(payload, MASK) if mask else payload)


LENGTHS = st.sampled_from((0, 1, 124, 125, 126, 127, 128, SHORT_BYTES, SHORT_BYTES + 1, MAX_BYTES, MAX_BYTES + 1))
FRAMES = st.builds(
    frame,
    st.one_of(st.binary(max_size=20), LENGTHS.map(bytes)),
    st.sampled_from((0, 1, 1, 1, 1, 2, 3, 8, 9, 10)),
    fin=st.sampled_from((True, True, True, False)),
    reserved=st.sampled_from((0, 0, 0, 0, 1, 4)),
    mask=st.sampled_from((True, True, True, True, False)),
)


@given(st.lists(FRAMES, max_size=6), st.integers(1, 6))
@example([frame(b"a"), frame(bytes(119), code=127), frame(b"b")], 6)
@example([frame(b"a"), frame(b"b", code=126), frame(b"c")], 2)
@example([frame(b"a"), frame(b"b", fin=False), frame(b"c"), frame(b"d", 0)], 6)
def test_frames_one_by_one_are_what_they_are_byte_by_byte(frames: list[bytes], admitted: int) -> None:
    whole = Peer(admitted).seen(*frames)
    assert whole == Peer(admitted).seen(*(bytes((byte,)) for each in frames for byte in each))
    assert whole == Peer(admitted).seen(b"".join(frames))


@given(st.lists(FRAMES, max_size=4), st.lists(st.integers(0, 60), max_size=6))
def test_wherever_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert Peer().seen(*pieces) == Peer().seen(data)


@pytest.mark.parametrize(("length", "failed"), [(100, []), (101, [1009])])
def test_a_short_text_is_held_to_a_limit_that_is_shorter(length: int, failed: list[int]) -> None:
    told, failures, _ = Peer(max_bytes=100).seen(frame(b"a"), frame(bytes(length)))
    assert failures == failed
    assert len(told) == 2 - len(failed)


def test_a_text_that_comes_in_two_pieces_ends_where_the_next_begins() -> None:
    first, second = frame(b"first"), frame(b"second")
    told, failed, _ = Peer().seen(first, second[:2], second[2:], first)
    assert [data for _, data, _ in told] == [b"first", b"second", b"first"]
    assert not failed
