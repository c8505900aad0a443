"""AgentService.Attach in the test's own process: what a worker is told, with which token, and how its stream ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import context_service_pb2, delivery_service_pb2, types_pb2
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import ErrorReason
from sidecar.core.identity import Scope
from sidecar.core.ports import AuditEvent
from sidecar.security.service_auth import Permission, ServiceAuthenticator
from tests.rpc.conftest import MakeRig
from tests.rpc.identities import NOTHING, SCOPED, identity
from tests.rpc.rig import Attempt, Refused, Rig, ended_with, refused, summary
from tests.rpc.workers import Worker, announce, attached, registration, say, summaries
from tests.support.doubles import FakeClock

AUDIT_UNAVAILABLE = Refused("UNAVAILABLE", "AUDIT_UNAVAILABLE", retry_s=1.0)
DRAINING = Refused("UNAVAILABLE", "DRAINING", retry_s=5.0)
SERVICE_DENIED = Refused("PERMISSION_DENIED", "SERVICE_DENIED")
TOKEN_INVALID = Refused("UNAUTHENTICATED", "TOKEN_INVALID")
OTHER = "token-of-another-of-the-services"
PAYLOAD = b'{"text":"hello"}'


def scopes(rig: Rig, token: str) -> frozenset[Scope]:
    return rig.tokens.verify(token).scopes


# What it is told


async def test_a_worker_is_registered_then_told_of_a_context_with_the_token_to_answer_with(rig: Rig) -> None:
    worker = await attached(rig)
    announce(rig, rig.alice)
    opened = await worker.event("opened")
    context = rig.alice.manager.context
    assert (opened.isolation_key, opened.redelivered) == (rig.alice.key, False)
    assert (opened.context.tenant_id, opened.context.user_id) == ("default", "alice")
    assert opened.context.connection_id == context.connection_id
    assert opened.context.created_time.ToSeconds() == int(context.created_at)
    assert (list(opened.context.permissions), dict(opened.context.metadata)) == (["chat"], {"agent": "test"})
    answer = await rig.unary(Attempt(rig.alice.key, opened.context_token, types_pb2.Message(payload=b"1"), "alice"))
    assert answer.receipt.state == types_pb2.DELIVERY_STATE_WRITTEN
    stranger = rig.unary(Attempt(rig.carol.key, opened.context_token, types_pb2.Message(payload=b"1")))
    assert summary(await refused(stranger)).reason == "ISOLATION_VIOLATION"
    await worker.finish()


async def test_a_message_is_handed_over_as_the_client_said_it(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=1))
    assert say(rig, rig.alice, "m-1", "ask", PAYLOAD) is None
    event = await worker.event("message")
    assert event.message == pb.AttachResponse.Inbound(
        message_id="m-1", event_type="ask", payload=PAYLOAD, content_type=types_pb2.CONTENT_TYPE_JSON
    )
    assert event.delivery_id
    await worker.acknowledge(event)
    await worker.credit(1)
    assert say(rig, rig.alice, "m-2") is None
    second = await worker.event("message")  # so the acknowledgement was read, which came before the credit
    rig.tick(60.0)
    await worker.credit(9)
    again = await worker.event("message")
    assert (again.delivery_id, again.redelivered) == (second.delivery_id, True)
    announce(rig, rig.carol)
    assert summaries([await worker.event()]) == ["carol opened"]


async def test_a_life_from_opened_to_closed(rig: Rig) -> None:
    worker = await attached(rig)
    announce(rig, rig.alice)
    manager, socket = rig.alice.manager, rig.alice.socket
    await worker.event("opened")
    manager.remove_connection(manager.context, socket.attach_id, 1006, rig.at())
    await worker.event("away")
    manager.resume(manager.context, socket, 0, rig.at())
    await worker.event("back")
    manager.end("revoked", catalogued(CloseCode.REVOKED), rig.at())
    closed = await worker.event("closed")
    assert (closed.closed.code, closed.closed.reason, closed.context_token) == (4506, "revoked", "")
    assert closed.context.user_id == "alice"


async def test_a_cancel_needs_no_credit_and_no_acknowledgement(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=0))
    announce(rig, rig.alice)
    rig.alice.manager.cancel("s-1", "m-1", rig.at())
    event = await worker.event("cancelled")
    assert (event.cancelled.stream_id, event.cancelled.message_id, event.delivery_id) == ("s-1", "m-1", "")
    assert (event.isolation_key, event.context.user_id) == (rig.alice.key, "alice")
    assert rig.tokens.verify(event.context_token).isolation_key == rig.alice.key
    await worker.credit(1)
    await worker.event("opened")


async def test_registered_comes_before_what_has_waited(rig: Rig) -> None:
    worker = await attached(rig)
    for number in range(20):
        say(rig, rig.alice, f"m-{number}")
    worker.call.cancel()
    await rig.calls_under_way(1)  # the look itself
    again = await attached(rig)
    assert [each.message.message_id for each in await again.events(20)] == [f"m-{number}" for number in range(20)]


async def test_credits_and_time_outs_over_the_wire(rig: Rig) -> None:
    worker = await attached(rig, registration(credits_=1, ack_timeout_s=0.5))
    for number in range(3):
        say(rig, rig.alice, f"m-{number}")
    first = await worker.event()
    await worker.acknowledge(first)
    await worker.credit(1)
    second = await worker.event()
    rig.tick(0.5)
    await worker.credit(2)
    assert summaries([first, second, *await worker.events(2)]) == ["alice m-0", "alice m-1", "*alice m-1", "alice m-2"]


async def test_a_worker_that_is_lost_hands_over_to_another(rig: Rig) -> None:
    first = await attached(rig)
    say(rig, rig.alice, "m-1")
    event = await first.event()
    second = await attached(rig)
    first.call.cancel()
    again = await second.event()
    assert (again.delivery_id, again.redelivered, event.redelivered) == (event.delivery_id, True, False)


async def test_a_worker_that_does_not_read_costs_itself(rig: Rig) -> None:
    """Its events are written as far as HTTP/2 lets them, and go to another when their time is over."""
    stalled = await attached(rig, registration(ack_timeout_s=30.0))
    people = [rig.connect(f"user-{number}") for number in range(40)]
    for client in people:
        assert say(rig, client, payload=b'"%s"' % (b"x" * 60_000)) is None
    other = await attached(rig)
    assert say(rig, rig.alice) is None
    rig.tick(30.0)
    events = await other.events(41)
    assert {event.context.user_id for event in events} == {"alice", *(f"user-{number}" for number in range(40))}
    stalled.call.cancel()


# With which token


async def test_one_token_a_context_until_half_of_its_life_is_over(rig: Rig) -> None:
    worker = await attached(rig)
    before = len(await rig.records(AuditEvent.TOKEN_MINTED))
    announce(rig, rig.alice, rig.carol)
    say(rig, rig.alice)
    tokens = {(event.context.user_id, event.context_token) for event in await worker.events(3)}
    assert len(tokens) == 2
    rig.clock.advance(449.0)
    say(rig, rig.alice, "m-2")
    assert ("alice", (await worker.event()).context_token) in tokens
    rig.clock.advance(1.0)
    say(rig, rig.alice, "m-3")
    renewed = await worker.event()
    assert ("alice", renewed.context_token) not in tokens
    records = (await rig.records(AuditEvent.TOKEN_MINTED))[before:]
    assert [record["user_id"] for record in records] == ["alice", "carol", "alice"]
    assert {(record["service"], record["scopes"]) for record in records} == {
        ("default", " ".join(sorted(scope.value for scope in Scope)))
    }
    assert rig.tokens.verify(renewed.context_token).token_id == records[-1]["token_id"]


async def test_a_token_that_was_revoked_is_handed_out_no_more(rig: Rig) -> None:
    """By whoever held it; the next event would have come with a token that answers nobody."""
    worker = await attached(rig)
    say(rig, rig.alice, "m-1")
    token = (await worker.event()).context_token
    request = context_service_pb2.RevokeContextTokenRequest()
    await rig.context.RevokeContextToken(request, metadata=(("x-context-token", token),))
    say(rig, rig.alice, "m-2")
    another = (await worker.event()).context_token
    await rig.unary(Attempt(rig.alice.key, another, types_pb2.Message(payload=b"1")))


async def test_each_worker_is_minted_what_its_own_service_token_allows(make_rig: MakeRig) -> None:
    """Though they attach under one name."""
    few = identity(Permission.ATTACH, scopes=frozenset({Scope.SEND}))
    rig = await make_rig(services=[(SCOPED, few)])
    one, other = await attached(rig), await attached(rig, token=SCOPED)
    people = [rig.connect(f"user-{number}") for number in range(20)]
    announce(rig, *people)
    one.call.cancel()
    events = await other.events(20)
    assert {scopes(rig, event.context_token) for event in events} == {frozenset({Scope.SEND})}
    event = events[0]
    close = delivery_service_pb2.CloseManagerRequest(isolation_key=event.isolation_key)
    call = rig.delivery.CloseManager(close, metadata=(("x-context-token", event.context_token),))
    assert summary(await refused(call)).reason == "SCOPE_MISSING"


async def test_an_agent_broadcasts_with_the_token_of_an_event(rig: Rig) -> None:
    second, stranger = rig.connect("alice"), rig.connect("alice", "elsewhere")
    worker = await attached(rig)
    say(rig, rig.alice)
    token = (await worker.event()).context_token
    for scope, reached in (
        (delivery_service_pb2.BROADCAST_SCOPE_USER, [rig.alice, second]),
        (delivery_service_pb2.BROADCAST_SCOPE_TENANT, [rig.alice, second, rig.carol, rig.bystander]),
    ):
        request = delivery_service_pb2.BroadcastRequest(scope=scope, message=types_pb2.Message(payload=b"{}"))
        answer = await rig.delivery.Broadcast(request, metadata=(("x-context-token", token),))
        assert (answer.managers, answer.connections) == (len(reached), len(reached))
        assert [len(client.socket.take()) for client in reached] == [1] * len(reached)
    assert stranger.socket.frames == []


# What its service token allows, now


class Services:
    """A token file that a test writes anew."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "services"
        self._clock = FakeClock()
        self.write()
        self.authenticator = ServiceAuthenticator.from_file(self._path, self._clock)

    def write(self, **changes: object) -> None:
        entry = {"name": "agents", "token": OTHER, "allow": ["attach"], "tenants": ["default", "acme"]} | changes
        self._path.unlink(missing_ok=True)
        self._path.touch(0o600)
        self._path.write_text(json.dumps(entry))

    def follow(self, **changes: object) -> None:
        self.write(**changes)
        self._clock.advance(1.0)
        assert self.authenticator.refresh()


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(tmp_path)


