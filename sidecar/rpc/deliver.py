"""DeliveryService.Deliver: numbered lanes, frames of many messages, receipts in order within a lane.

One reader and one writer a stream; the reader waits when too many answers are unsent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.errors import (
    BadRequest,
    ErrorReason,
    FailedPrecondition,
    IsolationViolation,
    ManagerGone,
    ResourceExhausted,
    SidecarError,
    TokenFault,
    Unauthenticated,
)
from sidecar.core.identity import Scope
from sidecar.core.message import Instant, PendingReceipt
from sidecar.rpc.answers import Answers
from sidecar.rpc.boundary import Call, CallFacts, refusal_of
from sidecar.rpc.lanes import Lane, LaneReport, Opening, Outcome
from sidecar.rpc.status import rich_status

if TYPE_CHECKING:
    from sidecar.api.v1 import types_pb2
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Clock
    from sidecar.core.writes import WriteBatch
    from sidecar.rpc.acceptance import Acceptance
    from sidecar.rpc.callers import Callers
    from sidecar.rpc.refusals import RefusalRecorder
    from sidecar.security.context_tokens import ContextGrant

MAX_LANES: Final = 1_024
MAX_FRAME_ITEMS: Final = 1_000
MAX_UNSENT_ANSWERS: Final = 4_000
"""Receipts waiting for the client to read, or for the store to confirm, before the reader pauses."""

MAX_LANE_UNCONFIRMED: Final = 1_000
"""The same of one lane: one context may not take all of a stream's room."""

SLICE_BYTES: Final = 256 * 1024
"""How much of a frame is delivered before others have the loop."""


_parse: Final = pb.DeliverRequest.FromString
Items = Sequence["pb.DeliverRequest.LaneMessage"]


@dataclass(frozen=True, slots=True)
class DeliverPorts:
    """What every stream is handed; a stream that opens no lane within `first_lane_timeout_s` ends."""

    callers: Callers
    acceptance: Acceptance
    clock: Clock
    recorder: RefusalRecorder
    writes: WriteBatch
    first_lane_timeout_s: float


class DeliverStreams:
    """The behaviour of Deliver, and the streams open now."""

    def __init__(self, ports: DeliverPorts) -> None:
        self._ports = ports
        self._open: set[DeliverStream] = set()

    async def deliver(self, call: Call, facts: CallFacts) -> None:
        """One stream, from its first frame to its half-close."""
        stream = DeliverStream(call, facts, self._ports)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)

    def tick(self, at: Instant) -> None:
        """Tell the clients of lanes whose token has ended; to be called once a second."""
        for stream in tuple(self._open):
            stream.end_expired_lanes(at)


