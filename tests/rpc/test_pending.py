"""Sends that the store has yet to confirm, by each way of sending: what ends the wait, and what is recorded of it."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.identity import Scope
from sidecar.core.message import Durability
from sidecar.core.ports import AuditEvent
from sidecar.rpc.deliver import MAX_LANE_UNCONFIRMED
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import MESSAGE, DeliverCall, Refused, Rig, refused, summary
from tests.rpc.stores import ToldStore

GONE = Refused("NOT_FOUND", "MANAGER_GONE")


@pytest.fixture
async def store() -> ToldStore:
    return ToldStore()


@pytest.fixture
async def pending(make_rig: MakeRig, store: ToldStore) -> Rig:
    return await make_rig(store=store)


def end(rig: Rig) -> None:
    rig.alice.manager.end("test", catalogued(CloseCode.IDLE), rig.at())


ENDED = (AuditEvent.SOCKET_CLOSED, AuditEvent.CONTEXT_CLOSED, AuditEvent.TOKEN_DENIED)
COUNTED = {"context_validation_failures": 1}


async def test_a_context_that_ends_under_a_call_is_recorded_once(pending: Rig, store: ToldStore) -> None:
    async with pending.seen(*ENDED, **COUNTED):
        call = asyncio.ensure_future(refused(pending.unary(pending.attempt())))
        await store.asked(1)
        end(pending)
        assert summary(await call) == GONE


async def test_a_context_that_ends_under_a_batch_is_recorded_once_an_item(pending: Rig, store: ToldStore) -> None:
    async with pending.seen(*ENDED, **COUNTED):
        batch = asyncio.ensure_future(pending.batch(pending.attempt(), pending.attempt(pending.carol)))
        await store.asked(2)
        end(pending)
        store.confirm_all()
        gone, kept = await batch
        assert summary(gone.error) == GONE
        assert kept.receipt.sequence == 1


async def test_a_context_that_ends_under_a_lane_is_recorded_once_a_message(pending: Rig, store: ToldStore) -> None:
    stream = pending.deliver()
    async with pending.seen(*ENDED, **COUNTED):
        await stream.opened(1, pending.attempt())
        await stream.send((1, MESSAGE))
        await store.asked(1)
        end(pending)
        answers = [await stream.read(), await stream.read()]
        errors = [answer for answer in answers if answer.WhichOneof("frame") == "lane_error"]
        receipts = [answer for answer in answers if answer.WhichOneof("frame") == "receipts"]
        assert summary(errors[0].lane_error.error) == GONE
        assert summary(receipts[0].receipts.items[0].error) == GONE
    await stream.finish()


async def test_a_broadcast_is_given_to_the_store_whole(pending: Rig, store: ToldStore) -> None:
    second = pending.connect("alice")
    token = pending.mint(pending.alice.manager, Scope.BROADCAST_USER)
    request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=MESSAGE)
    call = asyncio.ensure_future(pending.delivery.Broadcast(request, metadata=(("x-context-token", token),)))
    await store.asked(2)  # before the first is confirmed
    store.confirm_all()
    answer = await call
    assert (answer.managers, answer.connections, answer.refused) == (2, 2, 0)
    assert len(second.socket.frames) == 1


async def test_a_broadcast_that_may_have_been_taken_is_not_called_refused(pending: Rig, store: ToldStore) -> None:
    pending.connect("alice")
    token = pending.mint(pending.alice.manager, Scope.BROADCAST_USER)
    request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=MESSAGE)
    call = asyncio.ensure_future(refused(pending.delivery.Broadcast(request, metadata=(("x-context-token", token),))))
    await store.asked(2)
    store.fail(Unavailable(ErrorReason.OUTCOME_UNKNOWN))
    store.confirm_all()
    assert summary(await call) == Refused("UNAVAILABLE", "OUTCOME_UNKNOWN", retry_s=1.0)


async def test_a_lane_that_waits_for_the_store_pauses_its_stream(pending: Rig, store: ToldStore) -> None:
    """gRPC's flow control then has the client wait; nothing is refused, and all goes on once the store answers."""
    stream = pending.deliver()
    await stream.opened(1, pending.attempt())
    frames = MAX_LANE_UNCONFIRMED // 500 + 3
    for _ in range(frames):
        await stream.send(*[(1, MESSAGE)] * 500)
    await store.asked(MAX_LANE_UNCONFIRMED + 500)
    for _ in range(20):
        await pending.calls_under_way(1)
    assert len(store.waiting) == MAX_LANE_UNCONFIRMED + 500, "read on though the lane is full"
    received = asyncio.ensure_future(stream.receipts(500 * frames))
    while not received.done():
        store.confirm_all()
        await asyncio.sleep(0)
    assert [item.number for item in await received] == list(range(500 * frames))
    await finish(stream)


async def test_a_full_lane_that_was_opened_again_does_not_pause_its_stream_for_good(
    pending: Rig, store: ToldStore
) -> None:
    """What waits behind the store's answer to the lane that was closed are refusals: no further answer is to come."""
    stream, bad = pending.deliver(), types_pb2.Message(payload=b"{")
    await stream.opened(1, pending.attempt())
    await stream.opened(2, pending.attempt(pending.carol))
    await stream.send((1, MESSAGE))
    await stream.close_lane(1)
    await stream.opened(1, pending.attempt())
    await stream.send(*[(1, bad)] * 500)
    await stream.send(*[(1, bad)] * (MAX_LANE_UNCONFIRMED - 500), (2, MESSAGE))
    await store.asked(2)
    store.confirm_all()
    await stream.receipts(2 + MAX_LANE_UNCONFIRMED)
    await stream.opened(3, pending.attempt(pending.carol))
    await stream.finish()


async def finish(stream: DeliverCall) -> None:
    assert await stream.finish() == []


async def test_what_a_store_that_survives_gives_is_asked_for_and_told(pending: Rig, store: ToldStore) -> None:
    assert store.durability is Durability.DISK
    attempt = pending.attempt(min_durability=types_pb2.DURABILITY_DISK)
    call = asyncio.ensure_future(pending.unary(attempt))
    await store.asked(1)
    store.confirm()
    assert (await call).receipt.durability == types_pb2.DURABILITY_DISK
    replicated = pending.attempt(min_durability=types_pb2.DURABILITY_REPLICATED)
    assert summary(await refused(pending.unary(replicated))).reason == "DURABILITY_UNAVAILABLE"


async def test_a_store_that_survives_takes_what_comes_while_the_sidecar_drains(
    pending: Rig, rig: Rig, store: ToldStore
) -> None:
    for each in (pending, rig):
        each.factory.draining = True
        each.alice.manager.remove_connection(each.alice.manager.context, each.alice.socket.attach_id, 1006, each.at())
    assert summary(await refused(rig.unary(rig.attempt()))).reason == "DRAINING"
    call = asyncio.ensure_future(pending.unary(pending.attempt()))
    await store.asked(1)
    store.confirm()
    assert (await call).receipt.state == types_pb2.DELIVERY_STATE_QUEUED
