"""Response streams: which chunk is taken, what a cancel and silence do, and what a failed append takes back."""

from __future__ import annotations

import pytest

from sidecar.core.errors import (
    BadRequest,
    ErrorReason,
    FailedPrecondition,
    ManagerGone,
    ResourceExhausted,
)
from sidecar.core.limits import Limits
from sidecar.core.message import DeliveryState, Receipt, StreamPlace, StreamState
from sidecar.core.outbox import OutboxLimits
from sidecar.core.streams import (
    MAX_CHUNKS,
    MAX_ENDED_CHUNKS,
    MAX_OPEN,
    MAX_REMEMBERED,
    MAX_STORED_ENDED,
    Chunk,
    ResponseStreams,
)
from tests.support.doubles import LaterStore, StoreFailed
from tests.support.speaker import END, ERROR, OPEN, Speaker, Told

IDLE_S = 120.0


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


# By index


def test_chunks_go_by_their_index(speaker: Speaker) -> None:
    first = speaker.send(0)
    speaker.send(1)
    assert speaker.refusal(3) is ErrorReason.STREAM_OUT_OF_ORDER
    repeat = speaker.send(0)
    assert repeat == first._replace(duplicate=True, connections=0)  # with the id that was made up for it
    last = speaker.send(2, END)
    assert speaker.send(2, END).sequence == last.sequence
    assert speaker.send(2, OPEN, message_id="c-2") == last._replace(message_id="c-2", duplicate=True, connections=0)
    assert speaker.refusal(3) is ErrorReason.STREAM_ENDED
    assert [int(frame.split()[1]) for frame in speaker.socket.frames] == [1, 2, 3]
    assert not speaker.manager.conversation.streaming


@pytest.mark.parametrize("state", [END, ERROR])
def test_a_stream_may_be_one_chunk_and_the_last_may_say_nothing(speaker: Speaker, state: StreamState) -> None:
    with pytest.raises(BadRequest):
        speaker.offer(0, OPEN, payload=b"")
    assert isinstance(speaker.offer(0, state, payload=b""), Receipt)
    assert speaker.refusal(1) is ErrorReason.STREAM_ENDED
    assert speaker.send(0, stream_id="another").sequence == 2


def test_a_stream_begins_with_its_first_chunk(speaker: Speaker) -> None:
    assert speaker.refusal(1) is ErrorReason.STREAM_OUT_OF_ORDER
    assert not speaker.manager.conversation.streaming


def test_a_repeat_says_how_far_its_chunk_has_come(speaker: Speaker) -> None:
    speaker.send(0)
    speaker.manager.acknowledge(speaker.socket.attach_id, 1, speaker.core.clock.now())
    assert speaker.send(0).state is DeliveryState.ACKNOWLEDGED


def test_a_refused_chunk_does_not_move_the_place() -> None:
    speaker = Speaker(Limits(outbox=OutboxLimits(max_messages=1)))
    speaker.core.pause(speaker.manager, speaker.socket)
    speaker.manager.outbox.ever_acknowledged = True
    speaker.send(0)
    for _ in range(2):
        assert speaker.refusal(1) is ErrorReason.OUTBOX_FULL
    assert speaker.refusal(2) is ErrorReason.STREAM_OUT_OF_ORDER  # it cannot be overtaken
    assert speaker.refusal(0, stream_id="other") is ErrorReason.OUTBOX_FULL
    assert speaker.refusal(1, stream_id="other") is ErrorReason.STREAM_OUT_OF_ORDER
    speaker.core.resume(speaker.manager, speaker.socket)
    assert speaker.send(1).sequence == 2


def test_of_a_long_stream_the_receipts_of_the_last_chunks_are_known(speaker: Speaker) -> None:
    for index in range(MAX_CHUNKS + 1):
        speaker.send(index)
    assert speaker.send(1).sequence == 2
    forgotten = speaker.send(0)
    assert (forgotten.duplicate, forgotten.sequence, forgotten.state) == (True, 0, DeliveryState.QUEUED)
    speaker.manager.acknowledge(speaker.socket.attach_id, MAX_CHUNKS + 1, speaker.core.clock.now())
    assert speaker.send(0).state is DeliveryState.ACKNOWLEDGED


@pytest.mark.parametrize("over", [0, 3])
def test_of_a_stream_that_is_over_the_receipts_of_fewer_are_known(speaker: Speaker, over: int) -> None:
    last = MAX_ENDED_CHUNKS + over - 1
    for index in range(last):
        speaker.send(index)
    speaker.send(last, END)
    assert [speaker.send(index).sequence for index in range(over, last + 1)] == list(range(over + 1, last + 2))
    assert {speaker.send(index).sequence for index in range(over)} == ({0} if over else set())


