"""Too much of what is good, sent to a running sidecar with low limits; and a sidecar that is about to end.

Each case: the exact refusal, the records that it adds, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import agent_service_pb2_grpc, types_pb2
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.rpc.rig import MESSAGE, TIMEOUT_S, Attempt, DeliverCall, Refused, ended_with, refused
from tests.support.running import Service, User, running_sidecar
from tests.support.stage import Stage, check_status, staged
from tests.support.ways import METHODS, SENDING, Way, as_client, by_event

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = """
[outbox]
max_messages = 4
critical_reserve = 2
[limits]
queued_bytes_per_user = 20000
max_message_bytes = 10000
"""
STREAMS = 4
FULL = Refused("RESOURCE_EXHAUSTED", "OUTBOX_FULL", retry_s=1.0)
USER_LIMIT = Refused("RESOURCE_EXHAUSTED", "USER_LIMIT", retry_s=1.0)
RATE_LIMITED = Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=1.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("limits")
    async with staged(folder, SETTINGS, SIDECAR_GRPC__MAX_CONCURRENT_CALLS=str(2 * STREAMS)) as stage:
        yield stage


@asynccontextmanager
async def somebody_away(stage: Stage) -> AsyncIterator[User]:
    """A user who has acknowledged a message, and whose socket was lost since: nothing gives way any more."""
    async with stage.sidecar.user("wendy") as wendy:
        token = await stage.know(wendy)
        await stage.service.send(wendy.isolation_key, token)
        assert (await wendy.frame())["sequence"] == 1
        await wendy.socket.send(json.dumps({"type": "ack", "sequence": 1}))
        assert await wendy.frames_before_answer_to("probe") == []
        wendy.socket.transport.abort()
        await wendy.socket.wait_closed()
    await stage.trail.until("socket_closed", connection_id=wendy.welcome["connection_id"])
    yield wendy
    close = pb.CloseManagerRequest(isolation_key=wendy.isolation_key)
    await stage.service.delivery.CloseManager(close, **as_client(token))
    await stage.trail.mark()


@pytest.mark.parametrize("way", SENDING, ids=METHODS.get)
async def test_a_full_outbox(stage: Stage, way: Way) -> None:
    async with somebody_away(stage) as wendy, stage.caller() as caller:
        for number in range(4):
            receipt = await stage.service.send(wendy.isolation_key, wendy.context_token)
            assert (receipt.sequence, receipt.state) == (number + 2, types_pb2.DELIVERY_STATE_QUEUED)
        await stage.trail.mark()
        async with stage.seen():
            attempt = stage.attempt(wendy)
            assert check_status(await way(caller, stage, attempt), attempt.token, attempt.key) == FULL
        stats = pb.GetManagerStatsRequest(isolation_key=wendy.isolation_key)
        held = await caller.delivery.GetManagerStats(stats, **as_client(attempt.token))
        assert (held.outbox_messages, held.messages_sent_total) == (4, 5)


async def test_a_broadcast_into_a_full_outbox(stage: Stage) -> None:
    """Refused by that outbox, said in the count."""
    async with somebody_away(stage) as wendy, stage.caller() as caller:
        for _ in range(4):
            await stage.service.send(wendy.isolation_key, wendy.context_token)
        await stage.trail.mark()
        async with stage.seen(broadcast=1):
            request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=MESSAGE)
            answer = await caller.delivery.Broadcast(request, **as_client(stage.tokens[wendy.isolation_key]))
            assert (answer.managers, answer.connections, answer.refused) == (0, 0, 1)


@pytest.mark.parametrize("way", [*SENDING, by_event], ids=METHODS.get)
async def test_a_full_reserve_of_critical_events(stage: Stage, way: Way) -> None:
    """Ordinary messages have their own room."""
    async with stage.sidecar.user("victor") as victor, stage.caller() as caller:
        token = await stage.know(victor)
        for _ in range(2):
            await stage.service.send(victor.isolation_key, token, critical=True)
        await stage.went_to(victor, 2)
        await stage.trail.mark()
        async with stage.seen():
            attempt = stage.attempt(victor, critical=True)
            assert check_status(await way(caller, stage, attempt), attempt.token, attempt.key) == FULL
        await stage.untouched(victor)
    await stage.trail.until("context_closed", connection_id=victor.welcome["connection_id"])
    await stage.trail.mark()


@pytest.mark.parametrize("way", SENDING, ids=METHODS.get)
async def test_the_limit_of_the_tokens_own_user(stage: Stage, way: Way) -> None:
    """Queued bytes: two messages of 9,000 and their overhead fit, a third does not."""
    payload = b'"%s"' % (b"a" * 8_998)
    async with somebody_away(stage) as wendy, stage.caller() as caller:
        for _ in range(2):
            await stage.service.send(wendy.isolation_key, wendy.context_token, payload)
        await stage.trail.mark()
        async with stage.seen(limit_enforced=1) as records:
            attempt = stage.attempt(wendy, payload)
            assert check_status(await way(caller, stage, attempt), attempt.token, attempt.key) == USER_LIMIT
        told = (records[0]["reason"], records[0]["method"], records[0]["user_id"])
        assert told == ("USER_LIMIT", METHODS[way], "wendy")


async def test_more_streams_than_there_may_be(stage: Stage) -> None:
    """Streams of every kind take up half of the calls' places; unary calls go on, and a stream's end makes room."""
    operator = (("x-service-token", stage.sidecar.service_token),)
    async with stage.caller() as caller, stage.seen():
        streams = [DeliverCall(caller.delivery.Deliver(timeout=TIMEOUT_S)) for _ in range(STREAMS)]
        for stream in streams:
            await stream.opened(1, stage.attempt(stage.carol))
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        agent = agent_service_pb2_grpc.AgentServiceStub(caller.channel)
        for one_more in (
            caller.delivery.Deliver(timeout=TIMEOUT_S),
            agent.Attach(metadata=operator, timeout=TIMEOUT_S),
            caller.admin.TailAuditLog(admin_pb.TailAuditLogRequest(), metadata=operator, timeout=TIMEOUT_S),
            health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S),
        ):
            assert check_status(await ended_with(one_more)) == RATE_LIMITED
        await caller.send(stage.carol.isolation_key, stage.carol.context_token)
        await stage.went_to(stage.carol, 1)
        assert await streams.pop().finish() == []
        another = DeliverCall(caller.delivery.Deliver(timeout=TIMEOUT_S))
        await another.opened(1, stage.attempt(stage.carol))
        for stream in (another, *streams):
            assert await stream.finish() == []


# Without a bystander: his own rate would be limited too, and he would have to go


async def test_a_users_rate_and_a_sidecar_that_ends(tmp_path: Path) -> None:
    """Two a second: the third is refused, and tells when to come again; nobody else is held to Alice's."""
    with running_sidecar(tmp_path, "[limits]\nmessages_per_second_per_user = 2\n") as sidecar:
        async with sidecar.service() as service, sidecar.user("alice") as alice, sidecar.user("carol") as carol:
            await beyond_the_rate(service, alice)
            stream = DeliverCall(service.delivery.Deliver(timeout=TIMEOUT_S))
            await stream.opened(1, Attempt(carol.isolation_key, carol.context_token, MESSAGE))
            await stream.send((1, MESSAGE))
            assert (await stream.receipts(1))[0].receipt.sequence == 1
            records = len(await sidecar.audit_records())
            sidecar.process.send_signal(signal.SIGTERM)
            await while_draining(stream, carol)
        assert sidecar.process.wait(timeout=30) == 0
        told = [json.loads(line)["event"] for line in sidecar.audit_path.read_text().splitlines()[records:]]
        assert sorted(told) == ["context_closed"] * 2 + ["sidecar_draining", "sidecar_stopped"] + ["socket_closed"] * 2