@pytest.fixture
async def following(make_rig: MakeRig, services: Services) -> Rig:
    """A rig that knows the services of the file."""
    return await make_rig(authenticator=services.authenticator)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"token": "a-token-that-nobody-has"}, TOKEN_INVALID),
        ({"allow": ["deliver"]}, SERVICE_DENIED),
        ({"tenants": ["default"]}, SERVICE_DENIED),
    ],
)
async def test_a_service_that_loses_its_rights_is_detached(
    following: Rig, services: Services, change: dict[str, object], refusal: Refused
) -> None:
    worker = await attached(following, token=OTHER)
    services.follow(**change)
    following.tick(1.0)
    assert summary(await ended_with(worker.call)) == refusal
    assert len(following.factory.agents) == 0
    event = AuditEvent.TOKEN_DENIED if refusal is TOKEN_INVALID else AuditEvent.SERVICE_DENIED
    assert len(await following.records(event)) == 1


async def test_a_worker_that_does_not_read_is_detached_all_the_same(following: Rig, services: Services) -> None:
    """Its stream may hang in a write; what it held does not wait for that."""
    stalled = await attached(following, token=OTHER)
    for number in range(40):
        assert say(following, following.alice, f"m-{number}", payload=b'"%s"' % (b"x" * 60_000)) is None
    other = await attached(following, registration("other", ("default", "else")), token=OTHER)
    services.follow(token="a-token-that-nobody-has")
    following.tick(1.0)
    assert summary(await ended_with(other.call)) == TOKEN_INVALID  # by then the loop has turned often enough
    assert len(following.factory.agents) == 0
    stalled.call.cancel()


