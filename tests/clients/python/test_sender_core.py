"""SenderCore and its lanes as values: frames at their limits, whose an answer is, what is sent again, who gives way."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import grpc
import pytest

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar_client.errors import BadRequest, LaneNotOpen, ManagerGone, SidecarError, TransportError
from sidecar_client.lanes import Entry, LaneKey
from sidecar_client.sender_core import SenderCore, SenderLimits, StreamCancellation
from sidecar_client.values import DeliveryState
from tests.clients.python.scripted import receipt, status

BROKEN = TransportError(grpc.StatusCode.UNAVAILABLE, "", "the stream ended")


class Core:
    """A core, and short words for what is done to it."""

    def __init__(self, report_acknowledged: bool = False, **limits: int) -> None:
        self.left = 0
        self.cancelled: list[StreamCancellation] = []
        self.core = SenderCore(
            SenderLimits(**limits),
            report_acknowledged=report_acknowledged,
            on_left=self.leave,
            on_stream_cancelled=self.cancelled.append,
        )
        self.entries: dict[str, Entry] = {}
        self.outcomes: dict[str, tuple[Future[Any], Future[Any] | None]] = {}

    def leave(self) -> None:
        self.left += 1

    def add(self, key: str, name: str, *, token: str = "t", payload: bytes = b"1", wait: bool = False) -> None:
        accepted: Future[Any] = Future()
        final: Future[Any] | None = Future() if wait else None
        message = types_pb2.Message(message_id=name, payload=payload)
        self.outcomes[name] = accepted, final
        self.entries[name] = self.core.add(LaneKey(key, token, ""), message, accepted, final)

    def take(self) -> list[str]:
        """The next frames, in short."""
        return [short(frame) for frame in self.core.take()]

    def receive(self, **frame: Any) -> None:
        self.core.received(pb.DeliverResponse(**frame))

    def accept(self, lane: int, number: int, sequence: int = 1, state: int = 2) -> None:
        answer = receipt(types_pb2.Message(message_id="m"), sequence)
        answer.state = state  # type: ignore[assignment]
        item = pb.DeliverResponse.LaneReceipt(lane=lane, number=number, receipt=answer)
        self.receive(receipts=pb.DeliverResponse.Receipts(items=[item]))

    def refuse(self, lane: int, number: int, code: grpc.StatusCode, reason: str) -> None:
        item = pb.DeliverResponse.LaneReceipt(lane=lane, number=number, error=status(code, reason))
        self.receive(receipts=pb.DeliverResponse.Receipts(items=[item]))

    def end_lane(self, lane: int, reason: str = "MANAGER_GONE") -> None:
        error = status(grpc.StatusCode.NOT_FOUND, reason)
        self.receive(lane_error=pb.DeliverResponse.LaneError(lane=lane, error=error))

    def error(self, name: str) -> SidecarError:
        found = self.outcomes[name][0].exception(0)
        assert isinstance(found, SidecarError)
        return found

    def final(self, name: str) -> DeliveryState:
        final = self.outcomes[name][1]
        assert final is not None
        state = final.result(0).state
        assert isinstance(state, DeliveryState)
        return state


def short(frame: pb.DeliverRequest) -> str:
    if frame.HasField("open_lane"):
        return f"open {frame.open_lane.lane} {frame.open_lane.isolation_key} {frame.open_lane.context_token}"
    if frame.HasField("close_lane"):
        return f"close {frame.close_lane.lane}"
    return " ".join(f"{item.lane}:{item.message.message_id}" for item in frame.messages.items)


def test_one_frame_of_all_that_gathered_behind_the_lanes_that_it_needs() -> None:
    made = Core()
    made.add("a", "a1")
    made.add("b", "b1")
    made.add("a", "a2")
    made.add("a", "a3", token="other")
    assert made.take() == ["open 0 a t", "open 1 b t", "open 2 a other", "0:a1 1:b1 0:a2 2:a3"]
    assert made.take() == []
    made.add("b", "b2")
    assert made.take() == ["1:b2"]


def test_a_frame_at_its_limits_and_one_past_them() -> None:
    made = Core(max_frame_items=2)
    for name in ("m1", "m2", "m3"):
        made.add("a", name)
    assert made.take() == ["open 0 a t", "0:m1 0:m2"]
    assert made.take() == ["0:m3"]
    size = types_pb2.Message(message_id="m1", payload=b"x" * 100).ByteSize()
    made = Core(max_frame_bytes=2 * size)
    for name in ("m1", "m2", "m3"):
        made.add("a", name, payload=b"x" * 100)
    made.add("a", "m4", payload=b"x" * 1_000)
    assert made.take() == ["open 0 a t", "0:m1 0:m2"]
    assert made.take() == ["0:m3"]
    assert made.take() == ["0:m4"]  # larger than a frame: alone
    message = types_pb2.Message(payload=b"x" * 98)
    Core(max_message_bytes=100).core.check(message)
    with pytest.raises(BadRequest):
        Core(max_message_bytes=99).core.check(message)


def test_the_idle_lane_used_longest_ago_gives_way() -> None:
    made = Core(max_lanes=2)
    made.add("a", "a1")
    made.add("b", "b1")
    made.add("c", "c1")
    assert made.take() == ["open 0 a t", "open 1 b t", "0:a1 1:b1"]
    assert made.take() == []  # both are busy
    made.accept(1, 0)
    assert made.take() == ["close 1", "open 2 c t", "2:c1"]
    made.accept(0, 0)
    made.accept(2, 0)
    made.add("a", "a2")
    assert made.take() == ["0:a2"]
    made.accept(0, 1)
    made.add("d", "d1")
    assert made.take() == ["close 2", "open 3 d t", "3:d1"]


def test_answers_find_their_messages_and_strange_ones_nobody() -> None:
    made = Core()
    made.add("a", "a1")
    made.add("a", "a2")
    made.take()
    made.accept(0, 1, sequence=8)
    made.accept(0, 1, sequence=9)
    made.accept(0, 7)
    made.accept(9, 0)
    made.end_lane(9)
    made.receive(lane_opened=pb.DeliverResponse.LaneOpened(lane=0))
    made.core.received(pb.DeliverResponse())
    assert made.outcomes["a2"][0].result(0).sequence == 8
    assert not made.outcomes["a1"][0].done()
    assert (made.left, made.core.in_flight) == (1, 1)


def test_items_behind_the_end_of_a_lane_take_its_error() -> None:
    made = Core()
    for name in ("a1", "a2", "a3"):
        made.add("a", name)
    made.take()
    made.accept(0, 0)
    made.end_lane(0)
    assert not made.outcomes["a2"][0].done()  # it may have been accepted: its own answer says so
    made.accept(0, 1, sequence=2)
    made.refuse(0, 2, grpc.StatusCode.FAILED_PRECONDITION, "LANE_NOT_OPEN")
    assert made.outcomes["a2"][0].result(0).sequence == 2
    assert isinstance(made.error("a3"), ManagerGone)
    made.add("a", "a4")
    assert made.take() == ["open 1 a t", "1:a4"]
    made.refuse(1, 0, grpc.StatusCode.FAILED_PRECONDITION, "LANE_NOT_OPEN")
    assert isinstance(made.error("a4"), LaneNotOpen)
    assert made.core.in_flight == 0


def test_a_broken_stream_is_begun_again_with_what_had_no_answer_first_and_in_order() -> None:
    made = Core()
    for key, name in (("a", "m1"), ("b", "m2"), ("a", "m3"), ("b", "m4")):
        made.add(key, name)
    made.take()
    made.add("c", "m5")
    made.accept(0, 0)
    made.core.abandon(made.entries["m2"])
    made.core.stream_ended(BROKEN, again=True)
    made.add("a", "m6")
    assert made.take() == ["open 0 a t", "open 1 b t", "open 2 c t", "0:m3 1:m4 2:m5 0:m6"]
    made.end_lane(0)
    made.refuse(0, 0, grpc.StatusCode.FAILED_PRECONDITION, "LANE_NOT_OPEN")
    made.refuse(0, 1, grpc.StatusCode.FAILED_PRECONDITION, "LANE_NOT_OPEN")
    assert not made.error("m3").definite  # the stream before may have taken it
    assert made.error("m6").definite
    assert made.left == 4


def test_a_stream_that_broke_for_good_fails_what_was_written_and_keeps_the_rest() -> None:
    made = Core(report_acknowledged=True)
    made.add("a", "m1")
    made.add("a", "m2", wait=True)
    made.take()
    made.accept(0, 1)
    made.add("a", "m3")
    made.core.stream_ended(TransportError(grpc.StatusCode.RESOURCE_EXHAUSTED), again=False)
    assert made.error("m1").code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert made.final("m2") is DeliveryState.WRITTEN
    assert made.take() == ["open 0 a t", "0:m3"]


def test_what_is_abandoned_unwritten_is_never_written() -> None:
    made = Core()
    made.add("a", "m1")
    made.add("a", "m2")
    made.core.abandon(made.entries["m1"])
    made.core.abandon(made.entries["m1"])
    assert made.take() == ["open 0 a t", "0:m2"]
    assert made.left == 1
    made.core.abandon(made.entries["m2"])
    assert made.left == 1  # its answer still comes
    made.accept(0, 0)
    made.core.abandon(made.entries["m2"])
    assert (made.left, made.core.in_flight) == (2, 0)


def test_giving_up_leaves_nothing() -> None:
    made = Core(report_acknowledged=True)
    made.add("a", "m1")
    made.add("a", "m2", wait=True)
    made.take()
    made.accept(0, 1)
    made.add("a", "m3")
    made.core.fail_all(BROKEN)
    made.core.abandon(made.entries["m3"])
    assert made.error("m1") is not made.error("m3")
    assert made.final("m2") is DeliveryState.WRITTEN
    assert (made.left, made.core.in_flight, made.core.has_queued) == (3, 0, False)


# Acknowledgements


def waiting() -> Core:
    """Three messages of sequences 1 to 3, accepted and waiting."""
    made = Core(report_acknowledged=True)
    for n in range(3):
        made.add("a", f"m{n + 1}", wait=True)
    made.take()
    for n in range(3):
        made.accept(0, n, sequence=n + 1)
    assert made.left == 0
    return made


def dropped(first: int, last: int) -> pb.DeliverResponse:
    frame = pb.DeliverResponse()
    frame.dropped.lane = 0
    setattr(frame.dropped, "from", first)
    frame.dropped.to = last
    return frame


def test_acknowledged_is_cumulative_and_dropped_is_not() -> None:
    made = waiting()
    made.core.received(dropped(2, 2))
    assert made.final("m2") is DeliveryState.DROPPED
    made.receive(acknowledged=pb.DeliverResponse.Acknowledged(lane=0, sequence=1))
    assert made.final("m1") is DeliveryState.ACKNOWLEDGED
    assert made.left == 2
    made.receive(acknowledged=pb.DeliverResponse.Acknowledged(lane=0, sequence=9))
    assert made.final("m3") is DeliveryState.ACKNOWLEDGED
    assert (made.left, made.core.in_flight) == (3, 0)


def test_what_was_known_before_the_receipt_counts() -> None:
    made = Core(report_acknowledged=True)
    for name in ("m1", "m2", "m3"):
        made.add("a", name, wait=True)
    made.take()
    made.core.received(dropped(2, 2))
    made.receive(acknowledged=pb.DeliverResponse.Acknowledged(lane=0, sequence=2))
    made.accept(0, 0, sequence=1)
    made.accept(0, 1, sequence=2)
    made.accept(0, 2, sequence=3, state=4)
    assert [made.final(name) for name in ("m1", "m2", "m3")] == [
        DeliveryState.ACKNOWLEDGED,
        DeliveryState.DROPPED,
        DeliveryState.DROPPED,
    ]
    assert made.core.in_flight == 0


def test_a_lane_that_waits_does_not_give_way_and_its_end_ends_the_wait() -> None:
    made = Core(report_acknowledged=True, max_lanes=1)
    made.add("a", "m1", wait=True)
    made.take()
    made.accept(0, 0)
    made.add("b", "m2")
    assert made.take() == []
    made.end_lane(0)
    assert made.final("m1") is DeliveryState.WRITTEN
    assert made.take() == ["open 1 b t", "1:m2"]


def test_waiting_goes_on_over_a_broken_stream_by_asking_again() -> None:
    made = waiting()
    made.core.abandon(made.entries["m2"])
    made.core.stream_ended(BROKEN, again=True)
    assert made.take() == ["open 0 a t", "0:m1 0:m3"]
    made.accept(0, 0, sequence=1, state=3)
    made.end_lane(0)
    made.refuse(0, 1, grpc.StatusCode.FAILED_PRECONDITION, "LANE_NOT_OPEN")
    assert made.final("m1") is DeliveryState.ACKNOWLEDGED
    assert made.final("m3") is DeliveryState.WRITTEN  # as it was known
    assert (made.left, made.core.in_flight) == (3, 0)


def test_a_cancelled_stream_is_told_with_its_key() -> None:
    made = Core()
    made.add("a", "m1")
    made.take()
    frame = pb.DeliverResponse.StreamCancelled(lane=0, stream_id="s", reply_to="q")
    made.receive(stream_cancelled=frame)
    frame.lane = 5
    made.receive(stream_cancelled=frame)
    assert made.cancelled == [StreamCancellation("a", "s", "q")]


def test_keys_do_not_print_their_token() -> None:
    assert "secret" not in repr(LaneKey("a", "secret", ""))
    made = Core()
    made.add("a", "m1", token="secret")
    made.take()
    assert "secret" not in repr(made.core)
