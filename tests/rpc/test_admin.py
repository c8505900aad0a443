"""AdminService: what operators read and take away, within their tenants, each call recorded once."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from sidecar.api.v1 import admin_service_pb2 as pb
from sidecar.core.close_codes import Close
from sidecar.core.limits import Limits
from sidecar.core.ports import AuditEvent
from sidecar.security.service_auth import Permission
from tests.rpc.conftest import MakeRig
from tests.rpc.identities import NOTHING, SCOPED, identity
from tests.rpc.rig import OPERATOR, TIMEOUT_S, Client, Refused, Rig, refused, service_metadata, summary

DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")
GONE = Refused("NOT_FOUND", "MANAGER_GONE")
AUDIT_UNAVAILABLE = Refused("UNAVAILABLE", "AUDIT_UNAVAILABLE", retry_s=1.0)

CALLS: dict[str, Any] = {
    "GetFactoryStats": pb.GetFactoryStatsRequest(),
    "GetSecurityStats": pb.GetSecurityStatsRequest(),
    "ListManagers": pb.ListManagersRequest(),
    "CleanupManager": pb.CleanupManagerRequest(isolation_key="0" * 64),
    "EnforceResourceLimits": pb.EnforceResourceLimitsRequest(user_id="nobody"),
    "DisconnectUser": pb.DisconnectUserRequest(user_id="nobody"),
    "Drain": pb.DrainRequest(),
}
READS = ("GetFactoryStats", "GetSecurityStats", "ListManagers")


def call(rig: Rig, method: str, request: Any = None, *, token: str | None = OPERATOR) -> Any:
    metadata = () if token is None else service_metadata(token)
    return getattr(rig.admin, method)(request or CALLS[method], metadata=metadata, timeout=TIMEOUT_S)


def bad(field: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=field)


@pytest.fixture
async def scoped(make_rig: MakeRig) -> Rig:
    """An edge with an operator of the tenant "elsewhere" alone."""
    return await make_rig(services=[(SCOPED, identity(Permission.ADMIN, tenants=["elsewhere"]))])


@pytest.mark.parametrize("method", CALLS)
async def test_who_may_call(make_rig: MakeRig, method: str) -> None:
    rig = await make_rig(services=[(NOTHING, identity(Permission.EXCHANGE, Permission.DELIVER, Permission.ATTACH))])
    async with rig.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1) as records:
        assert summary(await refused(call(rig, method, token=NOTHING))) == DENIED
    assert records[0]["method"] == method
    for token, reason in ((None, "TOKEN_MISSING"), ("", "TOKEN_MISSING"), ("wrong", "TOKEN_INVALID")):
        async with rig.seen(AuditEvent.TOKEN_DENIED, unauthorized_access_attempts=1):
            assert summary(await refused(call(rig, method, token=token))) == Refused("UNAUTHENTICATED", reason)


@pytest.mark.parametrize("method", CALLS)
async def test_each_call_is_recorded_once(rig: Rig, method: str) -> None:
    async with rig.seen(AuditEvent.ADMIN_CALL) as records:
        if method == "CleanupManager":
            assert summary(await refused(call(rig, method))) == GONE
        else:
            await call(rig, method)
    assert (records[0]["service"], records[0]["method"]) == ("default", method)


@pytest.mark.parametrize("method", CALLS)
async def test_reads_need_their_record_and_taking_away_goes_on(rig: Rig, method: str) -> None:
    rig.disk.full = True
    requests = {
        "CleanupManager": pb.CleanupManagerRequest(isolation_key=rig.alice.key),
        "DisconnectUser": pb.DisconnectUserRequest(user_id="alice"),
    }
    answer = call(rig, method, requests.get(method))
    if method in READS:
        assert summary(await refused(answer)) == AUDIT_UNAVAILABLE
    else:
        await answer
    assert rig.alice.manager.ended == (method in requests)
    rig.disk.full = False


# Reading


async def test_the_factorys_stats_are_true(rig: Rig) -> None:
    rig.connect("alice")
    rig.clock.advance(120)
    rig.alice.manager.end("test", None, rig.at())
    stats = await call(rig, "GetFactoryStats")
    assert (stats.total_managers_created, stats.active_managers, stats.managers_cleaned_up) == (4, 3, 1)
    assert (stats.users_with_active_managers, stats.resource_limit_hits) == (3, 0)
    assert stats.average_manager_lifetime_minutes == 2.0


async def test_the_security_stats_are_true(make_rig: MakeRig) -> None:
    rig = await make_rig(limits=Limits(queued_bytes_per_user=300))
    rig.alice.socket.paused = True
    await rig.send(rig.alice)
    await refused(rig.unary(rig.attempt()))
    await refused(rig.delivery.SendToUser(rig_request(rig.bystander), metadata=rig.alice.metadata))
    await refused(rig.delivery.SendToUser(rig_request(rig.alice)))
    await refused(call(rig, "GetSecurityStats", token=None))
    stats = await call(rig, "GetSecurityStats")
    assert (stats.isolation_violations_detected, stats.resource_limit_enforcements) == (1, 1)
    assert (stats.unauthorized_access_attempts, stats.context_validation_failures) == (2, 1)
    assert stats.audit_events_logged == len(await rig.records())
    assert (await call(rig, "GetFactoryStats")).resource_limit_hits == 1


def rig_request(client: Client) -> Any:
    from sidecar.api.v1 import delivery_service_pb2

    return delivery_service_pb2.SendToUserRequest(isolation_key=client.key)


async def pages(rig: Rig, size: int, **members: Any) -> list[list[Any]]:
    """Every page."""
    found, page_token = [], ""
    while True:
        request = pb.ListManagersRequest(page_size=size, page_token=page_token, **members)
        answer = await call(rig, "ListManagers", request)
        found.append(list(answer.managers))
        page_token = answer.next_page_token
        if not page_token:
            return found


async def test_a_list_says_what_is(rig: Rig) -> None:
    await rig.send(rig.alice)
    rig.clock.advance(10)
    away = rig.connect("zoe", attached=False)
    ((first,), (second,)) = [
        [one for one in (await pages(rig, 100))[0] if one.isolation_key == client.key] for client in (rig.alice, away)
    ]
    assert (first.context.user_id, first.connections_managed, first.attached) == ("alice", 1, True)
    assert (first.outbox_messages, first.outbox_bytes) == (1, 258)
    assert first.created_time.seconds == first.last_activity_time.seconds == int(rig.clock.time()) - 10
    assert (second.connections_managed, second.attached) == (0, False)


async def test_pages_hold_each_manager_once_in_a_stable_order(rig: Rig) -> None:
    for number in range(9):
        rig.connect(f"user-{number}")
    whole = [one.isolation_key for one in (await pages(rig, 1_000))[0]]
    assert len(whole) == len(set(whole)) == 12
    for size, sizes in ((5, [5, 5, 2]), (6, [6, 6]), (12, [12]), (2**31 - 1, [12]), (0, [12])):
        found = await pages(rig, size)
        assert [len(page) for page in found] == sizes
        assert [one.isolation_key for page in found for one in page] == whole


async def test_a_page_goes_on_though_its_last_manager_has_ended(rig: Rig) -> None:
    first = await call(rig, "ListManagers", pb.ListManagersRequest(page_size=1))
    rig.factory.get_manager(first.managers[0].isolation_key).end("test", None, rig.at())
    rest = await call(rig, "ListManagers", pb.ListManagersRequest(page_size=10, page_token=first.next_page_token))
    assert len(rest.managers) == 2
    assert not rest.next_page_token


async def test_filters(rig: Rig) -> None:
    rig.connect("alice", "elsewhere")
    rig.connect("alice")
    assert [len(page) for page in await pages(rig, 10, user_id="alice")] == [3]
    assert [len(page) for page in await pages(rig, 10, user_id="alice", tenant_id="default")] == [2]
    assert [len(page) for page in await pages(rig, 10, tenant_id="elsewhere")] == [1]
    assert [len(page) for page in await pages(rig, 10, user_id="nobody")] == [0]


BAD_LISTS = {
    "page_size": {"page_size": -1},
    "page_token": {"page_token": "garbage!"},
    "page_token not base64": {"page_token": "abc"},
    "page_token not ASCII": {"page_token": "é"},
    "page_token of other bytes": {"page_token": "_w=="},
    "tenant_id": {"tenant_id": "*"},
    "user_id": {"user_id": "a\0"},
}


@pytest.mark.parametrize("case", BAD_LISTS)
async def test_a_list_that_breaks_a_rule(rig: Rig, case: str) -> None:
    async with rig.seen():
        request = pb.ListManagersRequest(**BAD_LISTS[case])  # type: ignore[arg-type]
        assert summary(await refused(call(rig, "ListManagers", request))) == bad(case.split(maxsplit=1)[0])


# Tenants


async def test_an_operator_lists_its_own_tenants_only(scoped: Rig) -> None:
    stranger = scoped.connect("alice", "elsewhere")
    answer = await call(scoped, "ListManagers", token=SCOPED)
    assert [one.isolation_key for one in answer.managers] == [stranger.key]
    async with scoped.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
        request = pb.ListManagersRequest(tenant_id="default")
        assert summary(await refused(call(scoped, "ListManagers", request, token=SCOPED))) == DENIED


async def test_an_operator_cannot_tell_a_foreign_key_from_an_unknown_one(scoped: Rig) -> None:
    statuses = set()
    for key in (scoped.alice.key, "0" * 64):
        async with scoped.seen(AuditEvent.ADMIN_CALL):
            request = pb.CleanupManagerRequest(isolation_key=key)
            status = await refused(call(scoped, "CleanupManager", request, token=SCOPED))
            assert summary(status) == GONE
            statuses.add(status.SerializeToString())
    assert len(statuses) == 1
    assert not scoped.alice.manager.ended


@pytest.mark.parametrize("method", ["EnforceResourceLimits", "DisconnectUser"])
@pytest.mark.parametrize("tenant_id", ["", "default"])
async def test_an_operator_ends_nothing_of_another_tenant(scoped: Rig, method: str, tenant_id: str) -> None:
    request_type = {
        "EnforceResourceLimits": pb.EnforceResourceLimitsRequest,
        "DisconnectUser": pb.DisconnectUserRequest,
    }
    for user_id in ("alice", "nobody"):
        request = request_type[method](tenant_id=tenant_id, user_id=user_id)
        async with scoped.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
            assert summary(await refused(call(scoped, method, request, token=SCOPED))) == DENIED
    assert not scoped.alice.manager.ended


# Taking away


async def test_cleaning_up_one_context(rig: Rig) -> None:
    other = rig.connect("alice")
    request = pb.CleanupManagerRequest(isolation_key=rig.alice.key, reason="x" * 200)
    events = (AuditEvent.ADMIN_CALL, AuditEvent.SOCKET_CLOSED, AuditEvent.CONTEXT_CLOSED)
    async with rig.seen(*events) as records:
        assert (await call(rig, "CleanupManager", request)).connections == 1
    assert (records[0]["user_id"], records[0]["reason"]) == ("alice", "x" * 123)
    assert rig.alice.socket.closed_with == Close(4505, "closed_by_service")
    assert not other.manager.ended
    async with rig.seen(AuditEvent.ADMIN_CALL):
        assert summary(await refused(call(rig, "CleanupManager", request))) == GONE
    async with rig.seen():
        assert summary(await refused(call(rig, "CleanupManager", pb.CleanupManagerRequest()))) == bad("isolation_key")


async def test_disconnecting_one_user(rig: Rig) -> None:
    second, away = rig.connect("alice"), rig.connect("alice", attached=False)
    stranger = rig.connect("alice", "elsewhere")
    request = pb.DisconnectUserRequest(user_id="alice", reason="told\nto")
    answer = await call(rig, "DisconnectUser", request)
    assert (answer.managers, answer.connections) == (3, 2)
    assert [client.manager.ended for client in (rig.alice, second, away, stranger)] == [True, True, True, False]
    assert second.socket.closed_with == Close(4505, "closed_by_service")
    assert len(await rig.records(AuditEvent.ADMIN_CALL)) == 1
    again = await call(rig, "DisconnectUser", request)
    assert (again.managers, again.connections) == (0, 0)
    assert rig.connect("alice").manager.outbox.head == 0


async def test_enforcing_limits_ends_what_is_past_its_time(rig: Rig) -> None:
    away = rig.connect("alice", attached=False)
    rig.clock.advance(121)
    request = pb.EnforceResourceLimitsRequest(user_id="alice")
    answer = await call(rig, "EnforceResourceLimits", request)
    assert (answer.managers, answer.connections) == (1, 0)
    assert (away.manager.ended, rig.alice.manager.ended) == (True, False)
    answer = await call(rig, "EnforceResourceLimits", request)
    assert (answer.managers, answer.connections) == (0, 0)


@pytest.mark.parametrize("method", ["EnforceResourceLimits", "DisconnectUser"])
async def test_a_user_must_be_named(rig: Rig, method: str) -> None:
    request_type = type(CALLS[method])
    async with rig.seen():
        assert summary(await refused(call(rig, method, request_type()))) == bad("user_id")
        assert summary(await refused(call(rig, method, request_type(user_id="*")))) == bad("user_id")
        assert summary(await refused(call(rig, method, request_type(tenant_id=">", user_id="a")))) == bad("tenant_id")


# Draining


@pytest.mark.parametrize(
    ("request_", "window_s"),
    [
        (pb.DrainRequest(), None),
        (pb.DrainRequest(window=Duration()), 0.0),
        (pb.DrainRequest(window=Duration(seconds=3, nanos=500_000_000)), 3.5),
        (pb.DrainRequest(window=Duration(seconds=3_600)), 3_600.0),
    ],
)
async def test_a_drain_begins_over_the_window_that_is_asked_for(
    rig: Rig, request_: pb.DrainRequest, window_s: float | None
) -> None:
    async with rig.seen(AuditEvent.ADMIN_CALL) as records:
        assert (await call(rig, "Drain", request_)).connections == 3
    assert rig.drains == [window_s]
    assert records[0]["method"] == "Drain"


@pytest.mark.parametrize(
    "window",
    [Duration(seconds=3_600, nanos=1), Duration(seconds=-1), Duration(nanos=-1), Duration(nanos=1_000_000_000)],
)
async def test_a_window_is_0_to_3600_seconds(rig: Rig, window: Duration) -> None:
    assert summary(await refused(call(rig, "Drain", pb.DrainRequest(window=window)))) == bad("window")
    assert rig.drains == []


async def test_an_operator_of_some_tenants_drains_nothing(scoped: Rig) -> None:
    async with scoped.seen(AuditEvent.SERVICE_DENIED, unauthorized_access_attempts=1):
        assert summary(await refused(call(scoped, "Drain", token=SCOPED))) == DENIED
    assert scoped.drains == []
