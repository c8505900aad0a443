"""Calls to a running sidecar that break a rule of their method, by callers who are none, or are no requests at all.

Each case: the exact refusal, the records that it adds, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from tests.rpc.rig import TIMEOUT_S, Refused, ended_with, plain_refusal, refused
from tests.support.stage import DELIVERER, LOCAL, OPERATOR, Caller, Stage, check_status, staged
from tests.support.ways import as_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNSUPPORTED = Refused("UNIMPLEMENTED", "UNSUPPORTED")
MISSING = Refused("UNAUTHENTICATED", "TOKEN_MISSING")
INVALID = Refused("UNAUTHENTICATED", "TOKEN_INVALID")
SERVICE_DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")
VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
GONE = Refused("NOT_FOUND", "MANAGER_GONE")


def bad(name: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("calls")) as stage:
        yield stage


# Each method's own rules


@dataclass(frozen=True)
class BadCall:
    """One call that breaks a rule of its method, by somebody who may make it."""

    id: str
    method: str
    request: Callable[[Stage], ProtoMessage]
    expected: Refused
    records: Mapping[str, int] = field(default_factory=dict)


def call(stage: Stage, caller: Caller, method: str, request: ProtoMessage, **members: Any) -> Any:
    """A call of that method with the token that it takes: Alice's with every scope, or the operator's."""
    service, _, name = method.partition(".")
    stub: Any = {"delivery": caller.delivery, "context": caller.context, "admin": caller.admin}[service]
    proof = caller.as_operator if by_service(method) else as_client(stage.tokens[stage.alice.isolation_key])["metadata"]
    return getattr(stub, name)(request, **({"metadata": proof, "timeout": TIMEOUT_S} | members))


def by_service(method: str) -> bool:
    return method.startswith("admin.") or method == "context.ExchangeContextToken"


def rule(id: str, method: str, request: ProtoMessage, expected: Refused, **records: int) -> BadCall:
    return BadCall(id, method, lambda stage: request, expected, records)


MESSAGE = types_pb2.Message(payload=b"{}")
BAD_WAITS = (
    ("61 s", Duration(seconds=61)),
    ("-1 s", Duration(seconds=-1)),
    ("two units", Duration(nanos=2_000_000_000)),
)
SEND, EMIT = "delivery.SendToUser", "delivery.EmitCriticalEvent"


def batch_of(count: int) -> Callable[[Stage], ProtoMessage]:
    def request(stage: Stage) -> ProtoMessage:
        good = stage.attempt(stage.carol)
        item = pb.SendBatchItem(isolation_key=good.key, context_token=good.token, message=good.message)
        return pb.SendBatchRequest(items=[item] * count)

    return request


def send(**members: Any) -> Callable[[Stage], ProtoMessage]:
    return lambda stage: pb.SendToUserRequest(isolation_key=stage.alice.isolation_key, message=MESSAGE, **members)


def emit(**members: Any) -> Callable[[Stage], ProtoMessage]:
    return lambda stage: pb.EmitCriticalEventRequest(isolation_key=stage.alice.isolation_key, data=b"{}", **members)


def close(code: int) -> Callable[[Stage], ProtoMessage]:
    return lambda stage: pb.CloseManagerRequest(isolation_key=stage.alice.isolation_key, code=code)


def exchange(user: str = "alice", token: str | None = None, **members: Any) -> Callable[[Stage], ProtoMessage]:
    def request(stage: Stage) -> ProtoMessage:
        fields = {"connection_id": stage.alice.welcome["connection_id"]} | members
        if callable(fields["connection_id"]):
            fields["connection_id"] = fields["connection_id"](stage)
        user_token = stage.sidecar.user_token(user) if token is None else token
        return context_pb.ExchangeContextTokenRequest(user_token=user_token, **fields)

    return request


DISCONNECT, ENFORCE, CLEANUP = "admin.DisconnectUser", "admin.EnforceResourceLimits", "admin.CleanupManager"
EXCHANGE, LIST, BROADCAST = "context.ExchangeContextToken", "admin.ListManagers", "delivery.Broadcast"
RULES = (
    *(BadCall(f"a wait of {name}", SEND, send(wait_for_ack=wait), bad("wait_for_ack")) for name, wait in BAD_WAITS),
    *(
        BadCall(f"a wait of {name}", EMIT, emit(event_type="e", wait_for_ack=wait), bad("wait_for_ack"))
        for name, wait in BAD_WAITS
    ),
    BadCall(
        "no message",
        "delivery.SendToUser",
        lambda s: pb.SendToUserRequest(isolation_key=s.alice.isolation_key),
        bad("message.payload"),
    ),
    BadCall("no event_type", "delivery.EmitCriticalEvent", emit(), bad("event_type")),
    BadCall("1,001 items", "delivery.SendBatch", batch_of(1_001), bad("items")),
    rule("no scope", BROADCAST, pb.BroadcastRequest(message=MESSAGE), bad("scope")),
    rule("scope 99", BROADCAST, pb.BroadcastRequest(scope=99, message=MESSAGE), bad("scope")),  # type: ignore[arg-type]
    rule("no message", BROADCAST, pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER), bad("message.payload")),
    *(
        BadCall(f"code {code}", "delivery.CloseManager", close(code), bad("code"))
        for code in (1, 1000, 1011, 4504, 4506, 4899, 5000, 2**32 - 1)
    ),
    BadCall("no connection_id", EXCHANGE, exchange(connection_id=""), bad("connection_id")),
    BadCall("an unknown scope", EXCHANGE, exchange(scopes=["send", "*"]), bad("scopes")),
    *(
        BadCall(f"connection_id {name}", EXCHANGE, exchange(connection_id=value), VIOLATION, {"isolation_violation": 1})
        for name, value in (
            ("of somebody else", lambda s: s.carol.welcome["connection_id"]),
            ("of another tenant", lambda s: s.stranger.welcome["connection_id"]),
            ("that has ended", lambda s: s.gone.welcome["connection_id"]),
            *((value, value) for value in ("*", ">", "../")),
            ("NUL", "\0"),
            ("of 10,000", "a" * 10_000),
        )
    ),
    BadCall("no user token", EXCHANGE, exchange(token=""), MISSING, {"token_denied": 1}),
    BadCall("garbage for a user token", EXCHANGE, exchange(token="garbage"), INVALID, {"token_denied": 1}),
    BadCall("a user token of 5,000", EXCHANGE, exchange(token="a" * 5_000), INVALID, {"token_denied": 1}),
    BadCall("a user token not ASCII", EXCHANGE, exchange(token="é"), INVALID, {"token_denied": 1}),
    rule("page_size -1", LIST, admin_pb.ListManagersRequest(page_size=-1), bad("page_size")),
    rule("page_token garbage", LIST, admin_pb.ListManagersRequest(page_token="*"), bad("page_token")),
    rule("page_token not ASCII", LIST, admin_pb.ListManagersRequest(page_token="gIA="), bad("page_token")),
    rule("tenant_id *", LIST, admin_pb.ListManagersRequest(tenant_id="*"), bad("tenant_id")),
    rule("user_id >", LIST, admin_pb.ListManagersRequest(user_id="a.>"), bad("user_id")),
    rule("no key", CLEANUP, admin_pb.CleanupManagerRequest(), bad("isolation_key")),
    *(
        rule(f"key {name}", CLEANUP, admin_pb.CleanupManagerRequest(isolation_key=key), GONE, admin_call=1)
        for name, key in (("unknown", "0" * 64), ("*", "*"), ("../", "../"), ("NUL", "\0"))
    ),
    *(
        rule(f"{name} user_id", method, kind(user_id=value), bad("user_id"))
        for method, kind in (
            (DISCONNECT, admin_pb.DisconnectUserRequest),
            (ENFORCE, admin_pb.EnforceResourceLimitsRequest),
        )
        for name, value in (("no", ""), ("*", "*"), ("../", "../"), ("NUL", "alice\0"), ("a long", "a" * 129))
    ),
    rule("tenant_id ../", DISCONNECT, admin_pb.DisconnectUserRequest(tenant_id="../", user_id="a"), bad("tenant_id")),
    rule("tenant_id >", ENFORCE, admin_pb.EnforceResourceLimitsRequest(tenant_id=">", user_id="a"), bad("tenant_id")),
    rule("not built", "admin.RevokeUser", admin_pb.RevokeUserRequest(user_id="alice"), UNSUPPORTED),
    rule("a window of 2 h", "admin.Drain", admin_pb.DrainRequest(window=Duration(seconds=7_200)), bad("window")),
)


@pytest.mark.parametrize("case", RULES, ids=lambda case: f"{case.method.partition('.')[2]} {case.id}")
async def test_a_call_that_breaks_its_methods_rules(stage: Stage, case: BadCall) -> None:
    async with stage.caller() as caller, stage.seen(**case.records) as records:
        status = await refused(call(stage, caller, case.method, case.request(stage)))
        assert check_status(status, OPERATOR, *stage.tokens.values(), *stage.tokens) == case.expected
    for record in records:
        assert record["method"] == case.method.partition(".")[2]
        assert record.get("found", False) is False


async def test_1000_items(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        answer = await call(stage, caller, "delivery.SendBatch", batch_of(1_000)(stage))
        assert [result.WhichOneof("result") for result in answer.results] == ["receipt"] * 1_000
        await stage.went_to(stage.carol, 1_000)


# Service identities

SERVICE_CALLS: dict[str, Callable[[Stage], ProtoMessage]] = {
    EXCHANGE: exchange(),
    "admin.GetFactoryStats": lambda stage: admin_pb.GetFactoryStatsRequest(),
    "admin.GetSecurityStats": lambda stage: admin_pb.GetSecurityStatsRequest(),
    LIST: lambda stage: admin_pb.ListManagersRequest(),
    CLEANUP: lambda stage: admin_pb.CleanupManagerRequest(isolation_key=stage.alice.isolation_key),
    ENFORCE: lambda stage: admin_pb.EnforceResourceLimitsRequest(user_id="alice"),
    DISCONNECT: lambda stage: admin_pb.DisconnectUserRequest(user_id="alice"),
    "admin.RevokeUser": lambda stage: admin_pb.RevokeUserRequest(user_id="alice"),
    "admin.Drain": lambda stage: admin_pb.DrainRequest(),
    "admin.TailAuditLog": lambda stage: admin_pb.TailAuditLogRequest(),
    "agent.Attach": lambda stage: admin_pb.DrainRequest(),  # a stream both ways: nothing is sent with the call
}


async def service_outcome(stage: Stage, caller: Caller, method: str, metadata: Any) -> Refused:
    if method == "agent.Attach":
        status = await ended_with(caller.agent.Attach(metadata=metadata, timeout=TIMEOUT_S))
    elif method == "admin.TailAuditLog":
        request = admin_pb.TailAuditLogRequest()
        status = await ended_with(caller.admin.TailAuditLog(request, metadata=metadata, timeout=TIMEOUT_S))
    else:
        status = await refused(call(stage, caller, method, SERVICE_CALLS[method](stage), metadata=metadata))
    return check_status(status, OPERATOR, DELIVERER, LOCAL)


@dataclass(frozen=True)
class BadService:
    """What a service proves itself with, and what becomes of it."""

    id: str
    tokens: Callable[[Stage], tuple[str, ...]]
    expected: Refused
    event: str = "token_denied"
    fault: str | None = None


SERVICES = (
    BadService("none", lambda stage: (), MISSING, fault="missing"),
    BadService("garbage", lambda stage: ("garbage",), INVALID, fault="key"),
    BadService("5,000 characters", lambda stage: (OPERATOR.ljust(5_000, "a"),), INVALID, fault="too_long"),
    BadService("a context token", lambda stage: (stage.alice.context_token,), INVALID, fault="key"),
    BadService("a user token", lambda stage: (stage.sidecar.user_token("alice"),), INVALID, fault="key"),
    BadService("twice", lambda stage: (OPERATOR, OPERATOR), INVALID, fault="key"),
    BadService("one that may not", lambda stage: (DELIVERER,), SERVICE_DENIED, "service_denied"),
)


@pytest.mark.parametrize("method", SERVICE_CALLS)
@pytest.mark.parametrize("case", SERVICES, ids=lambda case: case.id)
async def test_a_service_that_may_not(stage: Stage, case: BadService, method: str) -> None:
    async with stage.caller() as caller, stage.seen(**{case.event: 1}) as records:
        metadata = tuple(("x-service-token", token) for token in case.tokens(stage))
        assert await service_outcome(stage, caller, method, metadata) == case.expected
    told = (records[0]["reason"], records[0]["method"], records[0]["address"], records[0].get("fault"))
    assert told == (case.expected.reason, method.partition(".")[2], caller.address, case.fault)


@pytest.mark.parametrize("method", [EXCHANGE, ENFORCE, DISCONNECT, LIST])
async def test_a_service_of_other_tenants(stage: Stage, method: str) -> None:
    request = SERVICE_CALLS[method](stage) if method != LIST else admin_pb.ListManagersRequest(tenant_id="default")
    async with stage.caller() as caller, stage.seen(service_denied=1):
        status = await refused(call(stage, caller, method, request, metadata=(("x-service-token", LOCAL),)))
        assert check_status(status, LOCAL) == SERVICE_DENIED


async def test_a_service_of_other_tenants_finds_no_key_of_theirs(stage: Stage) -> None:
    request = admin_pb.CleanupManagerRequest(isolation_key=stage.alice.isolation_key)
    async with stage.caller() as caller, stage.seen(admin_call=1) as records:
        status = await refused(call(stage, caller, CLEANUP, request, metadata=(("x-service-token", LOCAL),)))
        assert check_status(status, LOCAL, stage.alice.isolation_key) == GONE
    assert (records[0]["service"], records[0]["found"]) == ("local", False)


@pytest.mark.parametrize("scope", ["close", "broadcast:user", "broadcast:tenant"])
async def test_a_scope_that_the_service_may_not_be_minted(stage: Stage, scope: str) -> None:
    member = {"user_token": stage.sidecar.user_token("alice", "elsewhere")}
    connection_id = stage.stranger.welcome["connection_id"]
    request = context_pb.ExchangeContextTokenRequest(connection_id=connection_id, scopes=["send", scope], **member)
    async with stage.caller() as caller, stage.seen(service_denied=1) as records:
        status = await refused(call(stage, caller, EXCHANGE, request, metadata=(("x-service-token", LOCAL),)))
        assert check_status(status, LOCAL) == SERVICE_DENIED
    assert (records[0]["service"], records[0]["tenant_id"]) == ("local", "elsewhere")


async def test_a_context_token_is_no_service_token(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen(token_denied=1):
        metadata = as_client(stage.tokens[stage.alice.isolation_key])["metadata"]
        assert await service_outcome(stage, caller, "admin.GetFactoryStats", metadata) == MISSING


async def test_a_service_token_is_no_context_token(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen(token_denied=1):
        request = context_pb.GetContextRequest()
        assert check_status(await refused(caller.context.GetContext(request, metadata=caller.as_operator))) == MISSING


# Requests that are none

PACKAGE = "/sidecar.api.v1."
UNARY = (
    *(
        f"{PACKAGE}DeliveryService/{name}"
        for name in ("SendToUser", "EmitCriticalEvent", "SendBatch", "Broadcast", "CloseManager", "GetManagerStats")
    ),
    *(
        f"{PACKAGE}ContextService/{name}"
        for name in ("GetContext", "RefreshContextToken", "RevokeContextToken", "ExchangeContextToken")
    ),
    *(
        f"{PACKAGE}AdminService/{name}"
        for name in (
            "GetFactoryStats",
            "GetSecurityStats",
            "ListManagers",
            "CleanupManager",
            "EnforceResourceLimits",
            "DisconnectUser",
            "RevokeUser",
            "Drain",
        )
    ),
    "/grpc.health.v1.Health/Check",
)
UNDECODABLE = (b"\xff", b"\x0a\x05a", b"\xff" * 60_000, b"\x0b")
"""No tag, a field cut short, much of nothing, a group without its end."""
SURROGATE = b"\x0a\x03\xed\xa0\x80"
"""A first field that is text, and no UTF-8."""
TEXT_FIRST = (
    "/SendToUser",
    "/EmitCriticalEvent",
    "/CloseManager",
    "/GetManagerStats",
    "/ExchangeContextToken",
    "/CleanupManager",
    "/EnforceResourceLimits",
    "/DisconnectUser",
    "/RevokeUser",
    "/Check",
)


@pytest.mark.parametrize("method", UNARY)
async def test_a_request_that_cannot_be_decoded(stage: Stage, method: str) -> None:
    """Whoever asks, and whatever is presented: nothing was asked for."""
    bodies = (*UNDECODABLE, SURROGATE) if method.endswith(TEXT_FIRST) else UNDECODABLE
    async with stage.caller() as caller, stage.seen():
        for data in bodies:
            request = caller.channel.unary_unary(method)(data, metadata=caller.as_operator, timeout=TIMEOUT_S)
            assert check_status(await refused(request), OPERATOR) == bad("request")


@pytest.mark.parametrize("method", [f"{PACKAGE}AdminService/TailAuditLog", "/grpc.health.v1.Health/Watch"])
async def test_a_stream_whose_request_cannot_be_decoded(stage: Stage, method: str) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = caller.channel.unary_stream(method)(b"\xff", metadata=caller.as_operator, timeout=TIMEOUT_S)
        assert check_status(await ended_with(stream)) == bad("request")


async def test_a_strangers_large_request_is_not_read(stage: Stage) -> None:
    """65,536 bytes are parsed for anybody; one more only for a caller with a token."""
    method = f"{PACKAGE}DeliveryService/SendToUser"
    async with stage.caller() as caller, stage.seen(token_denied=1):
        send = caller.channel.unary_unary(method)
        assert check_status(await refused(send(b"\xff" * 65_536, timeout=TIMEOUT_S))) == bad("request")
        assert check_status(await refused(send(b"\xff" * 65_537, timeout=TIMEOUT_S))) == MISSING
        proof = as_client(stage.alice.context_token)
        assert check_status(await refused(send(b"\xff" * 65_537, **proof))) == bad("request")


@pytest.mark.parametrize("method", [f"{PACKAGE}DeliveryService/Nothing", f"{PACKAGE}Nothing/Send", "/", "/a/b/c"])
async def test_an_unknown_method_is_grpcs_own_to_refuse(stage: Stage, method: str) -> None:
    async with stage.caller() as caller, stage.seen():
        error = await plain_refusal(caller.channel.unary_unary(method)(b"", timeout=TIMEOUT_S))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_service_whose_health_nobody_knows(stage: Stage) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with stage.caller() as caller, stage.seen():
        check: Any = health_pb2_grpc.HealthStub(caller.channel)
        for name in ("nobody", "*", "\0", "a" * 10_000):
            error = await plain_refusal(check.Check(health_pb2.HealthCheckRequest(service=name)))
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "unknown service")


# Unknown fields are passed over (proto3), wherever they are


async def test_unknown_fields_are_passed_over(stage: Stage) -> None:
    request = pb.SendToUserRequest(isolation_key=stage.alice.isolation_key, message=MESSAGE)
    data = request.SerializeToString() + b"\xfa\x7f\x03abc"
    async with stage.caller() as caller, stage.seen():
        method = caller.channel.unary_unary(f"{PACKAGE}DeliveryService/SendToUser")
        await method(data, **as_client(stage.alice.context_token))
        await stage.went_to(stage.alice, 1)
