"""ContextService: what a token is, its refresh, its revocation, its exchange; no grant without its record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.api.v1 import context_service_pb2 as pb
from sidecar.core.identity import Scope
from sidecar.core.ports import AuditEvent
from sidecar.rpc.context import MAX_REVOKED_FAMILIES
from sidecar.security.service_auth import Permission
from tests.rpc.conftest import MakeRig
from tests.rpc.identities import SCOPED, identity
from tests.rpc.rig import MESSAGE, OPERATOR, TIMEOUT_S, Attempt, Refused, Rig, refused, service_metadata, summary

VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")
REVOKED = Refused("UNAUTHENTICATED", "TOKEN_REVOKED")
GONE = Refused("NOT_FOUND", "MANAGER_GONE")
MISSING = Refused("UNAUTHENTICATED", "TOKEN_MISSING")
AUDIT_UNAVAILABLE = Refused("UNAVAILABLE", "AUDIT_UNAVAILABLE", retry_s=1.0)
FAILED_CALL = {"unauthorized_access_attempts": 1, "context_validation_failures": 1}


def get(rig: Rig, token: str) -> Any:
    metadata = (("x-context-token", token),)
    return rig.context.GetContext(pb.GetContextRequest(), metadata=metadata, timeout=TIMEOUT_S)


def refresh(rig: Rig, token: str) -> Any:
    metadata = (("x-context-token", token),)
    return rig.context.RefreshContextToken(pb.RefreshContextTokenRequest(), metadata=metadata, timeout=TIMEOUT_S)


def revoke(rig: Rig, token: str) -> Any:
    metadata = (("x-context-token", token),)
    return rig.context.RevokeContextToken(pb.RevokeContextTokenRequest(), metadata=metadata, timeout=TIMEOUT_S)


def exchange(rig: Rig, user_token: str, connection_id: str, *scopes: str, service: str | None = OPERATOR) -> Any:
    request = pb.ExchangeContextTokenRequest(user_token=user_token, connection_id=connection_id, scopes=scopes)
    metadata = () if service is None else service_metadata(service)
    return rig.context.ExchangeContextToken(request, metadata=metadata, timeout=TIMEOUT_S)


def alices(rig: Rig) -> tuple[str, str]:
    return rig.user_token("alice"), rig.alice.manager.context.connection_id


# GetContext


async def test_what_a_token_opens(rig: Rig) -> None:
    context = rig.alice.manager.context
    token = rig.mint(rig.alice.manager, Scope.STATS, Scope.BROADCAST_USER, Scope.SEND)
    answer = await get(rig, token)
    assert answer.isolation_key == rig.alice.key
    assert list(answer.scopes) == ["broadcast:user", "send", "stats"]
    assert answer.expire_time.seconds == int(rig.clock.time()) + 900
    told = answer.context
    assert (told.tenant_id, told.user_id, told.request_id) == ("default", "alice", "request-1")
    assert (told.session_id, told.connection_id) == (context.session_id, context.connection_id)
    assert told.created_time.ToNanoseconds() == int(context.created_at * 1e9)
    assert (list(told.permissions), dict(told.metadata)) == (["chat"], {"agent": "test"})


@pytest.mark.parametrize("method", [get, refresh])
async def test_nothing_is_said_of_a_context_that_has_ended(rig: Rig, method: Any) -> None:
    rig.alice.manager.end("test", None, rig.at())
    async with rig.seen(AuditEvent.TOKEN_DENIED, context_validation_failures=1):
        assert summary(await refused(method(rig, rig.alice.token))) == GONE


@pytest.mark.parametrize("method", [get, refresh, revoke])
async def test_each_method_wants_a_good_token(rig: Rig, method: Any) -> None:
    async with rig.seen(AuditEvent.TOKEN_DENIED, **FAILED_CALL):
        assert summary(await refused(method(rig, "garbage"))) == Refused("UNAUTHENTICATED", "TOKEN_INVALID")


# RefreshContextToken


async def test_a_refresh_keeps_scopes_and_family(rig: Rig) -> None:
    token = rig.mint(rig.alice.manager, Scope.STATS)
    family = rig.tokens.verify(token).family
    rig.clock.advance(100)
    async with rig.seen(AuditEvent.TOKEN_REFRESHED) as records:
        answer = await refresh(rig, token)
    grant = rig.tokens.verify(answer.context_token)
    assert (grant.scopes, grant.family) == (frozenset({Scope.STATS}), family)
    assert answer.expire_time.seconds == grant.expires_at == int(rig.clock.time()) + 900
    assert (records[0]["token_id"], records[0]["user_id"]) == (grant.token_id, "alice")
    assert answer.context_token not in str(records)
    assert (await get(rig, token)).isolation_key == rig.alice.key
    status = await refused(rig.unary(Attempt(rig.alice.key, answer.context_token, MESSAGE)))
    assert summary(status).reason == "SCOPE_MISSING"


async def test_a_refreshed_token_outlives_its_former(rig: Rig) -> None:
    rig.clock.advance(600)
    fresh = (await refresh(rig, rig.alice.token)).context_token
    rig.clock.advance(600)
    assert summary(await refused(get(rig, rig.alice.token))).reason == "TOKEN_EXPIRED"
    assert summary(await refused(refresh(rig, rig.alice.token))).reason == "TOKEN_EXPIRED"
    assert (await get(rig, fresh)).isolation_key == rig.alice.key


# RevokeContextToken


@pytest.mark.parametrize("presented", ["former", "middle", "latest"])
async def test_a_revocation_ends_the_whole_family(rig: Rig, presented: str) -> None:
    tokens = {"former": rig.alice.token}
    tokens["middle"] = (await refresh(rig, tokens["former"])).context_token
    tokens["latest"] = (await refresh(rig, tokens["middle"])).context_token
    another = rig.mint(rig.alice.manager)
    stream = rig.deliver()
    await stream.opened(1, Attempt(rig.alice.key, tokens["latest"], MESSAGE))
    async with rig.seen(AuditEvent.TOKEN_REVOKED) as records:
        await revoke(rig, tokens[presented])
    assert records[0]["connection_id"] == rig.alice.manager.context.connection_id
    for token in tokens.values():
        for method in (get, refresh, revoke):
            assert summary(await refused(method(rig, token))) == REVOKED
        assert summary(await refused(rig.unary(Attempt(rig.alice.key, token, MESSAGE)))) == REVOKED
    rig.tick()
    answer = await stream.read()
    assert summary(answer.lane_error.error) == REVOKED
    assert (await get(rig, another)).isolation_key == rig.alice.key
    await stream.finish()


async def test_a_token_can_be_revoked_though_its_context_has_ended(rig: Rig) -> None:
    rig.alice.manager.end("test", None, rig.at())
    await revoke(rig, rig.alice.token)
    assert summary(await refused(get(rig, rig.alice.token))) == Refused("NOT_FOUND", "MANAGER_GONE")
    assert len(rig.tokens.revocations) == 0  # what opens nothing need not be remembered


async def test_what_was_revoked_is_forgotten_with_its_context(rig: Rig) -> None:
    await revoke(rig, rig.alice.token)
    assert summary(await refused(get(rig, rig.alice.token))) == REVOKED
    rig.alice.manager.end("test", None, rig.at())
    assert len(rig.tokens.revocations) == 0
    assert (await refused(get(rig, rig.alice.token))) is not None


async def test_one_context_cannot_fill_the_table_of_the_revoked(rig: Rig) -> None:
    for _ in range(MAX_REVOKED_FAMILIES):
        await revoke(rig, rig.mint(rig.alice.manager, Scope.SEND))
    limited = Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=60.0)
    assert summary(await refused(revoke(rig, rig.alice.token))) == limited
    assert (await get(rig, rig.alice.token)).isolation_key == rig.alice.key
    await revoke(rig, rig.bystander.token)
    assert summary(await refused(get(rig, rig.bystander.token))) == REVOKED


# ExchangeContextToken


async def test_an_exchange(rig: Rig) -> None:
    async with rig.seen(AuditEvent.TOKEN_EXCHANGED) as records:
        answer = await exchange(rig, *alices(rig), "close", "broadcast:user")
    grant = rig.tokens.verify(answer.context_token)
    assert grant.scopes == {Scope.CLOSE, Scope.BROADCAST_USER}
    assert (answer.isolation_key, answer.context.user_id) == (rig.alice.key, "alice")
    assert answer.expire_time.seconds == grant.expires_at
    assert (records[0]["service"], records[0]["token_id"]) == ("default", grant.token_id)
    assert answer.context_token not in str(records)


async def test_an_exchange_without_scopes_gives_the_services_share_of_the_default(make_rig: MakeRig) -> None:
    scopes = frozenset({Scope.SEND, Scope.CLOSE})
    rig = await make_rig(services=[(SCOPED, identity(Permission.EXCHANGE, scopes=scopes))])
    answer = await exchange(rig, *alices(rig), service=SCOPED)
    assert rig.tokens.verify(answer.context_token).scopes == {Scope.SEND}
    async with rig.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
        assert summary(await refused(exchange(rig, *alices(rig), "send", "stats", service=SCOPED))) == DENIED


async def test_unknown_foreign_and_ended_contexts_are_answered_alike(rig: Rig) -> None:
    ended, stranger = rig.connect("alice"), rig.connect("alice", "elsewhere")
    other_issuer = rig.connect("alice", issuer="https://other.test")
    ended.manager.end("test", None, rig.at())
    ids = [client.manager.context.connection_id for client in (rig.bystander, ended, stranger, other_issuer)]
    statuses = set()
    for connection_id in (*ids, "c-unknown", "*", "../", "\0"):
        async with rig.seen(AuditEvent.ISOLATION_VIOLATION, isolation_violations_detected=1):
            status = await refused(exchange(rig, rig.user_token("alice"), connection_id))
            assert summary(status) == VIOLATION
            statuses.add(status.SerializeToString())
    assert len(statuses) == 1


async def test_a_service_learns_nothing_of_tenants_that_it_may_not_have(make_rig: MakeRig) -> None:
    rig = await make_rig(services=[(SCOPED, identity(Permission.EXCHANGE, tenants=["elsewhere"]))])
    stranger = rig.connect("alice", "elsewhere")
    statuses = set()
    for connection_id in (rig.alice.manager.context.connection_id, "c-unknown"):
        async with rig.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
            status = await refused(exchange(rig, rig.user_token("alice"), connection_id, service=SCOPED))
            assert summary(status) == DENIED
            statuses.add(status.SerializeToString())
    assert len(statuses) == 1
    token = rig.user_token("alice", "elsewhere")
    answer = await exchange(rig, token, stranger.manager.context.connection_id, service=SCOPED)
    assert answer.isolation_key == stranger.key


async def test_an_exchange_needs_a_service_that_may(make_rig: MakeRig) -> None:
    rig = await make_rig(services=[(SCOPED, identity(Permission.DELIVER, Permission.ADMIN))])
    async with rig.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
        assert summary(await refused(exchange(rig, *alices(rig), service=SCOPED))) == DENIED
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
        assert summary(await refused(exchange(rig, *alices(rig), service=None))) == MISSING
    async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
        wrong = exchange(rig, *alices(rig), service="no-service-has-this-token")
        assert summary(await refused(wrong)) == Refused("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_an_exchange_needs_a_good_user_token(rig: Rig) -> None:
    connection_id = rig.alice.manager.context.connection_id
    expired = rig.user_token("alice", ttl_s=60)
    rig.clock.advance(91)
    for token, reason in (
        ("", "TOKEN_MISSING"),
        ("garbage", "TOKEN_INVALID"),
        (rig.alice.token, "TOKEN_INVALID"),
        ("a" * 4_097, "TOKEN_INVALID"),
        (expired, "TOKEN_EXPIRED"),
    ):
        async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
            assert summary(await refused(exchange(rig, token, connection_id))) == Refused("UNAUTHENTICATED", reason)


async def test_an_exchange_that_breaks_a_rule(rig: Rig) -> None:
    token, connection_id = alices(rig)
    async with rig.seen():
        for call, field in (
            (exchange(rig, token, ""), "connection_id"),
            (exchange(rig, token, connection_id, "send", "root"), "scopes"),
            (exchange(rig, token, connection_id, ""), "scopes"),
        ):
            assert summary(await refused(call)) == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=field)


# The audit trail


async def test_no_grant_without_its_record_and_taking_away_goes_on(rig: Rig) -> None:
    rig.disk.full = True
    assert summary(await refused(refresh(rig, rig.alice.token))) == AUDIT_UNAVAILABLE
    assert summary(await refused(exchange(rig, *alices(rig)))) == AUDIT_UNAVAILABLE
    assert (await rig.send(rig.alice)).sequence == 1
    assert (await get(rig, rig.alice.token)).isolation_key == rig.alice.key
    await asyncio.wait_for(revoke(rig, rig.alice.token), 1)
    assert summary(await refused(get(rig, rig.alice.token))) == REVOKED
    rig.disk.full = False
    rig.tick(1)
    events = [record["event"] for record in await rig.records()]
    assert events == ["audit_interrupted", "token_revoked", "token_denied"]
    assert (await exchange(rig, *alices(rig))).isolation_key == rig.alice.key