async def test_a_service_that_keeps_what_it_subscribed_to_stays(following: Rig, services: Services) -> None:
    worker = await attached(following, registration("support", ("default", "")), token=OTHER)
    services.follow(tenants=["default"])
    following.tick(1.0)
    assert say(following, following.alice) is None
    await worker.event()
    await worker.finish()


async def test_what_a_service_may_be_minted_is_followed_while_it_is_attached(
    following: Rig, services: Services
) -> None:
    worker = await attached(following, token=OTHER)
    say(following, following.alice, "m-1")
    before = await worker.event()
    assert scopes(following, before.context_token) == {Scope.SEND, Scope.EMIT, Scope.STATS}
    services.follow(scopes=["send"])
    following.tick(1.0)
    say(following, following.alice, "m-2")
    assert scopes(following, (await worker.event()).context_token) == {Scope.SEND}


async def test_scopes_that_are_cut_while_a_record_is_written_hold_for_its_token(
    following: Rig, services: Services
) -> None:
    worker = await attached(following, token=OTHER)
    following.disk.hold()
    say(following, following.alice)
    await following.disk.asked()
    services.follow(scopes=["send"])
    following.tick(1.0)
    following.disk.release()
    assert scopes(following, (await worker.event()).context_token) == {Scope.SEND}


