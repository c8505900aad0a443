"""One long-lived `Deliver` stream shared by every answer of this process: a lane an answer, receipts matched by lane
and place, a new stream when one breaks. An ordinary gRPC client that needs the generated stubs and nothing else.

    async with delivery.lane(isolation_key, context_token, user_id) as lane:
        receipt = await lane.send(Message(message_id="…", event_type="…", payload=b"{}"))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sidecar.api.v1.delivery_service_pb2 import DeliverRequest, DeliverResponse
from sidecar.api.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from sidecar.api.v1.types_pb2 import Message, Receipt

RETRY_AFTER_S: Final = (0.05, 0.2, 0.5, 1.0)
ANSWER_TIMEOUT_S: Final = 10.0
MAX_FRAME_ITEMS: Final = 1_000


class DeliveryError(Exception):
    """What was refused. `code` is the gRPC code's name; `reason` is ErrorInfo's, or "" where gRPC itself gave up.

    With a reason other than INTERNAL and OUTCOME_UNKNOWN it is definite: nothing was appended.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason

    @classmethod
    def from_status(cls, status: status_pb2.Status) -> DeliveryError:
        """From the `google.rpc.Status` of a lane or of one message."""
        info = error_details_pb2.ErrorInfo()
        reason = next((info.reason for detail in status.details if detail.Unpack(info)), "")
        return cls(code_pb2.Code.Name(status.code), reason)

    @classmethod
    def from_call(cls, error: grpc.aio.AioRpcError) -> DeliveryError:
        """From the status of a whole call."""
        status = rpc_status.from_call(cast("grpc.Call", error))
        return cls(error.code().name, "") if status is None else cls.from_status(status)


class StreamBroken(Exception):
    """The stream ended before the answer came: whether the message was taken is not known."""


class Delivery:
    """The shared stream. Opened when first needed, opened again after it broke."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DeliveryServiceStub(channel)
        self._stream: _Stream | None = None

    @asynccontextmanager
    async def lane(self, isolation_key: str, context_token: str, expected_user_id: str) -> AsyncIterator[Lane]:
        """A lane to one user's context. Give as `expected_user_id` the user that *you* authenticated."""
        lane = Lane(self, isolation_key, context_token, expected_user_id)
        try:
            yield lane
        finally:
            lane.close()

    def stream(self) -> _Stream:
        """The stream of now."""
        if self._stream is None or self._stream.broken:
            self._stream = _Stream(self._stub.Deliver())
        return self._stream

    async def close(self) -> None:
        """End the stream. Idempotent."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


class Lane:
    """One answer's way to one context. It sends one message at a time, and in that order the user sees them."""

    def __init__(self, delivery: Delivery, isolation_key: str, context_token: str, expected_user_id: str) -> None:
        self._delivery = delivery
        self._open_lane = DeliverRequest.OpenLane(
            isolation_key=isolation_key, context_token=context_token, expected_user_id=expected_user_id
        )
        self._stream: _Stream | None = None
        self._number = 0

    async def send(self, message: Message) -> Receipt:
        """Send one message with a message_id of its own and wait for its receipt. Raises DeliveryError.

        The message_id makes it safe to send the message again when the stream broke before the receipt came.
        """
        for pause_s in RETRY_AFTER_S:
            try:
                return await self._send(message)
            except StreamBroken:
                await asyncio.sleep(pause_s)
        raise DeliveryError("UNAVAILABLE", "")

    def close(self) -> None:
        """Give the lane back. Idempotent."""
        if self._stream is not None:
            self._stream.close_lane(self._number)
            self._stream = None

    async def _send(self, message: Message) -> Receipt:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                stream = self._stream
                if stream is None or stream.broken:
                    self._stream = None
                    stream = self._delivery.stream()
                    self._number = await stream.open_lane(self._open_lane)
                    self._stream = stream
                return await stream.send(self._number, message)
        except TimeoutError:
            raise DeliveryError("DEADLINE_EXCEEDED", "") from None


