"""Response streams after a crash: what is known again of their chunks, and of what they answer."""

from __future__ import annotations

import pytest

from sidecar.core.errors import ErrorReason, FailedPrecondition
from sidecar.core.message import StreamPlace
from sidecar.core.stored import StoredStream
from sidecar.core.streams import MAX_CHUNKS, Chunk, ResponseStreams
from tests.support.speaker import OPEN, Speaker

IDLE_S = 120.0


@pytest.mark.parametrize("written", [2, 3, 5])
def test_chunks_of_a_stream_whose_place_was_kept_are_repeats_too(written: int) -> None:
    """Two of them are still kept, with one between that expired; a stream may also have gone on since its place was."""
    at = Speaker().core.clock.now()
    streams = ResponseStreams()
    streams.restore((StoredStream("s", written, over=False, cancelled=False, reply_to=""),), 0.0)
    for index in (2, 4):
        streams.restore_chunk(StreamPlace("s", index, OPEN), Chunk(index + 7, at, None))
    sequences = [chunk and chunk.sequence for chunk in (streams.admit(StreamPlace("s", n, OPEN), "") for n in range(6))]
    assert sequences == [0, 0, 9, 0, 11, None]


def test_only_the_last_chunks_are_found_after_a_restart_as_well() -> None:
    at = Speaker().core.clock.now()
    streams = ResponseStreams()
    streams.restore((StoredStream("s", MAX_CHUNKS + 2, over=True, cancelled=False, reply_to=""),), 0.0)
    for index in range(MAX_CHUNKS + 2):
        streams.restore_chunk(StreamPlace("s", index, OPEN), Chunk(index + 1, at, None))
    known = [streams.admit(StreamPlace("s", index, OPEN), "") for index in (1, 2, MAX_CHUNKS + 1)]
    assert [chunk and chunk.sequence for chunk in known] == [0, 3, MAX_CHUNKS + 2]


def restored_without_its_place() -> ResponseStreams:
    """The crash took where its stream stood: of the chunk that was kept nobody knows what it answered."""
    streams = ResponseStreams()
    streams.restore_chunk(StreamPlace("s", 0, OPEN), Chunk(1, Speaker().core.clock.now(), None))
    return streams


def test_what_a_restored_stream_answers_is_known_with_its_next_chunk() -> None:
    streams = restored_without_its_place()
    assert streams.admit(StreamPlace("s", 1, OPEN), "m-1") is None
    streams.taken(StreamPlace("s", 1, OPEN), "m-1", "token", Chunk(2, Speaker().core.clock.now(), None))
    (silent,) = streams.silent(1e9, IDLE_S)
    assert (silent.reply_to, silent.event_type) == ("m-1", "token")
    assert streams.cancel(None, "m-1") == [("s", "m-1")]


def test_a_restored_stream_that_answers_what_was_cancelled_is_cancelled() -> None:
    streams = restored_without_its_place()
    assert streams.cancel(None, "m-1") == [("", "m-1")]
    assert streams.any_open
    with pytest.raises(FailedPrecondition) as caught:
        streams.admit(StreamPlace("s", 1, OPEN), "m-1")
    assert caught.value.reason is ErrorReason.STREAM_CANCELLED
    assert not streams.any_open
