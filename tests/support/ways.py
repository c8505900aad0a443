"""The ways in for one attempt to reach a user, on the gRPC edge of a running sidecar; each ends with its refusal.

Where a way carries several messages, a refused one stands between two good ones to somebody else, which are accepted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.rpc import status_pb2

from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.rpc.rig import TIMEOUT_S, Attempt, DeliverCall, refused
from tests.support.stage import Caller, Stage

Way = Callable[[Caller, Stage, Attempt], Awaitable[status_pb2.Status]]


def as_client(token: str) -> dict[str, Any]:
    """What a unary call carries its token in."""
    metadata = (("x-context-token", token),) if token else ()
    return {"metadata": metadata, "timeout": TIMEOUT_S}


async def by_unary(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = pb.SendToUserRequest(
        isolation_key=attempt.key, message=attempt.message, expected_user_id=attempt.expected_user_id
    )
    return await refused(caller.delivery.SendToUser(request, **as_client(attempt.token)))


async def by_event(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = pb.EmitCriticalEventRequest(
        isolation_key=attempt.key,
        event_type=attempt.message.event_type or "event",
        data=attempt.message.payload,
        message_id=attempt.message.message_id,
        expected_user_id=attempt.expected_user_id,
    )
    return await refused(caller.delivery.EmitCriticalEvent(request, **as_client(attempt.token)))


async def by_batch(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    good = stage.attempt(stage.carol)
    items = [
        pb.SendBatchItem(
            isolation_key=one.key, context_token=one.token, message=one.message, expected_user_id=one.expected_user_id
        )
        for one in (good, attempt, good)
    ]
    answer = await caller.delivery.SendBatch(pb.SendBatchRequest(items=items), timeout=TIMEOUT_S)
    assert [result.WhichOneof("result") for result in answer.results] == ["receipt", "error", "receipt"]
    await stage.went_to(stage.carol, 2)
    error: status_pb2.Status = answer.results[1].error
    return error


async def by_lane(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    """The lane's own error, or that of its message; another lane of the stream goes on."""
    stream = DeliverCall(caller.delivery.Deliver(timeout=TIMEOUT_S))
    good = stage.attempt(stage.carol)
    await stream.opened(7, good)
    await stream.open(3, attempt)
    answer = await stream.read()
    if answer.WhichOneof("frame") == "lane_error":
        assert answer.lane_error.lane == 3
        status = answer.lane_error.error
        await stream.send((7, good.message))
        (item,) = await stream.receipts(1)
    else:
        assert answer.lane_opened.lane == 3
        await stream.send((3, attempt.message), (7, good.message))
        # Receipts are in order within a lane, in none between lanes.
        first, item = sorted(await stream.receipts(2), key=lambda receipt: receipt.lane)
        assert (first.lane, first.number, first.WhichOneof("result")) == (3, 0, "error")
        status = first.error
    assert (item.lane, item.number, item.WhichOneof("result")) == (7, 0, "receipt")
    assert await stream.finish() == []
    await stage.went_to(stage.carol, 1)
    return status


async def by_broadcast(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=attempt.message)
    return await refused(caller.delivery.Broadcast(request, **as_client(attempt.token)))


async def by_close(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = pb.CloseManagerRequest(isolation_key=attempt.key)
    return await refused(caller.delivery.CloseManager(request, **as_client(attempt.token)))


async def by_stats(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = pb.GetManagerStatsRequest(isolation_key=attempt.key)
    return await refused(caller.delivery.GetManagerStats(request, **as_client(attempt.token)))


async def by_look(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    return await refused(caller.context.GetContext(context_pb.GetContextRequest(), **as_client(attempt.token)))


async def by_refresh(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = context_pb.RefreshContextTokenRequest()
    return await refused(caller.context.RefreshContextToken(request, **as_client(attempt.token)))


async def by_revocation(caller: Caller, stage: Stage, attempt: Attempt) -> status_pb2.Status:
    request = context_pb.RevokeContextTokenRequest()
    return await refused(caller.context.RevokeContextToken(request, **as_client(attempt.token)))


METHODS: dict[Way, str] = {
    by_unary: "SendToUser",
    by_event: "EmitCriticalEvent",
    by_batch: "SendBatch",
    by_lane: "Deliver",
    by_broadcast: "Broadcast",
    by_close: "CloseManager",
    by_stats: "GetManagerStats",
    by_look: "GetContext",
    by_refresh: "RefreshContextToken",
    by_revocation: "RevokeContextToken",
}
"""What the trail calls each way."""
SENDING = (by_unary, by_batch, by_lane)
KEYED = (by_unary, by_event, by_batch, by_lane, by_close, by_stats)
"""The ways that name an isolation key."""


def named(way: Way) -> str:
    """A way's id in a table."""
    return METHODS[way]
