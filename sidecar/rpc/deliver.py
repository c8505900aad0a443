"""DeliveryService.Deliver: numbered lanes, frames of many messages, receipts in order within a lane.

One reader and one writer a stream. Answers gather while the writer is busy and leave together, so that many small
frames cost few writes; the reader waits when too many answers are unsent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
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
    PermissionDenied,
    SidecarError,
    TokenFault,
    Unauthenticated,
    Unsupported,
)
from sidecar.core.identity import Scope
from sidecar.core.message import Instant, PendingReceipt, Receipt
from sidecar.rpc.boundary import Call, CallFacts, report_incident
from sidecar.rpc.delivery import require_emit
from sidecar.rpc.status import rich_status
from sidecar.rpc.translate import fill_receipt, message_from

if TYPE_CHECKING:
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Clock
    from sidecar.rpc.callers import Callers
    from sidecar.rpc.refusals import RefusalRecorder
    from sidecar.security.context_tokens import ContextGrant

MAX_LANES: Final = 1_024
MAX_FRAME_ITEMS: Final = 1_000
MAX_UNSENT_ANSWERS: Final = 4_000
"""Receipts waiting for the client to read, or for the store to confirm, before the reader pauses."""

_Outcome = Receipt | SidecarError


class Lane:
    """One lane of a stream: a context that its token opened, and the place of the next message."""

    __slots__ = ("expected_user_id", "grant", "manager", "next_number", "number", "open", "waiting", "watcher")

    def __init__(
        self, number: int, grant: ContextGrant, manager: IsolatedWebSocketManager, watcher: Callable[[], None]
    ) -> None:
        self.number = number
        self.grant = grant
        self.manager = manager
        self.watcher = watcher
        self.open = True
        self.next_number = 0
        # Outcomes behind one that the store has yet to confirm: receipts leave in order.
        self.waiting: deque[tuple[int, _Outcome | PendingReceipt]] = deque()


class DeliverStreams:
    """The behaviour of Deliver, and the streams open now."""

    def __init__(self, callers: Callers, clock: Clock, recorder: RefusalRecorder) -> None:
        self._callers = callers
        self._clock = clock
        self._recorder = recorder
        self._open: set[DeliverStream] = set()

    async def deliver(self, call: Call, facts: CallFacts) -> None:
        """One stream, from its first frame to its half-close."""
        stream = DeliverStream(call, facts, self._callers, self._clock, self._recorder)
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

    def __init__(self, call: Call, facts: CallFacts, callers: Callers, clock: Clock, recorder: RefusalRecorder) -> None:
        self._call = call
        self._facts = facts
        self._callers = callers
        self._clock = clock
        self._recorder = recorder
        self._lanes: dict[int, Lane] = {}
        self._strays: dict[int, int] = {}
        self._answers: list[pb.DeliverResponse] = []
        self._receipts: Any = None
        self._unsent = 0
        self._unconfirmed = 0
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()
        self._finished = False
        self._frames: dict[str, Callable[[Any], None]] = {
            "messages": self._on_messages,
            "open_lane": self._on_open_lane,
            "close_lane": self._on_close_lane,
        }

    async def run(self) -> None:
        """Read until the client half-closes, answer everything, and leave nothing behind."""
        writer = asyncio.create_task(self._write())
        try:
            while (data := await self._read(writer)) is not None:
                self._take(data)
                while self._unsent + self._unconfirmed > MAX_UNSENT_ANSWERS and not writer.done():
                    self._drained.clear()
                    await self._drained.wait()
            self._finished = True
            self._ready.set()
            await writer
        finally:
            writer.cancel()
            for lane in self._lanes.values():
                self._release(lane)

    async def _read(self, writer: asyncio.Task[None]) -> bytes | None:
        data = await self._call.read()
        if data is grpc.aio.EOF or writer.done():
            return None
        return bytes(data)

    def _take(self, data: bytes) -> None:
        try:
            request = pb.DeliverRequest.FromString(data)
        except DecodeError:
            raise BadRequest("request", "not a DeliverRequest") from None
        kind = request.WhichOneof("frame")
        if kind is None:
            raise BadRequest("frame", "open_lane, messages or close_lane")
        self._frames[kind](getattr(request, kind))

    # Lanes

    def _on_open_lane(self, frame: pb.DeliverRequest.OpenLane) -> None:
        grant = None
        try:
            grant = self._callers.verify(frame.context_token)
            self._open_lane(frame, grant)
        except SidecarError as error:
            self._recorder.note(error, self._facts.method, self._facts.address, grant)
            self._answer_lane_error(frame.lane, error)

    def _open_lane(self, frame: pb.DeliverRequest.OpenLane, grant: ContextGrant) -> None:
        manager = self._callers.open(grant, frame.isolation_key, frame.expected_user_id, None)
        if frame.report_acknowledged:
            raise Unsupported
        lane = self._lanes.get(frame.lane)
        if lane is not None and lane.open:
            if lane.manager is not manager:
                raise IsolationViolation
            lane.grant = grant
        else:
            self._add_lane(frame.lane, grant, manager, lane)
        self._answer(pb.DeliverResponse(lane_opened=pb.DeliverResponse.LaneOpened(lane=frame.lane)))

    def _add_lane(
        self, number: int, grant: ContextGrant, manager: IsolatedWebSocketManager, former: Lane | None
    ) -> None:
        if former is None and len(self._lanes) >= MAX_LANES:
            raise BadRequest("open_lane.lane", f"at most {MAX_LANES} lanes a stream")
        lane = Lane(number, grant, manager, lambda: self._end_lane(lane, ManagerGone()))
        manager.end_watchers.add(lane.watcher)
        self._lanes[number] = lane
        self._strays.pop(number, None)

    def _on_close_lane(self, frame: pb.DeliverRequest.CloseLane) -> None:
        lane = self._lanes.pop(frame.lane, None)
        if lane is not None:
            self._release(lane)

    def _end_lane(self, lane: Lane, error: SidecarError) -> None:
        """The lane is over from this side: one lane_error, and LANE_NOT_OPEN for what still comes."""
        if lane.open:
            self._release(lane)
            self._answer_lane_error(lane.number, error)

    def _release(self, lane: Lane) -> None:
        lane.open = False
        lane.manager.end_watchers.discard(lane.watcher)

    def end_expired_lanes(self, at: Instant) -> None:
        """End the lanes whose token has expired or was revoked."""
        for lane in tuple(self._lanes.values()):
            if lane.open:
                self._check_token(lane, at)

    def _check_token(self, lane: Lane, at: Instant) -> None:
        error: Unauthenticated | None = None
        if lane.grant.revoked:
            error = Unauthenticated(ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED)
        elif at.monotonic >= lane.grant.expires_monotonic:
            error = Unauthenticated(ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED)
        if error is not None:
            self._recorder.note(error, self._facts.method, self._facts.address, lane.grant)
            self._end_lane(lane, error)

    # Messages

    def _on_messages(self, frame: pb.DeliverRequest.Messages) -> None:
        items = frame.items
        if len(items) > MAX_FRAME_ITEMS:
            raise BadRequest("messages.items", f"at most {MAX_FRAME_ITEMS}")
        at = Instant(self._clock.monotonic(), self._clock.time())
        checked: Lane | None = None
        for item in items:
            lane = self._lanes.get(item.lane)
            if lane is None:
                self._refuse_stray(item.lane)
                continue
            if lane is not checked:  # the clock stands still within a frame, so once a run of one lane is enough
                if lane.open:
                    self._check_token(lane, at)
                checked = lane
            number = lane.next_number
            lane.next_number = number + 1
            self._settle(lane, number, self._deliver(lane, item.message, at))

    def _deliver(self, lane: Lane, proto: Any, at: Instant) -> _Outcome | PendingReceipt:
        if not lane.open:
            return FailedPrecondition(ErrorReason.LANE_NOT_OPEN)
        try:
            scopes = lane.grant.scopes
            if Scope.SEND not in scopes:
                raise PermissionDenied(ErrorReason.SCOPE_MISSING)
            message = message_from(proto)
            if message.critical:
                require_emit(message, scopes)
            manager = lane.manager
            return manager.send_to_user(manager.context, message, at)
        except SidecarError as error:
            self._recorder.note(error, self._facts.method, self._facts.address, lane.grant)
            return error
        except Exception as error:  # noqa: BLE001 - a bug costs its message, never the stream
            report_incident(self._facts.method, error)
            return SidecarError(ErrorReason.INTERNAL)

    def _refuse_stray(self, number: int) -> None:
        """A message for a lane that was never opened, or closed by the client; counted for so many lanes at most."""
        place = self._strays.get(number, 0)
        if number in self._strays or len(self._strays) < MAX_LANES:
            self._strays[number] = place + 1
        self._answer_receipt(number, place, FailedPrecondition(ErrorReason.LANE_NOT_OPEN))

    def _settle(self, lane: Lane, number: int, outcome: _Outcome | PendingReceipt) -> None:
        if isinstance(outcome, PendingReceipt):
            self._unconfirmed += 1
            lane.waiting.append((number, outcome))
            outcome.add_done_callback(lambda _: self._confirmed(lane))
        elif lane.waiting:
            self._unconfirmed += 1
            lane.waiting.append((number, outcome))
        else:
            self._answer_receipt(lane.number, number, outcome)

    def _confirmed(self, lane: Lane) -> None:
        while lane.waiting:
            number, outcome = lane.waiting[0]
            if isinstance(outcome, PendingReceipt):
                settled = outcome.receipt or outcome.error
                if settled is None:
                    return
                outcome = settled
            lane.waiting.popleft()
            self._unconfirmed -= 1
            self._answer_receipt(lane.number, number, outcome)

    # Answers

    def _answer_receipt(self, lane: int, number: int, outcome: _Outcome) -> None:
        receipts = self._receipts
        if receipts is None or len(receipts) >= MAX_FRAME_ITEMS:
            response = pb.DeliverResponse()
            receipts = self._receipts = response.receipts.items
            self._answers.append(response)
            self._ready.set()
        item = receipts.add()
        item.lane = lane
        item.number = number
        if isinstance(outcome, Receipt):
            fill_receipt(item.receipt, outcome)
        else:
            item.error.CopyFrom(rich_status(outcome))
        self._unsent += 1

    def _answer_lane_error(self, lane: int, error: SidecarError) -> None:
        self._answer(pb.DeliverResponse(lane_error=pb.DeliverResponse.LaneError(lane=lane, error=rich_status(error))))

    def _answer(self, response: pb.DeliverResponse) -> None:
        self._receipts = None  # what comes after stands after it
        self._answers.append(response)
        self._unsent += 1
        self._ready.set()

    async def _write(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            answers, self._answers = self._answers, []
            self._receipts = None
            self._unsent = 0
            for answer in answers:
                await self._call.write(answer.SerializeToString())
            self._drained.set()
            if self._finished and not self._answers and not self._unconfirmed:
                return