def test_so_many_streams_are_open_at_once(speaker: Speaker) -> None:
    for number in range(MAX_OPEN):
        speaker.send(0, stream_id=f"s-{number}")
    with pytest.raises(ResourceExhausted) as caught:
        speaker.offer(0)
    assert caught.value.reason is ErrorReason.USER_LIMIT
    speaker.send(1, END, stream_id="s-0")
    speaker.send(0)
    speaker.send(1)


def test_streams_that_are_over_are_known_so_many_the_latest(speaker: Speaker) -> None:
    for number in range(MAX_REMEMBERED + 1):
        speaker.send(0, END, stream_id=f"s-{number}")
    assert speaker.refusal(1, stream_id="s-1") is ErrorReason.STREAM_ENDED
    assert not speaker.send(0, stream_id="s-0").duplicate


# Cancelled by the client


def test_a_cancel_ends_the_stream_and_tells_who_sends_it(speaker: Speaker) -> None:
    speaker.send(0, reply_to="m-1")
    assert speaker.cancel("s") == [("s", "m-1")]
    assert speaker.refusal(1, END) is ErrorReason.STREAM_CANCELLED
    assert speaker.refusal(0) is ErrorReason.STREAM_CANCELLED
    assert speaker.cancel("s") == []
    assert not speaker.manager.conversation.streaming


def test_a_cancel_by_the_message_ends_every_answer_to_it(speaker: Speaker) -> None:
    for stream_id in ("s-1", "s-2"):
        speaker.send(0, stream_id=stream_id, reply_to="m-1")
    speaker.send(0, stream_id="s-3", reply_to="m-2")
    assert speaker.cancel(message_id="m-1") == [("s-1", "m-1"), ("s-2", "m-1")]
    assert speaker.refusal(1, stream_id="s-2") is ErrorReason.STREAM_CANCELLED
    assert speaker.refusal(0, stream_id="s-4", reply_to="m-1") is ErrorReason.STREAM_CANCELLED
    speaker.send(1, stream_id="s-3")


def test_a_cancel_comes_before_the_first_chunk(speaker: Speaker) -> None:
    assert speaker.cancel("s") == [("s", "")]
    assert speaker.cancel(message_id="m-1") == [("", "m-1")]
    assert speaker.refusal(0) is ErrorReason.STREAM_CANCELLED
    assert speaker.refusal(0, stream_id="other", reply_to="m-1") is ErrorReason.STREAM_CANCELLED
    assert (speaker.cancel("s"), speaker.cancel(message_id="m-1")) == ([], [])
    assert speaker.socket.frames == []
    speaker.send(0, stream_id="other", reply_to="m-2")


def test_a_cancel_that_names_both_is_told_once(speaker: Speaker) -> None:
    assert speaker.cancel("s-1", "m-1") == [("s-1", "m-1")]
    speaker.send(0, stream_id="s-2", reply_to="m-2")
    assert speaker.cancel("s-2", "m-2") == [("s-2", "m-2")]
    speaker.send(0, stream_id="s-3", reply_to="m-3")
    assert speaker.cancel("s-3", "m-4") == [("s-3", "m-3"), ("", "m-4")]


def test_a_cancel_of_what_is_over_is_told_nobody(speaker: Speaker) -> None:
    speaker.send(0, END)
    assert speaker.cancel("s") == []
    assert speaker.send(0).duplicate
    assert speaker.refusal(1) is ErrorReason.STREAM_ENDED


def test_what_a_stream_answers_may_come_to_be_known_with_a_later_chunk(speaker: Speaker) -> None:
    """As after a restart, of which its chunks alone are left."""
    speaker.send(0)
    speaker.cancel(message_id="m-1")
    assert speaker.refusal(1, reply_to="m-1") is ErrorReason.STREAM_CANCELLED
    assert not speaker.manager.conversation.streaming


def test_so_many_cancels_are_remembered(speaker: Speaker) -> None:
    for number in range(MAX_REMEMBERED + 1):
        speaker.cancel(f"s-{number}", None)
        speaker.cancel(None, f"m-{number}")
    assert speaker.refusal(0, stream_id="s-1") is ErrorReason.STREAM_CANCELLED
    assert speaker.refusal(0, reply_to="m-1") is ErrorReason.STREAM_CANCELLED
    speaker.send(0, stream_id="s-0", reply_to="m-0")


