"""The services that the demo agent calls, with the faults that a test asks for: a small gRPC server that records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sidecar.api.v1.context_service_pb2 import GetContextRequest, GetContextResponse
from sidecar.api.v1.delivery_service_pb2 import DeliverRequest, DeliverResponse, SendToUserRequest, SendToUserResponse
from sidecar.api.v1.types_pb2 import Message, Receipt


class Accepted(NamedTuple):
    """A message with the stream it came on (from 0) and its lane's opening."""

    stream: int
    lane: DeliverRequest.OpenLane
    message: Message


def refused(code: str, reason: str) -> status_pb2.Status:
    """A status as the sidecar gives it."""
    detail = Packed()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="sidecar"))
    return status_pb2.Status(code=code_pb2.Code.Value(code), message="no", details=[detail])


class FakeSidecar:
    """Accepts everything, unless told otherwise."""

    def __init__(self) -> None:
        self.accepted: list[Accepted] = []
        self.sent: list[tuple[str | None, SendToUserRequest]] = []
        self.streams = 0
        self.open_lanes = 0
        self.lane_refusal: status_pb2.Status | None = None
        self.send_refusal: status_pb2.Status | None = None
        self.break_at: dict[int, int] = {}
        """Stream → after how many of its messages it breaks, the last one accepted but not answered."""
        self.end_lanes_at: int | None = None
        """After how many messages every lane ends, with MANAGER_GONE."""
        self.lanes_closed = asyncio.Event()
        """Set while no lane is open that once was."""
        self.broke = asyncio.Event()
        """Set by the first stream that breaks."""
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self._context_service(), self._delivery_service()))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.stop(None)

    def _context_service(self) -> Any:
        get_context = grpc.unary_unary_rpc_method_handler(
            self._get_context, GetContextRequest.FromString, GetContextResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler("sidecar.api.v1.ContextService", {"GetContext": get_context})

    def _delivery_service(self) -> Any:
        send_to_user = grpc.unary_unary_rpc_method_handler(
            self._send_to_user, SendToUserRequest.FromString, SendToUserResponse.SerializeToString
        )
        deliver = grpc.stream_stream_rpc_method_handler(
            self._deliver, DeliverRequest.FromString, DeliverResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(
            "sidecar.api.v1.DeliveryService", {"SendToUser": send_to_user, "Deliver": deliver}
        )

    async def _get_context(self, _: Any, context: Any) -> GetContextResponse:
        return GetContextResponse(isolation_key=f"key-of-{context_token(context)}")

    async def _send_to_user(self, request: SendToUserRequest, context: Any) -> SendToUserResponse:
        self.sent.append((context_token(context), request))
        if self.send_refusal is not None:
            status = rpc_status.to_status(self.send_refusal)
            await context.abort(status.code, status.details, status.trailing_metadata)
        return SendToUserResponse(receipt=Receipt(sequence=1))

    async def _deliver(self, requests: AsyncIterator[DeliverRequest], context: Any) -> AsyncIterator[DeliverResponse]:
        stream, self.streams = self.streams, self.streams + 1
        lanes: dict[int, DeliverRequest.OpenLane] = {}
        places: dict[int, int] = {}
        count = 0
        async for request in requests:
            if request.HasField("open_lane"):
                number = request.open_lane.lane
                if self.lane_refusal is not None:
                    error = DeliverResponse.LaneError(lane=number, error=self.lane_refusal)
                    yield DeliverResponse(lane_error=error)
                    continue
                lanes[number], places[number] = request.open_lane, 0
                self._count_lanes(1)
                yield DeliverResponse(lane_opened=DeliverResponse.LaneOpened(lane=number))
            elif request.HasField("close_lane") and lanes.pop(request.close_lane.lane, None) is not None:
                self._count_lanes(-1)
            for item in request.messages.items:
                place = places[item.lane]
                places[item.lane] += 1
                answer = DeliverResponse.LaneReceipt(lane=item.lane, number=place)
                count += 1
                if self.end_lanes_at is not None and count > self.end_lanes_at:
                    gone = DeliverResponse.LaneError(lane=item.lane, error=refused("NOT_FOUND", "MANAGER_GONE"))
                    yield DeliverResponse(lane_error=gone)
                    answer.error.CopyFrom(refused("FAILED_PRECONDITION", "LANE_NOT_OPEN"))
                else:
                    self.accepted.append(Accepted(stream, lanes[item.lane], item.message))
                    answer.receipt.CopyFrom(Receipt(message_id=item.message.message_id, sequence=len(self.accepted)))
                if count == self.break_at.get(stream):
                    self.broke.set()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                yield DeliverResponse(receipts=DeliverResponse.Receipts(items=[answer]))

    def _count_lanes(self, change: int) -> None:
        self.open_lanes += change
        if self.open_lanes:
            self.lanes_closed.clear()
        else:
            self.lanes_closed.set()


def context_token(context: Any) -> str | None:
    """What the call presents."""
    return dict(context.invocation_metadata()).get("x-context-token")