async def beyond_the_rate(service: Service, alice: User) -> None:
    """All at one reading of the clock: a batch has one."""
    item = pb.SendBatchItem(isolation_key=alice.isolation_key, context_token=alice.context_token, message=MESSAGE)
    answer = await service.delivery.SendBatch(pb.SendBatchRequest(items=[item] * 4), timeout=TIMEOUT_S)
    assert [result.WhichOneof("result") for result in answer.results] == ["receipt", "receipt", "error", "error"]
    for result in answer.results[2:]:
        outcome = check_status(result.error, alice.context_token, alice.isolation_key)
        assert (outcome.code, outcome.reason, outcome.retry_s) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 0.5)
    call = pb.SendToUserRequest(isolation_key=alice.isolation_key, message=MESSAGE)
    unary = check_status(await refused(service.delivery.SendToUser(call, **as_client(alice.context_token))))
    assert (unary.reason, unary.retry_s is not None and 0 < unary.retry_s <= 0.5) == ("RATE_LIMITED", True)
    assert len(await alice.frames_before_answer_to("probe")) == 2


async def while_draining(stream: DeliverCall, carol: User) -> None:
    """Once her socket is gone the message would die with the process; the stream is still answered, and then ends."""
    async with asyncio.timeout(TIMEOUT_S):
        await carol.socket.wait_closed()
    assert carol.socket.close_code == 1012
    await stream.send((1, MESSAGE))
    (item,) = await stream.receipts(1)
    assert check_status(item.error) == Refused("UNAVAILABLE", "DRAINING", retry_s=5.0)
    assert await stream.finish() == []