class DeliverStream:
    """One Deliver call."""

    def __init__(self, call: Call, facts: CallFacts, ports: DeliverPorts) -> None:
        loop = asyncio.get_running_loop()
        self._first_lane_by = loop.time() + ports.first_lane_timeout_s
        self._proved = False
        self._call = call
        self._facts = facts
        self._callers = ports.callers
        self._accept = ports.acceptance.accept
        self._clock = ports.clock
        self._recorder = ports.recorder
        self._writes = ports.writes
        self._lanes: dict[int, Lane] = {}
        self._closed: dict[int, Lane] = {}
        self._answers = Answers(call.write, self._take_reports, loop.call_later)
        self._full_lanes: set[int] = set()  # by number: a lane that is opened again has what waits in the former
        self._reports: dict[LaneReport, None] = {}
        self._frames: dict[str, Callable[[Any], None]] = {
            "open_lane": self._on_open_lane,
            "close_lane": self._on_close_lane,
        }

    async def run(self) -> None:
        """Read until the client half-closes or breaks a rule, answer everything, and leave nothing behind."""
        writer = asyncio.create_task(self._answers.run())
        try:
            broken_rule = await self._read_frames(writer)
            self._answers.finish()
            await writer
            if broken_rule is not None:
                raise broken_rule
        finally:
            for lane in tuple(self._lanes.values()):
                self._shut(lane)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read_frames(self, writer: asyncio.Task[None]) -> BadRequest | None:
        """Take frames until there are no more; a frame that ends the stream ends it once all before is answered."""
        read = self._call.read
        while (data := await (read() if self._proved else self._read_unproved())) is not grpc.aio.EOF:
            if writer.done():
                break
            try:
                for items in self._take(data):
                    await asyncio.sleep(0)
                    self._deliver_all(items)
            except BadRequest as error:
                return error
            while self._is_full() and not writer.done():
                self._answers.drained.clear()
                await self._answers.drained.wait()
        return None

    def _is_full(self) -> bool:
        """Too much is in flight, in all or in one lane: gRPC's flow control has the client wait."""
        return self._answers.unsent + self._answers.owed > MAX_UNSENT_ANSWERS or bool(self._full_lanes)

    async def _read_unproved(self) -> Any:
        """The next frame. A stream on which no token opens a lane in time is nobody's, and takes up a place."""
        try:
            async with asyncio.timeout_at(self._first_lane_by):
                return await self._call.read()
        except TimeoutError:
            raise Unauthenticated(ErrorReason.TOKEN_MISSING, TokenFault.MISSING) from None

    def _take(self, data: bytes) -> Iterable[Items]:
        """Do as one frame says. Returns what is left of a large one, for others are to have the loop before it."""
        try:
            request = _parse(data)
        except DecodeError:
            raise BadRequest("request", "not a DeliverRequest") from None
        kind = request.WhichOneof("frame")
        if kind is None:
            raise BadRequest("frame", "open_lane, messages or close_lane")
        if kind == "messages":
            return self._on_messages(request.messages.items, len(data))
        self._frames[kind](getattr(request, kind))
        return ()

    # Lanes

    def _on_open_lane(self, frame: pb.DeliverRequest.OpenLane) -> None:
        grant = None
        try:
            grant = self._callers.verify(frame.context_token)
            self._open_lane(frame, grant)
        except Exception as error:  # noqa: BLE001 - a bug costs its lane, never the stream
            self._answer_lane_error(frame.lane, refusal_of(error, self._facts, self._recorder, grant))

    def _open_lane(self, frame: pb.DeliverRequest.OpenLane, grant: ContextGrant) -> None:
        manager = self._callers.open(grant, frame.isolation_key, frame.expected_user_id, Scope.SEND)
        lane = self._lanes.get(frame.lane)
        if lane is None or lane.opening is None:
            opening = self._add_lane(frame.lane, grant, manager)
        elif lane.opening.manager is manager:
            opening = lane.opening
            opening.grant = grant
        else:
            raise IsolationViolation
        self._answer(pb.DeliverResponse(lane_opened=pb.DeliverResponse.LaneOpened(lane=frame.lane)))
        self._report(frame.lane, opening, wanted=frame.report_acknowledged)

    def _report(self, lane: int, opening: Opening, *, wanted: bool) -> None:
        """Begin or cease to report; the position is told at once, to a service that comes back as well."""
        if wanted == (opening.report is not None):
            return
        opening.report_to(LaneReport(lane, self._report_changed) if wanted else None)
        acknowledged = opening.manager.outbox.acknowledged
        if opening.report is not None and acknowledged:
            opening.report.acknowledged(acknowledged)

    def _report_changed(self, report: LaneReport) -> None:
        self._reports[report] = None
        self._answers.wake()
        if report.too_many:
            del self._reports[report]
            self._end_lane(self._lanes[report.lane], ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=1.0))

    def _add_lane(self, number: int, grant: ContextGrant, manager: IsolatedWebSocketManager) -> Opening:
        if len(self._lanes) >= MAX_LANES:
            raise BadRequest("open_lane.lane", f"at most {MAX_LANES} lanes a stream")
        self._proved = True
        lane = self._lanes[number] = Lane(number, self._answer_settled, self._closed.pop(number, None))
        opening = lane.opening = Opening(
            grant,
            manager,
            lambda: self._end_lane(lane, ManagerGone()),
            lambda stream_id, reply_to: self._answer_cancelled(number, stream_id, reply_to),
        )
        return opening

    def _on_close_lane(self, frame: pb.DeliverRequest.CloseLane) -> None:
        lane = self._lanes.get(frame.lane)
        if lane is not None:
            self._shut(lane)

    def _end_lane(self, lane: Lane, error: SidecarError) -> None:
        """The lane is over from this side: one lane_error, and LANE_NOT_OPEN for what still comes."""
        self._shut(lane)
        self._answer_lane_error(lane.number, error)

    def _shut(self, lane: Lane) -> None:
        opening, lane.opening = lane.opening, None
        if opening is not None:
            if opening.report in self._reports:
                # Now, for behind what comes next it would pass for what another context's client has.
                del self._reports[opening.report]
                self._answers.put(opening.report.take())
            opening.release()
            del self._lanes[lane.number]
            self._keep_closed(lane)

    def _keep_closed(self, lane: Lane) -> None:
        """Numbers go on in a lane that is closed; so many such lanes are remembered, the latest."""
        if len(self._closed) >= MAX_LANES:
            # One that still owes receipts stays before one that does not: they must not mingle with its next ones.
            idle = (number for number, closed in self._closed.items() if not closed.waiting)
            del self._closed[next(idle, next(iter(self._closed)))]
        self._closed[lane.number] = lane

    def _closed_lane(self, number: int) -> Lane:
        """The lane of that number that was closed, has ended, or was never opened."""
        lane = self._closed.get(number)
        if lane is None:
            lane = Lane(number, self._answer_settled)
            self._keep_closed(lane)
        return lane

    def end_expired_lanes(self, at: Instant) -> None:
        """End the lanes whose token has expired or was revoked."""
        for lane in tuple(self._lanes.values()):
            self._check_token(lane, at)

    def _check_token(self, lane: Lane, at: Instant) -> None:
        if lane.opening is None:
            return
        grant = lane.opening.grant
        error: Unauthenticated | None = None
        if grant.revoked:
            error = Unauthenticated(ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED)
        elif at.monotonic >= grant.expires_monotonic:
            error = Unauthenticated(ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED)
        if error is not None:
            self._recorder.note(error, self._facts.method, self._facts.address, grant)
            self._end_lane(lane, error)

    # Messages

    def _on_messages(self, items: Items, size: int) -> Iterable[Items]:
        """Deliver them; of a frame that is so large the first slice, and return the others."""
        if len(items) > MAX_FRAME_ITEMS:
            raise BadRequest("messages.items", f"at most {MAX_FRAME_ITEMS}")
        self._answers.asked()
        slices = 1 + size // SLICE_BYTES
        if slices == 1 or not items:
            self._deliver_all(items)
            return ()
        step = -(-len(items) // slices)
        self._deliver_all(items[:step])
        return (items[start : start + step] for start in range(step, len(items), step))

    def _deliver_all(self, items: Items) -> None:
        at = self._clock.now()
        lanes, answers = self._lanes, self._answers
        with self._writes:
            for item in items:
                number = item.lane
                lane = lanes.get(number) or self._closed_lane(number)
                place = lane.next_number
                lane.next_number = place + 1
                outcome = self._deliver(lane, item.message, at)
                if lane.waiting or isinstance(outcome, PendingReceipt):
                    self._queue(lane, place, outcome)
                else:
                    answers.add_receipt(lane.field, place, outcome)
        answers.receipts_ready()

    def _deliver(self, lane: Lane, proto: types_pb2.Message, at: Instant) -> Outcome | PendingReceipt:
        opening = lane.opening
        if opening is None:
            return FailedPrecondition(ErrorReason.LANE_NOT_OPEN)
        grant = opening.grant
        if grant.shared.revoked or at.monotonic >= grant.expires_monotonic:
            self._check_token(lane, at)
            return FailedPrecondition(ErrorReason.LANE_NOT_OPEN)
        try:
            return self._accept(opening.manager, grant.scopes, proto, at)
        except Exception as error:  # noqa: BLE001 - a bug costs its message, never the stream
            return refusal_of(error, self._facts, self._recorder, grant)

    def _queue(self, lane: Lane, place: int, outcome: Outcome | PendingReceipt) -> None:
        """Keep an outcome until those before it in its lane have been answered."""
        self._answers.owed += 1
        grant = None if lane.opening is None else lane.opening.grant
        lane.waiting.append((place, outcome, grant))
        if len(lane.waiting) > MAX_LANE_UNCONFIRMED:
            self._full_lanes.add(lane.number)
        if isinstance(outcome, PendingReceipt):
            outcome.add_done_callback(lane.settled)

    def _answer_settled(self, lane: Lane, _: PendingReceipt) -> None:
        """Up to the first outcome that the store has yet to confirm."""
        waiting, answers = lane.waiting, self._answers
        while waiting:
            place, outcome, grant = waiting[0]
            if isinstance(outcome, PendingReceipt):
                receipt, error = outcome.receipt, outcome.error
                if receipt is not None:
                    outcome = receipt
                elif error is not None:  # the store's, or the context has ended
                    outcome = refusal_of(error, self._facts, self._recorder, grant)
                else:
                    break
            waiting.popleft()
            answers.owed -= 1
            answers.add_receipt(lane.field, place, outcome)
        if self._full_lanes and len(waiting) <= MAX_LANE_UNCONFIRMED:
            self._full_lanes.discard(lane.number)
        if not answers.leaving:
            answers.receipts_ready()

    # Answers

    def _answer_lane_error(self, lane: int, error: SidecarError) -> None:
        self._answer(pb.DeliverResponse(lane_error=pb.DeliverResponse.LaneError(lane=lane, error=rich_status(error))))

    def _answer_cancelled(self, lane: int, stream_id: str, reply_to: str) -> None:
        frame = pb.DeliverResponse.StreamCancelled(lane=lane, stream_id=stream_id, reply_to=reply_to)
        self._answer(pb.DeliverResponse(stream_cancelled=frame))
        if self._answers.unsent > 2 * MAX_UNSENT_ANSWERS:  # a client may cancel as it likes, and this one does not read
            self._end_lane(self._lanes[lane], ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=1.0))

    def _answer(self, response: pb.DeliverResponse) -> None:
        self._answers.put([response.SerializeToString()])

    def _take_reports(self) -> list[bytes]:
        """What stands behind the receipts of what it reports."""
        reports, self._reports = self._reports, {}
        return [frame for report in reports for frame in report.take()]
