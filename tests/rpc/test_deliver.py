"""The Deliver stream: lanes, numbers, order, limits, its end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from sidecar.api.v1 import delivery_service_pb2_grpc as stubs
from sidecar.api.v1 import types_pb2
from sidecar.core.identity import Scope
from sidecar.core.ports import AuditEvent
from sidecar.rpc.deliver import MAX_LANES, MAX_UNSENT_ANSWERS
from sidecar.rpc.wire import varint
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import (
    MESSAGE,
    TIMEOUT_S,
    Attempt,
    DeliverCall,
    Refused,
    Request,
    Rig,
    ended_with,
    incident_id,
    summary,
)
from tests.rpc.stores import BrokenStore, ToldStore

NOT_OPEN = Refused("FAILED_PRECONDITION", "LANE_NOT_OPEN")
GONE = Refused("NOT_FOUND", "MANAGER_GONE")
VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
EXPIRED = Refused("UNAUTHENTICATED", "TOKEN_EXPIRED")
REVOKED = Refused("UNAUTHENTICATED", "TOKEN_REVOKED")
STORAGE = Refused("UNAVAILABLE", "STORAGE_UNAVAILABLE", retry_s=1.0)


def outcomes(items: list[Any]) -> list[Any]:
    """(lane, number, sequence or reason) of each receipt."""
    found: list[Any] = []
    for item in items:
        ok = item.WhichOneof("result") == "receipt"
        found.append((item.lane, item.number, item.receipt.sequence if ok else summary(item.error).reason))
    return found


async def lane_error(stream: DeliverCall, lane: int) -> Refused:
    """The next frame, which is that lane's error."""
    answer = await stream.read()
    assert answer.WhichOneof("frame") == "lane_error", answer
    assert answer.lane_error.lane == lane
    return summary(answer.lane_error.error)


# Lanes and numbers


