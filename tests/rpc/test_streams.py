"""Response streams over gRPC: chunks by every way of sending, and the client's cancel on its ways to the sender."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.core.errors import ErrorReason
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import Attempt, Client, DeliverCall, Refused, Rig, refused, status_of, summary
from tests.rpc.stores import ToldStore
from tests.rpc.workers import attached, registration, say

OPEN, END, ERROR = types_pb2.STREAM_STATE_OPEN, types_pb2.STREAM_STATE_END, types_pb2.STREAM_STATE_ERROR
CANCELLED = Refused("FAILED_PRECONDITION", "STREAM_CANCELLED")
ENDED = Refused("FAILED_PRECONDITION", "STREAM_ENDED")
OUT_OF_ORDER = Refused("FAILED_PRECONDITION", "STREAM_OUT_OF_ORDER")


def chunk(index: int, state: Any = OPEN, stream_id: str = "s", **members: Any) -> types_pb2.Message:
    """One chunk; by default one that is not the last."""
    stream = types_pb2.Stream(stream_id=stream_id, index=index, state=state)
    values: dict[str, Any] = {"payload": b"{}", "stream": stream} | members
    return types_pb2.Message(**values)


def cancel(rig: Rig, client: Client, stream_id: str | None = None, message_id: str | None = None) -> None:
    client.manager.cancel(stream_id, message_id, rig.at())


def bad(field: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=field)


async def outcome(rig: Rig, message: types_pb2.Message, way: str) -> Any:
    """The receipt of one message to Alice, or how it was refused."""
    attempt = Attempt(rig.alice.key, rig.alice.token, message)
    if way == "unary":
        try:
            return (await rig.unary(attempt)).receipt
        except grpc.aio.AioRpcError as error:
            return summary(status_of(error))
    if way == "batch":
        (result,) = await rig.batch(attempt)
    else:
        stream = rig.deliver()
        await stream.opened(1, attempt)
        await stream.send((1, message))
        (result,) = await stream.receipts(1)
        await stream.finish()
    return summary(result.error) if result.WhichOneof("result") == "error" else result.receipt


@pytest.mark.parametrize("way", ["unary", "batch", "lane"])
async def test_chunks_go_by_their_index_whichever_way_they_come(rig: Rig, way: str) -> None:
    first = await outcome(rig, chunk(0), way)
    assert (first.sequence, first.duplicate) == (1, False)
    assert await outcome(rig, chunk(2), way) == OUT_OF_ORDER
    repeat = await outcome(rig, chunk(0), way)
    assert (repeat.sequence, repeat.duplicate, repeat.message_id) == (1, True, first.message_id)
    assert (await outcome(rig, chunk(1, END, payload=b""), way)).sequence == 2
    assert await outcome(rig, chunk(2), way) == ENDED
    cancel(rig, rig.alice, "other")
    assert await outcome(rig, chunk(0, stream_id="other"), way) == CANCELLED
    assert len(rig.alice.socket.frames) == 2


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (chunk(0, stream_id=""), bad("message.stream.stream_id")),
        (chunk(0, stream_id="*"), bad("message.stream.stream_id")),
        (chunk(0, stream_id="a\0b"), bad("message.stream.stream_id")),
        (chunk(0, stream_id="s" * 129), bad("message.stream.stream_id")),
        (chunk(2**53), bad("message.stream.index")),
        (chunk(2**53 - 1), OUT_OF_ORDER),
        (chunk(0, 7), bad("message.stream.state")),
        (chunk(0, payload=b""), bad("message.payload")),
        (chunk(0, END, payload=b"{"), bad("message.payload")),
        (chunk(0, reply_to=">"), bad("message.reply_to")),
    ],
)
async def test_a_bad_chunk_is_refused_and_begins_no_stream(
    rig: Rig, message: types_pb2.Message, refusal: Refused
) -> None:
    assert await outcome(rig, message, "unary") == refusal
    assert not rig.alice.manager.conversation.streaming


async def test_an_unspecified_state_is_open(rig: Rig) -> None:
    await outcome(rig, chunk(0, types_pb2.STREAM_STATE_UNSPECIFIED), "unary")
    assert rig.alice.manager.conversation.streaming


async def test_the_answer_of_a_silent_stream_s_sender_is_that_it_has_ended(rig: Rig) -> None:
    await outcome(rig, chunk(0, reply_to="m-1"), "unary")
    rig.tick(120.0)
    assert await outcome(rig, chunk(1), "unary") == ENDED
    assert len(rig.alice.socket.frames) == 2


# Cancelled


async def test_a_cancel_reaches_the_sender_three_ways(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=1))
    assert say(rig, rig.alice, "m-1") is None
    token = (await worker.event("message")).context_token
    stream = rig.deliver()
    await stream.opened(1, Attempt(rig.alice.key, token, chunk(0)))
    await stream.send((1, chunk(0, reply_to="m-1")))
    await stream.receipts(1)
    cancel(rig, rig.alice, message_id="m-1")
    cancelled = (await worker.event("cancelled")).cancelled
    assert (cancelled.stream_id, cancelled.message_id) == ("s", "m-1")
    answer = await stream.read()
    assert answer.stream_cancelled == pb.DeliverResponse.StreamCancelled(lane=1, stream_id="s", reply_to="m-1")
    await stream.send((1, chunk(1, reply_to="m-1")))
    (item,) = await stream.receipts(1)
    assert summary(item.error) == CANCELLED
    assert await outcome(rig, chunk(1, END), "unary") == CANCELLED
    assert len(rig.alice.socket.frames) == 1


async def test_every_open_lane_of_the_context_is_told_and_no_other(rig: Rig) -> None:
    stream, other = rig.deliver(), rig.deliver()
    for lane in (1, 2, 3):
        await stream.opened(lane, rig.attempt())
    await stream.opened(4, rig.attempt(rig.carol))
    await other.opened(1, rig.attempt(rig.carol))
    await stream.close_lane(3)
    await stream.opened(5, rig.attempt(rig.carol))  # it has read that
    cancel(rig, rig.alice, "s")
    told = {(await stream.read()).stream_cancelled.lane for _ in range(2)}
    assert told == {1, 2}
    assert await stream.finish() == []
    assert await other.finish() == []


async def test_a_lane_whose_client_does_not_read_ends_before_cancels_fill_the_memory(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    for number in range(20_000):
        cancel(rig, rig.alice, f"s-{number}")
    frames = [await stream.read()]
    while frames[-1].WhichOneof("frame") == "stream_cancelled":
        frames.append(await stream.read())
    assert summary(frames[-1].lane_error.error) == Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=1.0)
    assert len(frames) < 10_000
    assert await stream.finish() == []


async def test_the_end_of_the_context_ends_its_streams(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, chunk(0)))
    await stream.receipts(1)
    rig.alice.manager.end("closed_by_service", None, rig.at())
    assert summary((await stream.read()).lane_error.error).reason == "MANAGER_GONE"
    assert summary(await refused(rig.unary(rig.attempt()))).reason == "MANAGER_GONE"


async def test_a_stream_s_chunk_is_answered_once_the_store_has_it(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream: DeliverCall = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, chunk(0)), (1, chunk(1)), (1, chunk(0)))
    await store.asked(2)
    store.confirm()
    store.fail()
    items = await stream.receipts(3)
    assert [item.receipt.sequence for item in items] == [1, 0, 1]
    assert [item.receipt.duplicate for item in items] == [False, False, True]
    assert summary(items[1].error).reason == ErrorReason.STORAGE_UNAVAILABLE.value
    await stream.send((1, chunk(1)))
    await store.asked(1)
    store.confirm()
    assert [item.receipt.sequence for item in await stream.receipts(1)] == [2]
    assert await stream.finish() == []


# Many contexts


@pytest.mark.parametrize(
    ("scope", "reached"), [(pb.BROADCAST_SCOPE_USER, ["alice"]), (pb.BROADCAST_SCOPE_TENANT, ["alice", "bob", "carol"])]
)
async def test_a_stream_may_be_broadcast_and_each_context_has_its_own_place_in_it(
    rig: Rig, scope: Any, reached: list[str]
) -> None:
    everyone = {"alice": rig.alice, "bob": rig.bystander, "carol": rig.carol}
    await outcome(rig, chunk(0, stream_id="s"), "unary")
    rig.alice.socket.take()
    for index in range(2):
        message = chunk(index, END if index else OPEN)
        request = pb.BroadcastRequest(scope=scope, message=message)
        answer = await rig.delivery.Broadcast(request, metadata=rig.alice.metadata)
        assert (answer.managers, answer.refused) == (len(reached), 0)
    # Alice had the first already.
    assert {name: len(client.socket.frames) for name, client in everyone.items() if client.socket.frames} == {
        name: 1 if name == "alice" else 2 for name in reached
    }