async def test_a_token_is_good_for_the_tenants_it_names(make_rig: MakeRig) -> None:
    rig = await make_rig(services=[(SCOPED, identity(Permission.ATTACH, tenants=["acme"])), (NOTHING, identity())])
    worker = Worker(rig.agent, SCOPED)
    await worker.write(register=registration("support", ("acme", ""), ("default", "")))
    assert summary(await ended_with(worker.call)) == SERVICE_DENIED
    assert summary(await ended_with(Worker(rig.agent, NOTHING).call)) == SERVICE_DENIED
    theirs, ours = await attached(rig, token=SCOPED), await attached(rig, registration("other", ("default", "")))
    stranger = rig.connect("alice", "acme")
    announce(rig, rig.alice, stranger)
    assert say(rig, rig.alice) is None
    assert say(rig, stranger, "m-2") is None
    assert summaries(await theirs.events(2)) == ["alice opened", "alice m-2"]
    assert summaries(await ours.events(2)) == ["alice opened", "alice m-1"]
    assert len(await rig.records(AuditEvent.SERVICE_DENIED)) == 2


# Its record comes first


async def test_nothing_is_attached_without_its_record(rig: Rig) -> None:
    rig.disk.full = True
    worker = Worker(rig.agent)
    await worker.write(register=registration())
    assert summary(await ended_with(worker.call)) == AUDIT_UNAVAILABLE
    assert len(rig.factory.agents) == 0
    assert say(rig, rig.alice) is ErrorReason.NO_AGENT


async def test_an_event_whose_token_cannot_be_recorded_is_not_lost(rig: Rig) -> None:
    worker = await attached(rig)
    rig.disk.full = True
    assert say(rig, rig.alice) is None
    assert summary(await ended_with(worker.call)) == AUDIT_UNAVAILABLE
    rig.disk.full = False
    rig.audit.tick()
    await rig.records()
    assert (await (await attached(rig)).event()).message.message_id == "m-1"


async def test_attached_and_detached_are_recorded_once(rig: Rig) -> None:
    async with rig.seen(AuditEvent.AGENT_ATTACHED, AuditEvent.AGENT_DETACHED) as records:
        worker = await attached(rig)
        await worker.finish()
    one, other = records
    assert (one["service"], one["service_name"], one["address"]) == ("default", "support", "127.0.0.1")
    assert one["worker_id"] == other["worker_id"]


# Its end


async def test_an_edge_that_closes_ends_its_workers(rig: Rig) -> None:
    worker = await attached(rig)
    async with asyncio.timeout(5):
        await rig.edge.close(60.0)  # nobody waits for them
    assert summary(await ended_with(worker.call)) == DRAINING
    assert len(rig.factory.agents) == 0


async def test_a_stream_whose_record_is_being_written_ends_as_well(rig: Rig) -> None:
    rig.disk.hold()
    worker = Worker(rig.agent)
    await worker.write(register=registration())
    await rig.disk.asked()
    closing = asyncio.create_task(rig.edge.close(60.0))
    await asyncio.sleep(0)
    rig.disk.release()
    assert summary(await ended_with(worker.call)) == DRAINING
    await closing


async def test_a_stream_that_does_not_register_ends(make_rig: MakeRig) -> None:
    rig = await make_rig(first_lane_timeout_s=0.05)
    assert summary(await ended_with(Worker(rig.agent).call)) == Refused(
        "INVALID_ARGUMENT", "BAD_REQUEST", field="frame"
    )