async def test_receipts_come_in_order_within_their_lane(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(0, rig.attempt())
    await stream.opened(2**32 - 1, rig.attempt(rig.carol))
    await stream.send((0, MESSAGE), (2**32 - 1, MESSAGE), (0, MESSAGE))
    await stream.send((0, MESSAGE))
    assert outcomes(await stream.receipts(4)) == [(0, 0, 1), (2**32 - 1, 0, 1), (0, 1, 2), (0, 2, 3)]
    assert await stream.finish() == []
    assert len(rig.alice.socket.frames) == 3


async def test_two_lanes_of_one_context(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.opened(2, rig.attempt())
    await stream.send((2, MESSAGE), (1, MESSAGE))
    assert outcomes(await stream.receipts(2)) == [(2, 0, 1), (1, 0, 2)]
    await stream.finish()


async def test_a_message_may_follow_its_open_lane_without_waiting(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.open(1, rig.attempt())
    await stream.send((1, MESSAGE))
    assert (await stream.read()).lane_opened.lane == 1
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    await stream.finish()


async def test_refused_messages_have_their_place_too(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE), (1, types_pb2.Message(payload=b"x")), (1, MESSAGE))
    assert outcomes(await stream.receipts(3)) == [(1, 0, 1), (1, 1, "BAD_REQUEST"), (1, 2, 2)]
    await stream.finish()


async def test_a_lane_that_was_never_opened(rig: Rig) -> None:
    stream = rig.deliver()
    async with rig.seen():
        await stream.send((5, MESSAGE), (5, MESSAGE))
        first, second = await stream.receipts(2)
    assert summary(first.error) == summary(second.error) == NOT_OPEN
    assert (first.number, second.number) == (0, 1)
    await stream.opened(5, rig.attempt())
    await stream.send((5, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(5, 0, 1)]
    await stream.finish()


async def test_a_closed_lane(rig: Rig) -> None:
    """What was sent before is answered, numbers go on, and opened anew it begins at 0; its manager has no watcher."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await stream.close_lane(1)
    await stream.close_lane(1)
    await stream.close_lane(99)
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(2)) == [(1, 0, 1), (1, 1, "LANE_NOT_OPEN")]
    assert not rig.alice.manager.end_watchers
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(1, 0, 2)]
    await stream.finish()


async def test_opening_an_open_lane_renews_its_token(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await stream.receipts(1)
    rig.tick(600)
    await stream.opened(1, Attempt(rig.alice.key, rig.mint(rig.alice.manager, Scope.SEND), MESSAGE))
    rig.tick(600)
    await stream.send((1, MESSAGE), (1, types_pb2.Message(payload=b"{}", critical=True)))
    assert outcomes(await stream.receipts(2)) == [(1, 1, 2), (1, 2, "SCOPE_MISSING")]
    assert len(rig.alice.manager.end_watchers) == 1
    await stream.finish()


async def test_opening_an_open_lane_with_another_key_changes_nothing(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    async with rig.seen(AuditEvent.ISOLATION_VIOLATION, isolation_violations_detected=1):
        await stream.open(1, rig.attempt(rig.carol))
        assert await lane_error(stream, 1) == VIOLATION
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    assert (rig.alice.manager.outbox.head, rig.carol.manager.outbox.head) == (1, 0)
    assert not rig.carol.manager.end_watchers
    await stream.finish()


async def test_a_renewal_that_is_refused_leaves_the_lane_as_it_was(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        await stream.open(1, Attempt(rig.alice.key, "garbage", MESSAGE))
        assert (await lane_error(stream, 1)).reason == "TOKEN_INVALID"
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    await stream.finish()


async def test_1024_lanes_and_one_more(rig: Rig) -> None:
    stream = rig.deliver()
    for lane in range(MAX_LANES):
        await stream.open(lane, rig.attempt())
    for lane in range(MAX_LANES):
        assert (await stream.read()).lane_opened.lane == lane
    await stream.open(MAX_LANES, rig.attempt())
    assert await lane_error(stream, MAX_LANES) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="open_lane.lane")
    await stream.opened(0, rig.attempt())
    await stream.close_lane(3)
    await stream.opened(MAX_LANES, rig.attempt())
    await stream.finish()
    assert not rig.alice.manager.end_watchers


async def test_lanes_that_have_ended_make_room(rig: Rig) -> None:
    """A stream outlives its users: those who left do not count, though nobody closed their lanes."""
    stream = rig.deliver()
    for lane in range(MAX_LANES + 2):
        client = rig.connect(f"user-{lane}")
        await stream.opened(lane, rig.attempt(client))
        client.manager.end("test", None, rig.at())
        assert await lane_error(stream, lane) == GONE
    await stream.send((MAX_LANES + 1, MESSAGE), (0, MESSAGE))
    assert outcomes(await stream.receipts(2)) == [(MAX_LANES + 1, 0, "LANE_NOT_OPEN"), (0, 0, "LANE_NOT_OPEN")]
    await stream.finish()


# The end of a lane


async def test_the_end_of_a_context_is_told_once(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.opened(2, rig.attempt(rig.carol))
    await stream.send((1, MESSAGE))
    await stream.receipts(1)
    rig.alice.manager.end("test", None, rig.at())
    assert await lane_error(stream, 1) == GONE
    async with rig.seen():
        await stream.send((1, MESSAGE), (2, MESSAGE), (1, MESSAGE))
        assert outcomes(await stream.receipts(3)) == [(1, 1, "LANE_NOT_OPEN"), (2, 0, 1), (1, 2, "LANE_NOT_OPEN")]
    async with rig.seen(AuditEvent.TOKEN_DENIED, context_validation_failures=1):
        await stream.open(1, rig.attempt())
        assert await lane_error(stream, 1) == GONE
    assert await stream.finish() == []


async def test_a_lanes_token_expires(rig: Rig) -> None:
    """Told at the next tick, though nothing is sent; recorded once."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    rig.tick(904)
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        rig.tick(1)
        assert await lane_error(stream, 1) == EXPIRED
        rig.tick(1)
        await stream.send((1, MESSAGE))
        assert outcomes(await stream.receipts(1)) == [(1, 1, "LANE_NOT_OPEN")]
    await stream.opened(1, Attempt(rig.alice.key, rig.mint(rig.alice.manager), MESSAGE))
    await stream.finish()


@pytest.mark.parametrize("ticks", [True, False])
async def test_a_lanes_token_is_revoked(rig: Rig, ticks: bool) -> None:
    """Told by the next message, or the next tick, whichever comes first."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        rig.tokens.revoke_family(rig.tokens.verify(rig.alice.token).family)
        if ticks:
            rig.tick()
        await stream.send((1, MESSAGE), (1, MESSAGE))
        assert await lane_error(stream, 1) == REVOKED
        assert outcomes(await stream.receipts(2)) == [(1, 0, "LANE_NOT_OPEN"), (1, 1, "LANE_NOT_OPEN")]
        rig.tick()
    assert not rig.alice.manager.end_watchers
    assert await stream.finish() == []


async def test_a_lane_whose_context_ends_by_a_message_of_its_own_frame(rig: Rig) -> None:
    """A raw context ends when its socket is lost, and writing may find that out."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    write = rig.alice.socket.write

    class EndingSocket(type(rig.alice.socket)):  # type: ignore[misc]
        def write(self, frame: bytes) -> None:
            write(frame)
            rig.alice.manager.end("test", None, rig.at())

    rig.alice.manager.primary = EndingSocket("a-ending")
    await stream.send((1, MESSAGE), (1, MESSAGE))
    assert await lane_error(stream, 1) == GONE
    (_, second) = await stream.receipts(2)
    assert summary(second.error) == NOT_OPEN
    await stream.finish()


# Stores that answer later


async def test_receipts_stay_in_order_with_a_store_that_answers_later(make_rig: MakeRig) -> None:
    """A refusal waits behind what is unconfirmed; another lane does not."""
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.opened(2, rig.attempt(rig.carol))
    wrong = types_pb2.Message(payload=b"x")
    await stream.send((1, MESSAGE), (1, wrong), (2, wrong), (1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(2, 0, "BAD_REQUEST")]
    await store.asked(2)
    store.confirm()
    assert outcomes(await stream.receipts(2)) == [(1, 0, 1), (1, 1, "BAD_REQUEST")]
    store.confirm()
    assert outcomes(await stream.receipts(1)) == [(1, 2, 2)]
    await stream.finish()


async def test_a_failing_append_fails_those_behind_it_in_order(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE), (1, MESSAGE), (1, MESSAGE))
    await store.asked(3)
    store.confirm()
    store.fail()
    items = await stream.receipts(3)
    assert outcomes(items) == [(1, 0, 1), (1, 1, "STORAGE_UNAVAILABLE"), (1, 2, "STORAGE_UNAVAILABLE")]
    assert summary(items[1].error) == STORAGE
    await stream.finish()


async def test_half_closing_waits_for_the_store(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE), (1, MESSAGE))
    await store.asked(2)
    await stream.call.done_writing()
    await rig.calls_under_way(1)
    await rig.health.Check(health_pb2.HealthCheckRequest())  # behind the half-close, on the same connection
    store.confirm_all()
    (answer,) = await stream.finish()
    assert outcomes(list(answer.receipts.items)) == [(1, 0, 1), (1, 1, 2)]


async def test_a_lane_opened_anew_answers_what_came_before_first(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await stream.close_lane(1)
    await stream.opened(1, rig.attempt())
    await stream.send((1, types_pb2.Message(payload=b"x")), (1, MESSAGE))
    await store.asked(2)
    store.confirm_all()
    assert outcomes(await stream.receipts(3)) == [(1, 0, 1), (1, 0, "BAD_REQUEST"), (1, 1, 2)]
    await stream.finish()


async def test_a_frame_that_ends_the_stream_waits_for_the_answers_before_it(make_rig: MakeRig) -> None:
    """So that nobody takes what was accepted for refused."""
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await stream.write()
    await store.asked(1)
    await rig.calls_under_way(1)
    store.confirm()
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    assert summary(await ended_with(stream.call)).field == "frame"


async def test_the_end_of_a_context_answers_what_the_store_has_not(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await store.asked(1)
    rig.alice.manager.end("test", None, rig.at())
    assert outcomes(await stream.receipts(1)) == [(1, 0, "MANAGER_GONE")]
    assert await lane_error(stream, 1) == GONE
    await stream.finish()


async def test_an_append_is_carried_through_though_its_stream_has_gone(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send((1, MESSAGE))
    await store.asked(1)
    stream.call.cancel()
    await rig.calls_under_way(0)
    store.confirm()
    assert len(rig.alice.socket.frames) == 1
    assert not rig.alice.manager.end_watchers


# Frames


async def test_a_frame_of_a_thousand_and_one_ends_the_stream(rig: Rig) -> None:
    """What came before it is answered first."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.send(*[(1, MESSAGE)] * 1_000)
    await stream.send(*[(1, MESSAGE)] * 1_001)
    assert len(await stream.receipts(1_000)) == 1_000
    status = await ended_with(stream.call)
    assert summary(status) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="messages.items")
    assert rig.alice.manager.outbox.head == 1_000
    assert not rig.alice.manager.end_watchers


@pytest.mark.parametrize(("data", "field"), [(b"", "frame"), (b"\xff", "request"), (b"\x0a\x02\x12\xff", "request")])
async def test_a_frame_that_says_nothing_ends_the_stream(rig: Rig, data: bytes, field: str) -> None:
    channel: Any = rig.channel
    call = channel.stream_stream("/sidecar.api.v1.DeliveryService/Deliver")()
    async with rig.seen():
        await call.write(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field.encode() in dict(caught.value.trailing_metadata())["grpc-status-details-bin"]


async def test_an_empty_frame_of_messages(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.send()
    assert await stream.finish() == []


async def test_a_large_frame_of_messages_without_any(rig: Rig) -> None:
    """Large by a field that only a later version knows: number 1,000, of bytes."""
    size = 300_000
    unknown = b"\xc2\x3e" + varint(size).encode("latin-1") + bytes(size)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.write(messages=Request.Messages.FromString(unknown))
    await stream.send((1, MESSAGE))
    assert outcomes(await stream.receipts(1)) == [(1, 0, 1)]
    await stream.finish()


async def test_a_bug_costs_its_message_alone(make_rig: MakeRig) -> None:
    store = BrokenStore()
    rig = await make_rig(store=store)
    store.spare(rig.carol.key)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    await stream.opened(2, rig.attempt(rig.carol))
    await stream.send((1, MESSAGE), (2, MESSAGE), (1, MESSAGE))
    first, second, third = await stream.receipts(3)
    assert incident_id(first.error) != incident_id(third.error)
    assert (second.lane, second.receipt.sequence) == (2, 1)
    await stream.finish()


async def test_half_closing_flushes_everything(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.open(1, rig.attempt())
    for _ in range(20):
        await stream.send(*[(1, MESSAGE)] * 100)
    frames = await stream.finish()
    assert frames[0].lane_opened.lane == 1
    items = [item for frame in frames[1:] for item in frame.receipts.items]
    assert outcomes(items) == [(1, number, number + 1) for number in range(2_000)]


async def test_answers_to_many_small_frames_leave_together(make_rig: MakeRig) -> None:
    """While the writer waits for the store, or the client, what it is to say gathers."""
    store = ToldStore()
    rig = await make_rig(store=store)
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    for _ in range(200):
        await stream.send((1, MESSAGE))
    await store.asked(200)
    store.confirm_all()
    assert len((await stream.read()).receipts.items) == 200
    assert await stream.finish() == []


# What a stream leaves behind, and what one client can do to others


@pytest.mark.parametrize("by_channel", [True, False])
async def test_a_broken_stream_leaves_nothing(rig: Rig, by_channel: bool) -> None:
    tasks = asyncio.all_tasks()
    channel = grpc.aio.insecure_channel(rig.edge.target, options=(("grpc.use_local_subchannel_pool", 1),))
    stream = DeliverCall(stubs.DeliveryServiceStub(channel).Deliver(timeout=TIMEOUT_S))
    await stream.opened(1, rig.attempt())
    await stream.opened(2, rig.attempt(rig.carol))
    with capture_logs() as logs:
        if by_channel:
            await channel.close()
        else:
            stream.call.cancel()
        await rig.calls_under_way(0)
    assert logs == []
    del stream
    assert not rig.alice.manager.end_watchers
    assert not rig.carol.manager.end_watchers
    gc.collect()
    await channel.close()
    left = [task for task in asyncio.all_tasks() - tasks if "sidecar" in repr(task.get_coro())]
    assert left == []


async def test_a_client_that_never_reads_is_bounded_and_starves_nobody(rig: Rig) -> None:
    """gRPC holds it back once its window is full and its answers are too many; what it sent is not lost."""
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    frame = Request(messages=Request.Messages(items=[Request.LaneMessage(lane=9, message=MESSAGE)] * 1_000))
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stream.call.write(frame)
            sent += 1_000

    flooding = asyncio.ensure_future(flood())
    while True:  # until the flood has stood still for as long as a good many answered calls take
        before = sent
        for _ in range(100):
            await rig.send(rig.bystander)
        rig.bystander.manager.acknowledge(rig.bystander.socket.attach_id, rig.bystander.manager.outbox.cursor, rig.at())
        if sent == before:
            break
    # What is under way is bounded too: the window of a stream, and the kernel's buffers.
    assert MAX_UNSENT_ANSWERS < sent < 200_000
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    stream.call.cancel()
    await rig.calls_under_way(0)


async def test_stopping_the_server_is_bounded_by_its_grace(make_rig: MakeRig) -> None:
    rig = await make_rig()
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    async with asyncio.timeout(5):
        await rig.edge.close(0.05)
        await rig.edge.close(0.05)
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.call.read()
    assert not rig.alice.manager.end_watchers


async def test_a_stream_that_opens_no_lane_in_time_ends(make_rig: MakeRig) -> None:
    rig = await make_rig(first_lane_timeout_s=0.05)
    nobody = rig.deliver()
    await nobody.send((5, rig.attempt().message))  # a message for a lane that is none proves nothing
    await nobody.receipts(1)
    assert summary(await ended_with(nobody.call)) == Refused("UNAUTHENTICATED", "TOKEN_MISSING")
    proved = rig.deliver()
    await proved.opened(1, rig.attempt())
    assert summary(await ended_with(rig.delivery.Deliver())) == Refused("UNAUTHENTICATED", "TOKEN_MISSING")
    await proved.send((1, rig.attempt().message))
    ((item,)) = await proved.receipts(1)
    assert item.receipt.sequence == 1
    await proved.finish()


async def test_a_stream_that_keeps_trying_without_a_token_ends_all_the_same(make_rig: MakeRig) -> None:
    rig = await make_rig(first_lane_timeout_s=0.3)
    nobody = rig.deliver()

    async def keep_trying() -> None:
        # How a client learns of the end while it writes differs; the trail says how it was.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            while True:
                await nobody.send((5, rig.attempt().message))
                await nobody.receipts(1)

    await keep_trying()
    await rig.calls_under_way(0)
    (record,) = await rig.records(AuditEvent.TOKEN_DENIED)
    assert record["reason"] == "TOKEN_MISSING"


async def test_a_large_frame_is_delivered_whole_and_in_order(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.opened(1, rig.attempt())
    large = [types_pb2.Message(payload=b'"%d%s"' % (number, b"x" * 90_000)) for number in range(12)]
    await stream.send(*((1, message) for message in large))
    receipts = await stream.receipts(12)
    assert [(item.number, item.receipt.sequence) for item in receipts] == [(n, n + 1) for n in range(12)]
    await stream.finish()
