"""What both senders decide: what goes into the next frame, whose an answer is, what is sent again. No I/O, no clock."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar_client.calls import receipt_from
from sidecar_client.errors import LaneNotOpen, SidecarError, bad_request, error_from_status
from sidecar_client.lanes import Entry, Lane, LaneKey, Lanes, Outcome
from sidecar_client.values import DeliveryState

MIB: Final = 1_048_576
MAX_LANES: Final = 1_024
MAX_FRAME_ITEMS: Final = 1_000


@dataclass(frozen=True, slots=True)
class SenderLimits:
    """What a sender holds and writes at most.

    `max_message_bytes`: a larger one is refused here, because a frame over the sidecar's `grpc.max_request_bytes`
    (4 MiB) would break the stream for everybody's messages.
    """

    max_in_flight: int = 4_096
    max_lanes: int = MAX_LANES
    max_frame_items: int = MAX_FRAME_ITEMS
    max_frame_bytes: int = MIB
    max_message_bytes: int = 4 * MIB - 65_536

    def __post_init__(self) -> None:
        for name, value, most in (
            ("max_in_flight", self.max_in_flight, 1_000_000),
            ("max_lanes", self.max_lanes, MAX_LANES),
            ("max_frame_items", self.max_frame_items, MAX_FRAME_ITEMS),
            ("max_frame_bytes", self.max_frame_bytes, 64 * MIB),
            ("max_message_bytes", self.max_message_bytes, 64 * MIB),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} is 1 to {most}")


class StreamCancellation(NamedTuple):
    """A client wants no more of a response stream, or of the answer to a message of its own; one may be empty."""

    isolation_key: str
    stream_id: str
    reply_to: str


class SenderCore:
    """The messages of one sender, from `add` to their outcome, over as many streams as it takes."""

    def __init__(
        self,
        limits: SenderLimits,
        *,
        report_acknowledged: bool,
        on_left: Callable[[], None],
        on_stream_cancelled: Callable[[StreamCancellation], None] | None = None,
    ) -> None:
        """`on_left` is called once for each message that was added, when nothing of it is held any more."""
        self._limits = limits
        self._report_acknowledged = report_acknowledged
        self._on_left = on_left
        self._on_stream_cancelled = on_stream_cancelled
        self._queue: deque[Entry] = deque()
        self._lanes = Lanes(limits.max_lanes)
        self._orders = count()
        self._in_flight = 0

    def __repr__(self) -> str:
        return f"SenderCore(in_flight={self._in_flight}, queued={len(self._queue)}, lanes={len(self._lanes)})"

    @property
    def in_flight(self) -> int:
        """Messages added that have not left."""
        return self._in_flight

    @property
    def has_queued(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._queue)

    def check(self, message: types_pb2.Message) -> None:
        """Raise BadRequest for a message that no frame can carry."""
        if message.ByteSize() > self._limits.max_message_bytes:
            raise bad_request("message.payload", f"at most {self._limits.max_message_bytes} bytes")

    def add(self, key: LaneKey, message: types_pb2.Message, accepted: Outcome, final: Outcome | None = None) -> Entry:
        """Queue one message, behind all that were added before."""
        entry = Entry(next(self._orders), key, message, accepted, final)
        self._in_flight += 1
        self._queue.append(entry)
        return entry

    def abandon(self, entry: Entry) -> None:
        """Its caller is gone: unwritten it is dropped; written, its answer is taken and forgotten. Idempotent."""
        if entry.abandoned or entry.left:
            return
        entry.abandoned = True
        if not entry.written:
            self._queue.remove(entry)
            self._leave(entry)
        elif entry.receipt is not None:
            self._stop_waiting(entry)

    # Out

    def take(self) -> list[pb.DeliverRequest]:
        """The next frames to write, in order; none when there is nothing, or no lane free for what is next."""
        frames: list[pb.DeliverRequest] = []
        messages = pb.DeliverRequest()
        items = messages.messages.items
        size = 0
        while self._queue and len(items) < self._limits.max_frame_items:
            entry = self._queue[0]
            if items and size + entry.size > self._limits.max_frame_bytes:
                break
            lane = self._lanes.find(entry.key) or self._open_lane(entry.key, frames)
            if lane is None:
                break
            self._queue.popleft()
            lane.put(entry)
            size += entry.size
            items.add(lane=lane.number, message=entry.message)
        if items:
            frames.append(messages)
        return frames

    def _open_lane(self, key: LaneKey, frames: list[pb.DeliverRequest]) -> Lane | None:
        if self._lanes.full:
            least = self._lanes.close_least_recent()
            if least is None:
                return None
            frames.append(pb.DeliverRequest(close_lane=pb.DeliverRequest.CloseLane(lane=least.number)))
        lane = self._lanes.add(key)
        frame = pb.DeliverRequest.OpenLane(
            lane=lane.number,
            isolation_key=key.isolation_key,
            context_token=key.context_token,
            expected_user_id=key.expected_user_id,
            report_acknowledged=self._report_acknowledged,
        )
        frames.append(pb.DeliverRequest(open_lane=frame))
        return lane

    # In

    def received(self, response: pb.DeliverResponse) -> None:
        """Take one frame of the sidecar's. Kinds that came after this version are left alone."""
        match response.WhichOneof("frame"):
            case "receipts":
                for item in response.receipts.items:
                    self._on_receipt(item)
            case "lane_error":
                self._on_lane_error(response.lane_error)
            case "acknowledged":
                self._on_acknowledged(response.acknowledged.lane, response.acknowledged.sequence)
            case "dropped":
                dropped = response.dropped
                self._on_dropped(dropped.lane, getattr(dropped, "from"), dropped.to)
            case "stream_cancelled":
                self._on_cancelled(response.stream_cancelled)

    def _on_receipt(self, item: pb.DeliverResponse.LaneReceipt) -> None:
        lane = self._lanes.get(item.lane)
        entry = lane.pending.pop(item.number, None) if lane is not None else None
        if lane is None or entry is None:
            return
        if item.HasField("receipt"):
            self._accepted(lane, entry, item.receipt)
        else:
            error = error_from_status(item.error)
            if isinstance(error, LaneNotOpen) and lane.error is not None:
                error = copy.copy(lane.error)
            error.unanswered_before = entry.unanswered
            entry.fail(error)
            self._leave(entry)
        self._lanes.forget_if_over(lane)

    def _accepted(self, lane: Lane, entry: Entry, answer: types_pb2.Receipt) -> None:
        receipt = receipt_from(answer)
        entry.tell_accepted(receipt)
        decided = receipt.state in (DeliveryState.ACKNOWLEDGED, DeliveryState.DROPPED)
        if entry.final is None or entry.abandoned or decided or lane.error is not None:
            entry.tell_final(receipt)
            self._leave(entry)
            return
        lane.waiting.append(entry)
        self._settle(lane)

    def _on_lane_error(self, frame: pb.DeliverResponse.LaneError) -> None:
        """The lane is over: what was written is still answered one by one; what was accepted is heard of no more."""
        lane = self._lanes.get(frame.lane)
        if lane is None:
            return
        lane.error = error_from_status(frame.error)
        for entry in lane.waiting:
            assert entry.receipt is not None
            entry.tell_final(entry.receipt)
            self._leave(entry)
        lane.waiting = []
        self._lanes.shut(lane)

    def _on_acknowledged(self, number: int, sequence: int) -> None:
        lane = self._lanes.get(number)
        if lane is not None:
            lane.position = max(lane.position, sequence)
            self._settle(lane)

    def _on_dropped(self, number: int, first: int, last: int) -> None:
        lane = self._lanes.get(number)
        if lane is not None:
            lane.gaps.append((first, last))
            self._settle(lane)

    def _on_cancelled(self, frame: pb.DeliverResponse.StreamCancelled) -> None:
        lane = self._lanes.get(frame.lane)
        if lane is not None and self._on_stream_cancelled is not None:
            self._on_stream_cancelled(StreamCancellation(lane.key.isolation_key, frame.stream_id, frame.reply_to))

    def _settle(self, lane: Lane) -> None:
        for entry, receipt in lane.take_decided():
            entry.tell_final(receipt)
            self._leave(entry)
        self._lanes.forget_if_over(lane)

    def _stop_waiting(self, entry: Entry) -> None:
        lane = self._lanes.find(entry.key)
        if lane is not None and entry in lane.waiting:
            lane.waiting.remove(entry)
            self._leave(entry)

    # Ends

    def stream_ended(self, error: SidecarError, *, again: bool) -> None:
        """The stream is over, its lanes with it.

        `again`: what has no answer is to be written to the next one, first and in order; with the same message_id it is
        taken once. Also what waits for an acknowledgement: the answer to its duplicate says how far it came. Else it
        fails with the error; what was never written is kept.
        """
        unfinished = self._lanes.unfinished()
        self._lanes = Lanes(self._limits.max_lanes)
        if again:
            kept = [entry for entry in unfinished if not entry.abandoned]
            for entry in kept:
                entry.written, entry.unanswered = False, True
            self._queue.extendleft(reversed(kept))
            gone: Sequence[Entry] = [entry for entry in unfinished if entry.abandoned]
        else:
            gone = unfinished
        self._fail(gone, error)

    def fail_all(self, error: SidecarError) -> None:
        """Give up everything that is held."""
        entries = [*self._lanes.unfinished(), *self._queue]
        self._lanes = Lanes(self._limits.max_lanes)
        self._queue.clear()
        self._fail(entries, error)

    def _fail(self, entries: Sequence[Entry], error: SidecarError) -> None:
        for entry in entries:
            entry.fail(copy.copy(error))
            self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        entry.left = True
        self._in_flight -= 1
        self._on_left()
