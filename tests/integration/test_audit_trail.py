"""Every kind of security event, caused on a running sidecar, is in the trail exactly once, and without secrets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sidecar.api.v1 import admin_service_pb2, context_service_pb2, delivery_service_pb2, types_pb2
from sidecar.api.v1.agent_service_pb2_grpc import AgentServiceStub
from sidecar.core.ports import AuditEvent
from tests.rpc.workers import Worker
from tests.support.running import RunningSidecar, Service, User, refusal, running_sidecar
from tests.support.trail import Trail

CANARY = "canary-7f3a9c51"
ELSEWHERE = {AuditEvent.AUDIT_RECORDS_LOST, AuditEvent.AUDIT_INTERRUPTED, AuditEvent.CONTEXTS_RESTORED}
"""Of a trail that cannot be written, see tests/security/test_audit.py; of a store that survives, see tests/storage."""


def as_client(token: str) -> tuple[tuple[str, str], ...]:
    return (("x-context-token", token),)


async def exchange(sidecar: RunningSidecar, service: Service, user: User, *scopes: str) -> str:
    request = context_service_pb2.ExchangeContextTokenRequest(
        user_token=sidecar.user_token(user.subject), connection_id=user.welcome["connection_id"], scopes=scopes
    )
    answer = await service.context.ExchangeContextToken(request, metadata=service.as_operator)
    return str(answer.context_token)


@pytest.mark.timeout(120)
async def test_each_event_once(tmp_path: Path) -> None:
    prepare_torn_trail(tmp_path)
    prepare_old_keys(tmp_path)
    secrets: list[str] = []
    with running_sidecar(tmp_path, "[limits]\nmanagers_per_user = 2\n") as sidecar:
        async with sidecar.service() as service:
            started = [record["event"] for record in await sidecar.audit_records()]
            assert started.count("sidecar_started") == 2
            assert started.count("audit_tail_repaired") == 1
            trail = Trail(sidecar)
            await trail.until("keys_rotated")
            await trail.mark()
            await connections(sidecar, service, trail, secrets)
            await tokens(sidecar, service, trail, secrets)
            await refusals(sidecar, service, trail)
            await operators(sidecar, service, trail)
        assert sidecar.stop() == 0
        records = [json.loads(line) for line in sidecar.audit_path.read_text().splitlines()]
        assert records[-1]["event"] == "sidecar_stopped"
        assert Counter(record["event"] for record in records)["keys_rotated"] == 1
        seen = trail.seen | {
            "sidecar_started",
            "sidecar_draining",
            "sidecar_stopped",
            "audit_tail_repaired",
            "keys_rotated",
        }
        assert {str(event) for event in AuditEvent} - seen == {str(event) for event in ELSEWHERE}
        arguments = ("-m", "sidecar", "audit", "verify", str(sidecar.audit_path))
        verify = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)
        assert (await verify.communicate())[1] == b""
        assert verify.returncode == 0
        written = sidecar.audit_path.read_text() + (tmp_path / "log.jsonl").read_text()
        for secret in (CANARY, sidecar.service_token, sidecar.secret.decode(), *secrets):
            assert secret not in written


async def connections(sidecar: RunningSidecar, service: Service, trail: Trail, secrets: list[str]) -> None:
    async with sidecar.user("alice") as alice:
        secrets += [alice.context_token, alice.isolation_key, alice.welcome["resume_token"]]
        await trail.expect(context_opened=1, token_minted=1)
        await service.send(alice.isolation_key, alice.context_token, f'"{CANARY}"'.encode())
        again = {"token": alice.welcome["resume_token"], "last_sequence": 0, "attempt": 1}
        async with sidecar.user("alice", resume=again) as alice:  # noqa: PLW2901 - the same user, again
            await trail.expect(socket_closed=1, context_resumed=1, token_minted=1)
        await trail.expect(socket_closed=1, context_closed=1)
    async with sidecar.user("alice") as alice:
        await trail.expect(context_opened=1, token_minted=1)
        await service.send(alice.isolation_key, alice.context_token, f'"{CANARY}"'.encode())
        async with sidecar.user("alice", mirror={"token": alice.welcome["resume_token"]}):
            await trail.expect(mirror_joined=1, token_minted=1)
        await trail.expect(socket_closed=1)
        fresh = sidecar.user_token("alice", ttl_s=900)
        secrets.append(fresh)
        await alice.frame()
        await alice.socket.send(json.dumps({"type": "refresh", "token": fresh}))
        assert (await alice.frame())["type"] == "refreshed"
        await trail.expect(user_token_refreshed=1)
    await trail.expect(socket_closed=1, context_closed=1)
    async with sidecar.user("alice", resume={"token": "0" * 64, "last_sequence": 0, "attempt": 1}):
        await trail.expect(resume_denied=1, context_opened=1, token_minted=1)
    await trail.expect(socket_closed=1, context_closed=1)
    async with sidecar.user("dora") as first, sidecar.user("dora"):
        first.socket.transport.abort()
        await first.socket.wait_closed()
        await trail.until("socket_closed", connection_id=first.welcome["connection_id"])
        await trail.mark()
        async with sidecar.user("dora"):
            await trail.expect(limit_enforced=1, context_closed=1, context_opened=1, token_minted=1)
    await trail.until("context_closed", user_id="dora", times=3)
    await trail.mark()


async def tokens(sidecar: RunningSidecar, service: Service, trail: Trail, secrets: list[str]) -> None:
    async with sidecar.user("bob") as bob:
        await trail.expect(context_opened=1, token_minted=1)
        refreshed = await service.context.RefreshContextToken(
            context_service_pb2.RefreshContextTokenRequest(), metadata=as_client(bob.context_token)
        )
        await trail.expect(token_refreshed=1)
        exchanged = await exchange(sidecar, service, bob, "send", "broadcast:user")
        await trail.expect(token_exchanged=1)
        secrets += [refreshed.context_token, exchanged]
        request = delivery_service_pb2.BroadcastRequest(
            scope=delivery_service_pb2.BROADCAST_SCOPE_USER, message=types_pb2.Message(payload=b"1")
        )
        await service.delivery.Broadcast(request, metadata=as_client(exchanged))
        await trail.expect(broadcast=1)
        await service.context.RevokeContextToken(
            context_service_pb2.RevokeContextTokenRequest(), metadata=as_client(refreshed.context_token)
        )
        await trail.expect(token_revoked=1)
        assert (await refusal(service.send(bob.isolation_key, bob.context_token))).reason == "TOKEN_REVOKED"
        await trail.expect(token_denied=1)
    await trail.expect(socket_closed=1, context_closed=1)


async def refusals(sidecar: RunningSidecar, service: Service, trail: Trail) -> None:
    async with sidecar.user("eve") as eve:
        await trail.mark()
        assert (await refusal(service.send("f" * 64, eve.context_token))).reason == "ISOLATION_VIOLATION"
        await trail.expect(isolation_violation=1)
        own = delivery_service_pb2.CloseManagerRequest(isolation_key=eve.isolation_key)
        closed = await refusal(service.delivery.CloseManager(own, metadata=as_client(eve.context_token)))
        assert closed.reason == "SCOPE_MISSING"
        await trail.expect(scope_denied=1)
    await trail.mark()
    with pytest.raises(InvalidStatus) as refused:
        await connect(sidecar.websocket_url, additional_headers={"Authorization": f"Bearer {CANARY}"}).__aenter__()
    assert refused.value.response.status_code == 401
    await trail.expect(connect_refused=1)
    await asyncio.gather(*(refusal(service.send("f" * 64, CANARY)) for _ in range(60)))
    counted = await trail.until("refusals_counted")
    records = await sidecar.audit_records("token_denied")
    singles = [record for record in records if record.get("reason") == "TOKEN_INVALID"]
    assert len(singles) + sum(record["count"] for record in counted) == 60
    trail.seen.add("refusals_counted")
    await trail.mark()


async def operators(sidecar: RunningSidecar, service: Service, trail: Trail) -> None:
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        worker = await Worker(AgentServiceStub(channel), sidecar.service_token).register()
        await trail.expect(agent_attached=1)
        await worker.finish()
    await trail.expect(agent_detached=1)
    await service.admin.ListManagers(admin_service_pb2.ListManagersRequest(), metadata=service.as_operator)
    await trail.expect(admin_call=1)
    deputy = "deputy-" + sidecar.service_token
    token_file = sidecar.audit_path.parent / "service-tokens"
    line = json.dumps({"name": "deputy", "token": deputy, "allow": ["exchange"]})
    token_file.write_text(f"{sidecar.service_token}\n{line}\n")
    request = admin_service_pb2.GetFactoryStatsRequest()
    async with asyncio.timeout(10):
        while (
            denied := await refusal(service.admin.GetFactoryStats(request, metadata=(("x-service-token", deputy),)))
        ).reason != "SERVICE_DENIED":
            assert denied.reason == "TOKEN_INVALID"
    now = Counter(record["event"] for record in await sidecar.audit_records())
    assert now["service_denied"] == 1
    trail.seen.add("service_denied")


def prepare_torn_trail(folder: Path) -> None:
    """A trail whose last record was cut by a crash."""
    with running_sidecar(folder) as sidecar:
        pass
    assert sidecar.process.returncode == 0
    with (folder / "audit.jsonl").open("a") as trail:
        trail.write('{"sequence":99')


def prepare_old_keys(folder: Path) -> None:
    """Signing keys that are due for rotation."""
    path = folder / "context.keys"
    document = json.loads(path.read_text())
    for key in document["keys"]:
        key["created_at"] -= 30 * 86_400
    path.write_text(json.dumps(document))
