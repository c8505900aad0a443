"""What the outermost code makes of calls that are not as they should be, and of too many."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sidecar.api.v1 import admin_service_pb2, context_service_pb2
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.ports import AuditEvent
from tests.rpc.conftest import MakeRig
from tests.rpc.identities import NOTHING, identity
from tests.rpc.rig import (
    MESSAGE,
    OPERATOR,
    TIMEOUT_S,
    Refused,
    Rig,
    ended_with,
    plain_refusal,
    refused,
    service_metadata,
    summary,
)
from tests.rpc.stores import ToldStore

SEND = "/sidecar.api.v1.DeliveryService/SendToUser"
UNSUPPORTED = Refused("UNIMPLEMENTED", "UNSUPPORTED")
MISSING = Refused("UNAUTHENTICATED", "TOKEN_MISSING")
DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")


def raw(rig: Rig, method: str, data: bytes, **members: Any) -> Any:
    channel: Any = rig.channel
    return channel.unary_unary(method)(data, timeout=TIMEOUT_S, **members)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05a", b"\xff" * 60_000])
@pytest.mark.parametrize(
    "method",
    [
        SEND,
        "/sidecar.api.v1.DeliveryService/SendBatch",
        "/sidecar.api.v1.ContextService/ExchangeContextToken",
        "/sidecar.api.v1.AdminService/ListManagers",
        "/grpc.health.v1.Health/Check",
    ],
)
async def test_a_request_that_cannot_be_decoded(rig: Rig, method: str, data: bytes) -> None:
    async with rig.seen():
        status = await refused(raw(rig, method, data))
        assert summary(status) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="request")


async def test_a_string_that_is_not_utf8(rig: Rig) -> None:
    async with rig.seen():
        status = await refused(raw(rig, SEND, b"\x0a\x01\xff"))
        assert summary(status) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="request")


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Watch", "/sidecar.api.v1.AdminService/TailAuditLog"])
async def test_a_stream_whose_request_cannot_be_decoded(rig: Rig, method: str) -> None:
    channel: Any = rig.channel
    call = channel.unary_stream(method)(b"\xff", timeout=TIMEOUT_S)
    async with rig.seen():
        assert summary(await ended_with(call)) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="request")


@pytest.mark.parametrize("method", ["/sidecar.api.v1.DeliveryService/Nothing", "/no.Such/Thing", "/nothing"])
async def test_an_unknown_method_is_grpcs_own_to_refuse(rig: Rig, method: str) -> None:
    async with rig.seen():
        assert (await plain_refusal(raw(rig, method, b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_over_the_size_is_grpcs_own_to_refuse(make_rig: MakeRig) -> None:
    rig = await make_rig(max_receive_bytes=10_000)
    async with rig.seen():
        error = await plain_refusal(raw(rig, SEND, b"a" * 10_001))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = await refused(raw(rig, SEND, b"\xff" * 10_000))
        assert summary(status).reason == "BAD_REQUEST"


async def test_a_compressed_bomb_is_refused_by_its_true_size(make_rig: MakeRig) -> None:
    rig = await make_rig(max_receive_bytes=100_000)
    async with rig.seen():
        error = await plain_refusal(raw(rig, SEND, b"\0" * 20_000_000, compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_16_kilobytes_of_metadata_are_refused(rig: Rig) -> None:
    metadata = (("x-filler", "a" * 16 * 1024), *rig.alice.metadata)
    request = pb.SendToUserRequest(isolation_key=rig.alice.key, message=MESSAGE)
    async with rig.seen():
        error = await plain_refusal(rig.delivery.SendToUser(request, metadata=metadata, timeout=TIMEOUT_S))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.alice.manager.outbox.head == 0


@pytest.mark.parametrize("second", ["another", None])
async def test_a_context_token_sent_twice(rig: Rig, second: str | None) -> None:
    metadata = (*rig.alice.metadata, ("x-context-token", second or rig.alice.token))
    request = pb.SendToUserRequest(isolation_key=rig.alice.key, message=MESSAGE)
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        call = rig.delivery.SendToUser(request, metadata=metadata, timeout=TIMEOUT_S)
        assert summary(await refused(call)) == Refused("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_a_service_token_sent_twice(rig: Rig) -> None:
    metadata = service_metadata() * 2
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
        call = rig.admin.GetFactoryStats(admin_service_pb2.GetFactoryStatsRequest(), metadata=metadata)
        assert summary(await refused(call)) == Refused("UNAUTHENTICATED", "TOKEN_INVALID")


@pytest.mark.parametrize("name", ["x-context-token-bin", "x-other-bin"])
async def test_binary_metadata_is_no_token(rig: Rig, name: str) -> None:
    request = pb.SendToUserRequest(isolation_key=rig.alice.key, message=MESSAGE)
    metadata = ((name, b"\xff\x00"),)
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        call = rig.delivery.SendToUser(request, metadata=metadata, timeout=TIMEOUT_S)
        assert summary(await refused(call)) == MISSING
    good = rig.delivery.SendToUser(request, metadata=(*rig.alice.metadata, *metadata), timeout=TIMEOUT_S)
    assert (await good).receipt.sequence == 1


async def test_each_kind_of_token_opens_its_own_kind_of_method_only(rig: Rig) -> None:
    request = pb.SendToUserRequest(isolation_key=rig.alice.key, message=MESSAGE)
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1, context_validation_failures=1):
        call = rig.delivery.SendToUser(request, metadata=service_metadata(), timeout=TIMEOUT_S)
        assert summary(await refused(call)) == MISSING
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
        stats = admin_service_pb2.GetFactoryStatsRequest()
        assert summary(await refused(rig.admin.GetFactoryStats(stats, metadata=rig.alice.metadata))) == MISSING


async def test_a_flood_of_refusals_is_counted(rig: Rig) -> None:
    request = context_service_pb2.GetContextRequest()
    denied = [AuditEvent.TOKEN_DENIED] * 10
    counted = {"unauthorized_access_attempts": 25, "context_validation_failures": 25}
    async with rig.seen(*denied, AuditEvent.REFUSALS_COUNTED, **counted) as records:
        for _ in range(25):
            assert summary(await refused(rig.context.GetContext(request))) == MISSING
        rig.tick(1)
    assert (records[-1]["count"], records[-1]["address"]) == (15, "127.0.0.1")


# What waits for later versions

LATER: dict[str, Any] = {
    "RevokeUser": lambda rig, **m: rig.admin.RevokeUser(admin_service_pb2.RevokeUserRequest(user_id="bob"), **m),
    "TailAuditLog": lambda rig, **m: rig.admin.TailAuditLog(admin_service_pb2.TailAuditLogRequest(), **m),
}


async def outcome(rig: Rig, method: str, token: str | None) -> Refused:
    call = LATER[method](rig, metadata=() if token is None else service_metadata(token), timeout=TIMEOUT_S)
    return summary(await (ended_with(call) if hasattr(call, "read") else refused(call)))


@pytest.mark.parametrize("method", LATER)
async def test_what_waits_is_unsupported_to_those_who_may(make_rig: MakeRig, method: str) -> None:
    rig = await make_rig(services=[(NOTHING, identity())])
    async with rig.seen():
        assert await outcome(rig, method, OPERATOR) == UNSUPPORTED
    async with rig.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1) as records:
        assert await outcome(rig, method, NOTHING) == DENIED
    assert records[0]["method"] == method
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
        assert await outcome(rig, method, None) == MISSING


# Too many


async def test_calls_are_bounded(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(max_concurrent_calls=2, store=store)
    waiting = [asyncio.ensure_future(rig.unary(rig.attempt()).code()) for _ in range(2)]
    await store.asked(2)
    assert rig.edge.active_calls == 2
    limited = Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=1.0)
    assert summary(await refused(rig.unary(rig.attempt()))) == limited
    assert summary(await ended_with(rig.delivery.Deliver())) == limited
    for _ in waiting:
        store.confirm()
    assert await asyncio.gather(*waiting) == [grpc.StatusCode.OK] * 2
    assert rig.edge.active_calls == 0


async def test_streams_leave_places_for_calls(make_rig: MakeRig) -> None:
    rig = await make_rig(max_concurrent_calls=4)
    first, second = rig.deliver(), rig.deliver()
    for stream in (first, second):
        await stream.opened(1, rig.attempt())
    limited = Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=1.0)
    assert summary(await ended_with(rig.delivery.Deliver())) == limited
    assert summary(await ended_with(rig.agent.Attach())) == limited
    assert (await rig.send(rig.alice)).sequence == 1
    await second.finish()
    third = rig.deliver()
    await third.opened(1, rig.attempt())
    await third.finish()
    await first.finish()


async def test_a_strangers_large_request_is_not_read(rig: Rig) -> None:
    status = await refused(raw(rig, SEND, b"\xff" * 70_000))
    assert summary(status) == Refused("UNAUTHENTICATED", "TOKEN_MISSING")


async def test_a_cancelled_call_does_not_count_on(make_rig: MakeRig) -> None:
    store = ToldStore()
    rig = await make_rig(store=store)
    call = rig.unary(rig.attempt())
    waiting = asyncio.ensure_future(call.code())
    await store.asked(1)
    call.cancel()
    await waiting
    await rig.calls_under_way(0)