def test_whoever_watches_no_more_is_told_no_more(speaker: Speaker) -> None:
    told: Told = []

    def watcher(stream_id: str, reply_to: str) -> None:
        told.append((stream_id, reply_to))

    conversation = speaker.manager.conversation
    conversation.watch_cancels(watcher)
    speaker.cancel("s-1")
    conversation.unwatch_cancels(watcher)
    conversation.unwatch_cancels(watcher)
    speaker.cancel("s-2")
    assert told == [("s-1", "")]


def test_the_end_of_the_context_ends_its_streams(speaker: Speaker) -> None:
    speaker.send(0)
    speaker.manager.end("closed_by_service", None, speaker.core.clock.now())
    with pytest.raises(ManagerGone):
        speaker.offer(1)
    assert not speaker.manager.conversation.streaming
    assert speaker.manager.conversation.stored_streams() == ()
    speaker.manager.conversation.unwatch_cancels(lambda *_: None)


# Silence


QUIET = Limits(health_check_interval_s=1_000.0)
"""Nobody answers pings here."""


def test_a_silent_stream_is_ended_with_an_error() -> None:
    speaker = Speaker(QUIET)
    speaker.send(0)
    speaker.core.run(IDLE_S - 1)
    speaker.send(1)
    speaker.core.run(IDLE_S - 1)
    assert len(speaker.socket.take()) == 2
    speaker.core.run(1)
    (frame,) = speaker.socket.take()
    assert frame.split()[:2] == [b"message", b"3"]
    # What its sender has for that place was never delivered: an OK for a repeat would be a lie.
    assert speaker.refusal(2) is ErrorReason.STREAM_ENDED
    assert speaker.refusal(3) is ErrorReason.STREAM_ENDED
    assert speaker.send(1).sequence == 2
    speaker.core.run(IDLE_S)
    assert speaker.socket.take() == []
    streams = ResponseStreams()
    streams.restore(speaker.manager.conversation.stored_streams(), 0.0)
    streams.restore_chunk(StreamPlace("s", 2, ERROR), Chunk(3, speaker.core.clock.now(), None))
    with pytest.raises(FailedPrecondition):
        streams.admit(StreamPlace("s", 2, OPEN), "")


def test_a_silent_stream_whose_end_the_store_did_not_keep_goes_on() -> None:
    store = LaterStore()
    speaker = Speaker(QUIET, store)
    speaker.later(0)
    store.confirm()
    speaker.core.run(IDLE_S)
    assert speaker.refusal(1) is ErrorReason.STREAM_ENDED
    store.fail(StoreFailed())
    speaker.later(1)
    store.confirm()
    assert speaker.send(1).duplicate
    assert [int(frame.split()[1]) for frame in speaker.socket.frames] == [1, 2]


def test_a_silent_stream_without_room_is_ended_once_there_is() -> None:
    speaker = Speaker(Limits(stream_idle_timeout_s=5.0, outbox=OutboxLimits(max_messages=1)))
    speaker.core.pause(speaker.manager, speaker.socket)
    speaker.manager.outbox.ever_acknowledged = True
    speaker.send(0)
    speaker.core.run(8)
    assert speaker.manager.conversation.streaming
    speaker.core.resume(speaker.manager, speaker.socket)
    speaker.core.run(1)
    assert len(speaker.socket.frames) == 2
    assert not speaker.manager.conversation.streaming


def test_an_open_stream_keeps_its_context_alive() -> None:
    speaker = Speaker(Limits(idle_timeout_s=10.0, stream_idle_timeout_s=30.0, health_check_interval_s=1_000.0))
    speaker.send(0)
    speaker.core.run(29)
    assert not speaker.manager.ended
    speaker.core.run(1)  # the last chunk, which is activity like every send
    assert (speaker.manager.conversation.streaming, speaker.manager.ended) == (False, False)
    speaker.core.run(9)
    assert not speaker.manager.ended
    speaker.core.run(1)
    assert speaker.manager.ended


# A store that answers later


def test_a_repeat_of_a_chunk_under_way_waits_for_it() -> None:
    store = LaterStore()
    speaker = Speaker(store=store)
    first, repeat = speaker.later(0), speaker.later(0)
    store.confirm()
    assert (first.receipt, repeat.receipt) != (None, None)
    assert repeat.receipt is not None
    assert repeat.receipt.duplicate
    assert speaker.send(0).duplicate
    assert len(speaker.socket.frames) == 1


