"""The unary methods of DeliveryService beyond what every way of sending shares."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.core.close_codes import Close
from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.identity import Scope
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import MESSAGE, TIMEOUT_S, Attempt, Metadata, Refused, Rig, incident_id, refused, summary
from tests.rpc.stores import BrokenStore, ToldStore

SCOPE_MISSING = Refused("PERMISSION_DENIED", "SCOPE_MISSING")


def bad(field: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=field)


async def test_a_receipt_says_what_happened(rig: Rig) -> None:
    receipt = await rig.send(rig.alice, b'{"a": 1}', message_id="m1")
    assert (receipt.message_id, receipt.sequence, receipt.connections, receipt.duplicate) == ("m1", 1, 1, False)
    assert receipt.state == types_pb2.DELIVERY_STATE_WRITTEN
    assert receipt.durability == types_pb2.DURABILITY_MEMORY
    assert receipt.accepted_time.ToNanoseconds() == int(rig.clock.time() * 1e9)
    assert rig.alice.socket.frames == [b'message 1 m1 {"a": 1}']
    rig.alice.socket.paused = True
    assert (await rig.send(rig.alice)).state == types_pb2.DELIVERY_STATE_QUEUED
    assert rig.bystander.socket.frames == []


# A store that answers later


async def test_an_answer_waits_for_the_store(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = asyncio.ensure_future(rig.unary(rig.attempt()))
    await store.asked(1)
    assert rig.alice.socket.frames == []
    assert not call.done()
    store.confirm()
    receipt = (await call).receipt
    assert (receipt.sequence, receipt.durability) == (1, types_pb2.DURABILITY_DISK)
    assert len(rig.alice.socket.frames) == 1


FAILURES = {
    "foreign": (None, Refused("UNAVAILABLE", "STORAGE_UNAVAILABLE", retry_s=1.0)),
    "unknown": (Unavailable(ErrorReason.OUTCOME_UNKNOWN), Refused("UNAVAILABLE", "OUTCOME_UNKNOWN", retry_s=1.0)),
    "cluster": (
        Unavailable(ErrorReason.CLUSTER_UNAVAILABLE, retry_after_s=2.0),
        Refused("UNAVAILABLE", "CLUSTER_UNAVAILABLE", retry_s=2.0),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_a_store_that_fails(make_rig: MakeRig, case: str) -> None:
    error, expected = FAILURES[case]
    store = ToldStore()
    rig = await make_rig(store=store)
    call = asyncio.ensure_future(refused(rig.unary(rig.attempt())))
    await store.asked(1)
    store.fail(error)
    assert summary(await call) == expected
    assert rig.alice.socket.frames == []
    assert rig.alice.manager.outbox.head == 0


async def test_a_batch_with_a_store_that_fails_between(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = asyncio.ensure_future(rig.batch(rig.attempt(), rig.attempt(rig.bystander), rig.attempt()))
    await store.asked(3)
    store.confirm()
    store.fail()
    store.confirm()
    first, second, third = await call
    assert (first.receipt.sequence, third.receipt.sequence) == (1, 2)
    assert summary(second.error) == Refused("UNAVAILABLE", "STORAGE_UNAVAILABLE", retry_s=1.0)


async def test_a_context_that_ends_while_the_store_is_asked(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = asyncio.ensure_future(refused(rig.unary(rig.attempt())))
    await store.asked(1)
    rig.alice.manager.end("test", None, rig.at())
    assert summary(await call) == Refused("NOT_FOUND", "MANAGER_GONE")


async def test_an_append_is_carried_through_though_its_caller_has_gone(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = rig.unary(rig.attempt(message_id="m1"))
    waiting = asyncio.ensure_future(call.code())
    await store.asked(1)
    call.cancel()
    assert await waiting is grpc.StatusCode.CANCELLED
    store.confirm()
    assert rig.alice.socket.frames == [b"message 1 m1 {}"]
    again = await rig.send(rig.alice, message_id="m1")
    assert (again.sequence, again.duplicate) == (1, True)


# A bug


async def test_a_bug_says_nothing_but_an_incident_id(make_rig: MakeRig) -> None:
    store = BrokenStore()
    rig = await make_rig(store=store)
    store.spare(rig.bystander.key)
    with capture_logs() as logs:
        async with rig.seen():
            first = incident_id(await refused(rig.unary(rig.attempt())))
            second = incident_id(await refused(rig.unary(rig.attempt())))
    assert [log["incident_id"] for log in logs] == [first, second]
    assert first != second
    assert rig.alice.key not in str(logs)


async def test_a_bug_costs_its_item_of_a_batch_alone(make_rig: MakeRig) -> None:
    store = BrokenStore()
    rig = await make_rig(store=store)
    store.spare(rig.carol.key)
    good = rig.attempt(rig.carol, message_id="good")
    first, second, third = await rig.batch(good, rig.attempt(), good)
    assert (first.receipt.sequence, third.receipt.duplicate) == (1, True)
    assert incident_id(second.error)


# SendBatch


async def test_a_batch_of_a_thousand(rig: Rig) -> None:
    results = await rig.batch(*[rig.attempt()] * 1_000)
    assert [result.receipt.sequence for result in results] == list(range(1, 1_001))


async def test_a_batch_of_a_thousand_and_one(rig: Rig) -> None:
    request = pb.SendBatchRequest(items=[pb.SendBatchItem(message=MESSAGE)] * 1_001)
    async with rig.seen():
        assert summary(await refused(rig.delivery.SendBatch(request))) == bad("items")


async def test_an_empty_batch(rig: Rig) -> None:
    assert await rig.batch() == []


# EmitCriticalEvent


def event(rig: Rig, **members: object) -> pb.EmitCriticalEventRequest:
    values = {"isolation_key": rig.alice.key, "event_type": "alarm", "data": b"{}"} | members
    return pb.EmitCriticalEventRequest(**values)  # type: ignore[arg-type]


async def test_a_critical_event(rig: Rig) -> None:
    call = rig.delivery.EmitCriticalEvent(event(rig, message_id="m1"), metadata=rig.alice.metadata)
    assert (await call).receipt.sequence == 1
    assert rig.alice.manager.outbox.entries[1].critical
    again = await rig.send(rig.alice, message_id="m1", event_type="alarm", critical=True)
    assert again.duplicate


EVENTS: dict[str, tuple[dict[str, object], str]] = {
    "no event_type": ({"event_type": ""}, "event_type"),
    "event_type *": ({"event_type": "*"}, "event_type"),
    "no data": ({"data": b""}, "data"),
    "not JSON": ({"data": b"x"}, "data"),
    "message_id": ({"message_id": "a b"}, "message_id"),
    "no key": ({"isolation_key": ""}, "isolation_key"),
}


@pytest.mark.parametrize("case", EVENTS)
async def test_a_critical_event_that_breaks_a_rule(rig: Rig, case: str) -> None:
    members, field = EVENTS[case]
    async with rig.seen():
        call = rig.delivery.EmitCriticalEvent(event(rig, **members), metadata=rig.alice.metadata)
        assert summary(await refused(call)) == bad(field)


async def test_a_critical_event_needs_its_scope(rig: Rig) -> None:
    metadata = (("x-context-token", rig.mint(rig.alice.manager, Scope.SEND)),)
    async with rig.seen(AuditEvent.SCOPE_DENIED, unauthorized_access_attempts=1):
        call = rig.delivery.EmitCriticalEvent(event(rig), metadata=metadata)
        assert summary(await refused(call)) == SCOPE_MISSING


async def test_a_critical_event_while_draining(rig: Rig) -> None:
    away = rig.connect("erin", attached=False)
    rig.factory.draining = True
    call = rig.delivery.EmitCriticalEvent(event(rig, isolation_key=away.key), metadata=away.metadata)
    assert summary(await refused(call)) == Refused("UNAVAILABLE", "DRAINING", retry_s=5.0)


# Broadcast


def broadcast(rig: Rig, scope: int, metadata: Metadata | None = None, **members: Any) -> Any:
    values: dict[str, Any] = {"payload": b'"all"'} | members
    request = pb.BroadcastRequest(scope=cast(Any, scope), message=types_pb2.Message(**values))
    return rig.delivery.Broadcast(request, metadata=metadata or rig.alice.metadata, timeout=TIMEOUT_S)


async def test_a_broadcast_reaches_its_scope_and_no_further(rig: Rig) -> None:
    second, away = rig.connect("alice"), rig.connect("alice", attached=False)
    strangers = [rig.connect("alice", "elsewhere"), rig.connect("bob", "elsewhere")]
    async with rig.seen(AuditEvent.BROADCAST) as records:
        answer = await broadcast(rig, pb.BROADCAST_SCOPE_USER)
        assert (answer.managers, answer.connections, answer.refused) == (3, 2, 0)
    assert (records[0]["user_id"], records[0]["scope"], records[0]["managers"]) == ("alice", "broadcast:user", 3)
    answer = await broadcast(rig, pb.BROADCAST_SCOPE_TENANT, message_id="m1")
    assert (answer.managers, answer.connections, answer.refused) == (5, 4, 0)
    assert [len(client.socket.frames) for client in (rig.alice, second, rig.carol, rig.bystander)] == [2, 2, 1, 1]
    assert away.manager.outbox.head == 2
    assert [stranger.manager.outbox.head for stranger in strangers] == [0, 0]
    again = await broadcast(rig, pb.BROADCAST_SCOPE_TENANT, message_id="m1")
    assert (again.managers, again.connections) == (5, 0)
    assert len(rig.bystander.socket.frames) == 1


async def test_a_broadcast_past_many_managers(rig: Rig) -> None:
    everyone = [rig.connect(f"user-{number}", "crowd") for number in range(600)]
    answer = await broadcast(rig, pb.BROADCAST_SCOPE_TENANT, everyone[0].metadata)
    assert (answer.managers, answer.connections) == (600, 600)


async def test_a_broadcast_counts_who_refuses(make_rig: MakeRig) -> None:
    rig = await make_rig(limits=Limits(outbox=OutboxLimits(critical_reserve=1)))
    await rig.send(rig.carol, critical=True)
    answer = await broadcast(rig, pb.BROADCAST_SCOPE_TENANT, critical=True)
    assert (answer.managers, answer.refused) == (2, 1)


@pytest.mark.parametrize("scope", [0, 3, -1])
async def test_a_broadcast_to_no_scope(rig: Rig, scope: int) -> None:
    async with rig.seen():
        assert summary(await refused(broadcast(rig, scope))) == bad("scope")


async def test_a_broadcast_that_is_not_valid_reaches_nobody(rig: Rig) -> None:
    async with rig.seen():
        assert summary(await refused(broadcast(rig, 2, payload=b"x"))) == bad("message.payload")
    status = await refused(broadcast(rig, 2, min_durability=2))
    assert summary(status) == Refused("FAILED_PRECONDITION", "DURABILITY_UNAVAILABLE")
    assert rig.alice.manager.outbox.head == rig.carol.manager.outbox.head == 0


@pytest.mark.parametrize(
    ("scope", "held", "critical"),
    [
        (pb.BROADCAST_SCOPE_USER, [Scope.SEND, Scope.BROADCAST_TENANT], False),
        (pb.BROADCAST_SCOPE_TENANT, [Scope.SEND, Scope.BROADCAST_USER], False),
        (pb.BROADCAST_SCOPE_USER, [Scope.BROADCAST_USER], True),
    ],
)
async def test_a_broadcast_needs_its_scope(rig: Rig, scope: int, held: list[Scope], critical: bool) -> None:
    metadata = (("x-context-token", rig.mint(rig.alice.manager, *held)),)
    async with rig.seen(AuditEvent.SCOPE_DENIED, unauthorized_access_attempts=1):
        assert summary(await refused(broadcast(rig, scope, metadata, critical=critical))) == SCOPE_MISSING


async def test_a_broadcast_of_a_context_that_has_ended(rig: Rig) -> None:
    rig.alice.manager.end("test", None, rig.at())
    async with rig.seen(AuditEvent.TOKEN_DENIED, context_validation_failures=1):
        status = await refused(broadcast(rig, pb.BROADCAST_SCOPE_USER))
        assert summary(status) == Refused("NOT_FOUND", "MANAGER_GONE")


# CloseManager and GetManagerStats

CLOSES = {
    "default": ({}, Close(4505, "closed_by_service")),
    "4505": ({"code": 4505, "reason": "not told"}, Close(4505, "closed_by_service")),
    "4900": ({"code": 4900, "reason": "done"}, Close(4900, "done")),
    "4999": ({"code": 4999}, Close(4999, "closed_by_service")),
    "a long reason": ({"code": 4900, "reason": "é" * 100}, Close(4900, "é" * 61)),
}


@pytest.mark.parametrize("case", CLOSES)
async def test_closing_a_context(rig: Rig, case: str) -> None:
    members, close = CLOSES[case]
    request = pb.CloseManagerRequest(isolation_key=rig.alice.key, **members)  # type: ignore[arg-type]
    async with rig.seen(AuditEvent.SOCKET_CLOSED, AuditEvent.CONTEXT_CLOSED) as records:
        answer = await rig.delivery.CloseManager(request, metadata=rig.alice.metadata)
        assert answer.connections == 1
    assert rig.alice.socket.closed_with == close
    assert (records[1]["user_id"], records[1]["reason"]) == ("alice", "closed_by_service")
    call = rig.delivery.CloseManager(request, metadata=rig.alice.metadata)
    assert summary(await refused(call)) == Refused("NOT_FOUND", "MANAGER_GONE")


@pytest.mark.parametrize("code", [1, 1000, 1011, 4504, 4506, 4899, 5000, 2**32 - 1])
async def test_closing_with_a_code_that_is_not_a_services(rig: Rig, code: int) -> None:
    request = pb.CloseManagerRequest(isolation_key=rig.alice.key, code=code)
    async with rig.seen():
        call = rig.delivery.CloseManager(request, metadata=rig.alice.metadata)
        assert summary(await refused(call)) == bad("code")
    assert not rig.alice.manager.ended


async def test_closing_and_reading_need_their_scope_and_key(rig: Rig) -> None:
    others = tuple(scope for scope in Scope if scope not in (Scope.CLOSE, Scope.STATS))
    limited = (("x-context-token", rig.mint(rig.alice.manager, *others)),)
    methods: list[tuple[Any, Any]] = [
        (rig.delivery.CloseManager, pb.CloseManagerRequest),
        (rig.delivery.GetManagerStats, pb.GetManagerStatsRequest),
    ]
    for method, request in methods:
        async with rig.seen(AuditEvent.SCOPE_DENIED, unauthorized_access_attempts=1):
            own = request(isolation_key=rig.alice.key)
            assert summary(await refused(method(own, metadata=limited))) == SCOPE_MISSING
        async with rig.seen(AuditEvent.ISOLATION_VIOLATION, isolation_violations_detected=1):
            foreign = request(isolation_key=rig.bystander.key)
            status = await refused(method(foreign, metadata=rig.alice.metadata))
            assert summary(status) == Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
        async with rig.seen():
            assert summary(await refused(method(request(), metadata=rig.alice.metadata))) == bad("isolation_key")


async def test_a_managers_stats_are_true(rig: Rig) -> None:
    await rig.send(rig.alice, message_id="m1")
    await rig.send(rig.alice, message_id="m1")
    await refused(rig.unary(rig.attempt(payload=b"x")))
    rig.clock.advance(5)
    request = pb.GetManagerStatsRequest(isolation_key=rig.alice.key)
    stats = await rig.delivery.GetManagerStats(request, metadata=rig.alice.metadata)
    assert (stats.messages_sent_total, stats.messages_failed_total, stats.connections_managed) == (1, 1, 1)
    assert (stats.outbox_messages, stats.outbox_bytes, stats.cleanup_scheduled) == (1, 258, False)
    assert (stats.manager_age_seconds, stats.last_activity_time.seconds) == (5.0, int(rig.clock.time()) - 5)


async def test_attempts_do_not_show_their_token() -> None:
    assert "secret" not in repr(Attempt("key", "secret", MESSAGE))