class _LaneState:
    """What one stream knows of one lane: who waits for what, and why the sidecar ended it."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.receipts: dict[int, asyncio.Future[Receipt]] = {}
        self.next_number = 0
        self.ended: DeliveryError | None = None

    def cause_of(self, error: DeliveryError) -> DeliveryError:
        """Why a message was refused: that its lane had ended says less than why it had."""
        return self.ended or error


class _Stream:
    """One call of Deliver. Only its own task reads and writes it: a cancelled write would end it for every lane."""

    def __init__(self, call: Any) -> None:
        self.broken = False
        self._call = call
        self._lanes: dict[int, _LaneState] = {}
        self._last_lane = 0
        # Bounded by the lanes: each has at most one message under way, and is opened and closed once.
        self._outgoing: asyncio.Queue[DeliverRequest] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def open_lane(self, frame: DeliverRequest.OpenLane) -> int:
        """Open a new lane and wait until it is; returns its number."""
        self._last_lane += 1
        number = self._last_lane
        state = self._lanes[number] = _LaneState()
        request = DeliverRequest(open_lane=frame)
        request.open_lane.lane = number
        try:
            self._put(request)
            await state.opened
        except BaseException:
            self.close_lane(number)
            raise
        return number

    async def send(self, number: int, message: Message) -> Receipt:
        """Send one message on an open lane and wait for its receipt."""
        lane = self._lanes[number]
        if lane.ended is not None:
            raise lane.ended
        place, lane.next_number = lane.next_number, lane.next_number + 1
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        lane.receipts[place] = receipt
        item = DeliverRequest.LaneMessage(lane=number, message=message)
        try:
            self._put(DeliverRequest(messages=DeliverRequest.Messages(items=[item])))
            return await receipt
        except DeliveryError as error:
            raise lane.cause_of(error) from None
        finally:
            lane.receipts.pop(place, None)

    def close_lane(self, number: int) -> None:
        """Forget the lane, here and there."""
        if self._lanes.pop(number, None) is not None and not self.broken:
            self._outgoing.put_nowait(DeliverRequest(close_lane=DeliverRequest.CloseLane(lane=number)))

    async def close(self) -> None:
        """End the call and wait for its task."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _put(self, request: DeliverRequest) -> None:
        if self.broken:
            raise StreamBroken
        self._outgoing.put_nowait(request)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write())
                while (response := await self._call.read()) is not grpc.aio.EOF:
                    self._receive(response)
                writer.cancel()
        except* (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended, and whoever waits is told so
        finally:
            self.broken = True
            self._call.cancel()
            for lane in self._lanes.values():
                waiting: list[asyncio.Future[Any]] = [lane.opened, *lane.receipts.values()]
                for future in waiting:
                    _fail(future, StreamBroken())

    async def _write(self) -> None:
        """Write what has gathered since the last write as few frames, in order."""
        while True:
            frames = [await self._outgoing.get()]
            while not self._outgoing.empty():
                following = self._outgoing.get_nowait()
                if _joins(frames[-1], following):
                    frames[-1].messages.MergeFrom(following.messages)
                else:
                    frames.append(following)
            for frame in frames:
                await self._call.write(frame)

    def _receive(self, response: DeliverResponse) -> None:
        match response.WhichOneof("frame"):
            case "receipts":
                for item in response.receipts.items:
                    self._on_receipt(item)
            case "lane_opened":
                lane = self._lanes.get(response.lane_opened.lane)
                if lane is not None and not lane.opened.done():
                    lane.opened.set_result(None)
            case "lane_error":
                self._on_lane_error(response.lane_error)

    def _on_receipt(self, item: DeliverResponse.LaneReceipt) -> None:
        lane = self._lanes.get(item.lane)
        waiting = None if lane is None else lane.receipts.get(item.number)
        if waiting is None or waiting.done():
            return  # nobody waits for it any more
        if item.WhichOneof("result") == "receipt":
            waiting.set_result(item.receipt)
        else:
            waiting.set_exception(DeliveryError.from_status(item.error))

    def _on_lane_error(self, frame: DeliverResponse.LaneError) -> None:
        lane = self._lanes.get(frame.lane)
        if lane is not None:
            lane.ended = DeliveryError.from_status(frame.error)
            _fail(lane.opened, lane.ended)


def _joins(frame: DeliverRequest, following: DeliverRequest) -> bool:
    both = frame.WhichOneof("frame") == following.WhichOneof("frame") == "messages"
    return both and len(frame.messages.items) < MAX_FRAME_ITEMS


def _fail(waiting: asyncio.Future[Any], error: Exception) -> None:
    if not waiting.done():
        waiting.set_exception(error)
