"""The calls that a work makes beside its load, or instead of one: batches, and what the sidecar counts of a context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
from google.rpc import error_details_pb2, status_pb2

from benchmarks.load import MESSAGE, metadata_of
from benchmarks.servers import Route, RunFailed
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types

SERVICE = "/sidecar.api.v1.DeliveryService"
CALL_TIMEOUT_S = 60.0
OUTBOX_FULL = "OUTBOX_FULL"


class Batches(Protocol):
    """What sends batches."""

    async def send(self, batch: bytes) -> Sequence[pb.SendBatchResult]:
        """A result for each message of the batch, in order."""


class Calls:
    """Calls over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._batch: Any = channel.unary_unary(
            f"{SERVICE}/SendBatch", response_deserializer=pb.SendBatchResponse.FromString
        )
        self._stats: Any = channel.unary_unary(
            f"{SERVICE}/GetManagerStats",
            request_serializer=pb.GetManagerStatsRequest.SerializeToString,
            response_deserializer=pb.GetManagerStatsResponse.FromString,
        )

    async def send(self, batch: bytes) -> Sequence[pb.SendBatchResult]:
        """A result for each message of the batch, in order."""
        answer: pb.SendBatchResponse = await self._batch(batch, timeout=CALL_TIMEOUT_S)
        return answer.results

    async def stats(self, route: Route) -> pb.GetManagerStatsResponse:
        """What the sidecar counts of that context."""
        request = pb.GetManagerStatsRequest(isolation_key=route.isolation_key)
        answer: pb.GetManagerStatsResponse = await self._stats(
            request, metadata=metadata_of(route), timeout=CALL_TIMEOUT_S
        )
        return answer

    async def check_acknowledged(self, routes: Sequence[Route]) -> None:
        """Raise RunFailed unless the clients acknowledged everything, and the sidecar took it."""
        left = sum([(await self.stats(route)).outbox_messages for route in routes])
        if left:
            raise RunFailed(f"{left} messages were not acknowledged")

    async def wait_until_away(self, route: Route, timeout_s: float = 10.0) -> None:
        """Return once the sidecar has seen that the context's socket is gone; its counters are all that tells."""
        async with asyncio.timeout(timeout_s):
            while (await self.stats(route)).connections_managed:
                pass


def batch_of(routes: Sequence[Route], message: types.Message = MESSAGE) -> bytes:
    """That message to each of them, serialised."""
    items = [
        pb.SendBatchItem(isolation_key=route.isolation_key, context_token=route.context_token, message=message)
        for route in routes
    ]
    return pb.SendBatchRequest(items=items).SerializeToString()


def reason_of(status: status_pb2.Status) -> str:
    """The reason of a refusal: its ErrorInfo's, or empty."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")
