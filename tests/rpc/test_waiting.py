"""wait_for_ack: an answer held until the message is acknowledged or dropped, the context ends, or the time is over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2

from sidecar.api.v1 import admin_service_pb2, types_pb2
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import BadRequest
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.rpc.waiting import MAX_WAIT_S, MAX_WAITS_OF_CONTEXT, wait_s_of
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import OPERATOR, TIMEOUT_S, Client, Refused, Rig, refused, service_metadata, summary
from tests.rpc.stores import ToldStore
from tests.support.doubles import RecordingSocket

MINUTE = Duration(seconds=60)
QUEUED, WRITTEN = types_pb2.DELIVERY_STATE_QUEUED, types_pb2.DELIVERY_STATE_WRITTEN
ACKNOWLEDGED, DROPPED = types_pb2.DELIVERY_STATE_ACKNOWLEDGED, types_pb2.DELIVERY_STATE_DROPPED


async def waiting(
    rig: Rig, client: Client, count: int = 1, held_before: int = 0, **members: Any
) -> list[asyncio.Future[Any]]:
    """So many sends to that client that wait, once all of them do."""
    head = client.manager.outbox.head
    calls = [
        asyncio.ensure_future(rig.unary(rig.attempt(client, **members), wait_for_ack=MINUTE)) for _ in range(count)
    ]
    await held(rig, held_before + count)
    assert client.manager.outbox.head == head + count
    assert not any(call.done() for call in calls)
    return calls


async def held(rig: Rig, count: int) -> None:
    """Once so many calls wait; each look is a call of its own, so the server gets on meanwhile."""
    async with asyncio.timeout(TIMEOUT_S):
        while len(rig.edge._delivery._waits) != count:
            await rig.health.Check(health_pb2.HealthCheckRequest())


async def test_a_call_that_waits_takes_no_place(make_rig: MakeRig) -> None:
    rig = await make_rig(max_concurrent_calls=2)
    calls = await waiting(rig, rig.alice, 5)
    assert rig.edge.active_calls == 0
    await rig.send(rig.bystander)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 5, rig.at())
    assert {(await call).receipt.state for call in calls} == {ACKNOWLEDGED}
    assert rig.edge.active_calls == 0


async def test_more_than_64_of_one_context_do_not_wait(rig: Rig) -> None:
    calls = await waiting(rig, rig.alice, MAX_WAITS_OF_CONTEXT)
    assert (await rig.unary(rig.attempt(), wait_for_ack=MINUTE)).receipt.state == WRITTEN
    (other,) = await waiting(rig, rig.carol, held_before=MAX_WAITS_OF_CONTEXT)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, MAX_WAITS_OF_CONTEXT, rig.at())
    assert {(await call).receipt.state for call in calls} == {ACKNOWLEDGED}
    await waiting(rig, rig.alice, held_before=1)
    other.cancel()


async def test_operators_and_orchestrators_are_answered_though_all_places_are_taken(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store, max_concurrent_calls=2)
    calls = [asyncio.ensure_future(rig.unary(rig.attempt())) for _ in range(2)]
    await store.asked(2)
    assert summary(await refused(rig.unary(rig.attempt()))).reason == "RATE_LIMITED"
    await rig.health.Check(health_pb2.HealthCheckRequest())
    await rig.admin.Drain(admin_service_pb2.DrainRequest(), metadata=service_metadata(OPERATOR))
    assert rig.drains == [None]
    store.confirm_all()
    for call in calls:
        await call


async def test_the_answer_comes_with_the_acknowledgement(rig: Rig) -> None:
    first, second = await waiting(rig, rig.alice, 2)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 1, rig.at())
    done, pending = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    receipt = done.pop().result().receipt
    assert (receipt.sequence, receipt.state, receipt.duplicate) == (1, ACKNOWLEDGED, False)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 2, rig.at())
    assert (await pending.pop()).receipt.state == ACKNOWLEDGED


async def test_anothers_acknowledgement_ends_no_wait(rig: Rig) -> None:
    (call,) = await waiting(rig, rig.alice)
    await rig.send(rig.bystander)
    rig.bystander.manager.acknowledge(rig.bystander.socket.attach_id, 1, rig.at())
    await held(rig, 1)
    assert not call.done()
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 1, rig.at())
    assert (await call).receipt.state == ACKNOWLEDGED


async def test_the_answer_comes_when_the_message_has_expired_unwritten(rig: Rig) -> None:
    rig.alice.socket.paused = True
    (call,) = await waiting(rig, rig.alice, ttl=Duration(seconds=1))
    rig.tick(2.0)
    assert (await call).receipt.state == DROPPED


async def test_the_answer_comes_when_a_gap_is_announced(make_rig: MakeRig) -> None:
    rig = await make_rig(limits=Limits(outbox=OutboxLimits(max_messages=1)))
    (call,) = await waiting(rig, rig.alice)
    await rig.send(rig.alice)  # the first was written and gives way
    await held(rig, 1)
    assert not call.done()  # its client may have it yet
    socket = RecordingSocket("a-again")
    assert rig.alice.manager.resume(rig.alice.manager.context, socket, 0, rig.at()) is False
    rig.alice.manager.resume_writing(rig.at())
    assert (await call).receipt.state == DROPPED


async def test_the_answer_comes_with_the_end_of_the_context(rig: Rig) -> None:
    (call,) = await waiting(rig, rig.alice)
    rig.alice.manager.end("test", catalogued(CloseCode.IDLE), rig.at())
    assert (await call).receipt.state == WRITTEN


async def test_the_answer_comes_when_the_time_is_over(rig: Rig) -> None:
    answer = await rig.unary(rig.attempt(), wait_for_ack=Duration(nanos=1_000_000))
    assert answer.receipt.state == WRITTEN


async def test_no_time_is_no_wait(rig: Rig) -> None:
    assert (await rig.unary(rig.attempt(), wait_for_ack=Duration())).receipt.state == WRITTEN


async def test_a_repeat_of_what_was_acknowledged_does_not_wait(rig: Rig) -> None:
    await rig.send(rig.alice, message_id="m-1")
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 1, rig.at())
    receipt = (await rig.unary(rig.attempt(message_id="m-1"), wait_for_ack=MINUTE)).receipt
    assert (receipt.state, receipt.duplicate) == (ACKNOWLEDGED, True)


async def test_a_critical_event_waits_alike(rig: Rig) -> None:
    event = pb.EmitCriticalEventRequest(isolation_key=rig.alice.key, event_type="e", data=b"1", wait_for_ack=MINUTE)
    call = asyncio.ensure_future(rig.delivery.EmitCriticalEvent(event, metadata=rig.alice.metadata))
    await held(rig, 1)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 1, rig.at())
    assert (await call).receipt.state == ACKNOWLEDGED


async def test_a_caller_that_goes_leaves_nothing(rig: Rig) -> None:
    calls = await waiting(rig, rig.alice, 3)
    assert len(rig.edge._delivery._waits) == 3
    for call in calls:
        call.cancel()
    await held(rig, 0)
    assert rig.alice.manager.end_watchers == set()
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 3, rig.at())
    assert not rig.alice.manager._outcomes


async def test_a_stop_answers_with_the_state_as_it_is(rig: Rig) -> None:
    rig.alice.socket.paused = True
    (call,) = await waiting(rig, rig.alice)
    await rig.edge.close(5.0)
    assert (await call).receipt.state == QUEUED


@pytest.mark.parametrize(
    "span", [Duration(seconds=60, nanos=1), Duration(seconds=-1), Duration(nanos=-1), Duration(nanos=1_000_000_000)]
)
async def test_a_wait_is_0_to_60_seconds(rig: Rig, span: Duration) -> None:
    with pytest.raises(BadRequest):
        wait_s_of(span)
    bad = Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="wait_for_ack")
    assert summary(await refused(rig.unary(rig.attempt(), wait_for_ack=span))) == bad
    event = pb.EmitCriticalEventRequest(isolation_key=rig.alice.key, event_type="e", data=b"1", wait_for_ack=span)
    assert summary(await refused(rig.delivery.EmitCriticalEvent(event, metadata=rig.alice.metadata))) == bad
    assert rig.alice.manager.outbox.head == 0


def test_a_whole_minute_is_allowed() -> None:
    assert wait_s_of(MINUTE) == MAX_WAIT_S