def test_what_failed_is_next_again() -> None:
    store = LaterStore()
    speaker = Speaker(store=store)
    speaker.later(0)
    store.confirm()
    lost = [speaker.later(1), speaker.later(2), speaker.later(3, END), speaker.later(0, END, "other")]
    assert speaker.refusal(4) is ErrorReason.STREAM_ENDED
    for _ in lost:
        store.fail(StoreFailed())
    assert [one.error.reason for one in lost if one.error] == [ErrorReason.STORAGE_UNAVAILABLE] * 4
    assert speaker.refusal(2) is ErrorReason.STREAM_OUT_OF_ORDER
    assert speaker.refusal(1, stream_id="other") is ErrorReason.STREAM_OUT_OF_ORDER
    assert speaker.manager.conversation.streaming
    speaker.later(1, END)
    speaker.later(0, stream_id="other")
    store.confirm()
    store.confirm()
    assert [int(frame.split()[1]) for frame in speaker.socket.frames] == [1, 2, 3]


def test_a_cancel_stands_though_the_chunks_under_way_fail() -> None:
    store = LaterStore()
    speaker = Speaker(store=store)
    chunk = speaker.later(0)
    assert speaker.cancel("s") == [("s", "")]
    store.fail(StoreFailed())
    assert chunk.error is not None
    assert speaker.refusal(0) is ErrorReason.STREAM_CANCELLED
    assert speaker.manager.conversation.streaming is False


def test_a_chunk_that_is_confirmed_after_the_cancel_is_delivered() -> None:
    store = LaterStore()
    speaker = Speaker(store=store)
    chunk = speaker.later(0)
    speaker.cancel("s")
    store.confirm()
    assert chunk.receipt is not None
    assert len(speaker.socket.frames) == 1


def test_what_is_forgotten_before_the_store_answers_is_forgotten() -> None:
    store = LaterStore()
    speaker = Speaker(store=store)
    for index in range(MAX_CHUNKS + 1):
        speaker.later(index)
    ends = [speaker.later(0, END, f"s-{number}") for number in range(MAX_REMEMBERED + 2)]
    store.confirm(MAX_CHUNKS + 2)
    for _ in ends[1:]:
        store.fail()
    assert ends[0].receipt is not None
    assert speaker.send(0).sequence == 0
    assert speaker.send(1).sequence == 2
    assert not speaker.later(0, END, "s-0").receipt


# What a store keeps


def test_chunks_that_were_kept_are_repeats_after_a_restart() -> None:
    streams = ResponseStreams()
    at = Speaker().core.clock.now()
    for index in range(2):
        streams.restore_chunk(StreamPlace("s", index, OPEN), Chunk(index + 7, at, None))
    assert streams.admit(StreamPlace("s", 1, OPEN), "") == Chunk(8, at, None)
    assert streams.admit(StreamPlace("s", 2, OPEN), "") is None


def test_a_store_keeps_so_many_of_the_streams_that_are_over_the_latest(speaker: Speaker) -> None:
    for number in range(MAX_STORED_ENDED + 1):
        speaker.send(0, END, stream_id=f"s-{number}")
    speaker.send(0, stream_id="open")
    kept = [each.stream_id for each in speaker.manager.conversation.stored_streams()]
    assert kept == [*(f"s-{number}" for number in range(1, MAX_STORED_ENDED + 1)), "open"]


def test_streams_are_restored_as_they_were(speaker: Speaker) -> None:
    speaker.send(0, stream_id="open", reply_to="m-1")
    speaker.send(0, END, stream_id="over")
    speaker.send(0, stream_id="cancelled")
    for stream_id, message_id in (("cancelled", None), ("unbegun", None), (None, "m-2")):
        speaker.cancel(stream_id, message_id)
    kept = speaker.manager.conversation.stored_streams()
    streams = ResponseStreams()
    streams.restore(kept, now=50.0)
    assert streams.stored() == kept
    assert streams.next_silence(IDLE_S) == 50.0 + IDLE_S
    assert streams.admit(StreamPlace("open", 1, OPEN), "") is None
    for stream_id, reply_to in (("cancelled", ""), ("unbegun", ""), ("new", "m-2")):
        with pytest.raises(FailedPrecondition) as caught:
            streams.admit(StreamPlace(stream_id, 0, OPEN), reply_to)
        assert caught.value.reason is ErrorReason.STREAM_CANCELLED
    with pytest.raises(FailedPrecondition) as caught:
        streams.admit(StreamPlace("over", 1, OPEN), "")
    assert caught.value.reason is ErrorReason.STREAM_ENDED
    assert streams.cancel("open", None) == [("open", "m-1")]
