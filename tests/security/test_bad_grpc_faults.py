"""A bug in a handler, a store that fails, a trail that cannot be written: what callers of a running sidecar are told.

Each case: the exact answer, the records that it adds, and a bystander whose traffic goes on.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from google.rpc import status_pb2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from sidecar.api.v1 import admin_service_pb2 as admin_pb
from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.security.audit_verify import verify_file
from tests.rpc.rig import TIMEOUT_S, Refused, incident_id, refused
from tests.support.faulty_sidecar import BUG, UNKNOWN, UNREACHABLE
from tests.support.running import User
from tests.support.stage import Caller, Stage, check_status, staged
from tests.support.ways import METHODS, SENDING, Way, as_client, by_batch, by_event, by_unary

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNAVAILABLE = Refused("UNAVAILABLE", "AUDIT_UNAVAILABLE", retry_s=1.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("faults"), module="tests.support.faulty_sidecar") as stage:
        yield stage


@asynccontextmanager
async def somebody(stage: Stage, subject: str) -> AsyncIterator[User]:
    """A user of one test, whose context is gone, and recorded so, before the next one."""
    async with stage.sidecar.user(subject) as user:
        await stage.know(user)
        await stage.trail.mark()
        yield user
    await stage.trail.until("context_closed", connection_id=user.welcome["connection_id"])
    await stage.trail.mark()


def incidents(stage: Stage) -> dict[str, dict[str, Any]]:
    """The log's incidents by their id."""
    lines = (json.loads(line) for line in (stage.folder / "log.jsonl").read_text().splitlines())
    return {line["incident_id"]: line for line in lines if line["event"] == "incident"}


async def broadcast(caller: Caller, stage: Stage, user: User, payload: str) -> status_pb2.Status:
    attempt = stage.attempt(user, payload.encode())
    request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=attempt.message)
    return await refused(caller.delivery.Broadcast(request, **as_client(attempt.token)))


def check_incident(stage: Stage, status: status_pb2.Status, method: str, user: User) -> None:
    """The caller has an id and nothing else; the log has where it was, and nothing of what was sent."""
    stage.log_events.append("incident")
    told = incidents(stage)[incident_id(status)]
    assert (told["method"], told["error"]) == (method, "RuntimeError")
    assert told["frames"][-1].endswith(" append")
    for secret in (user.isolation_key, stage.tokens[user.isolation_key], "please"):
        assert secret not in json.dumps(told)
        assert secret.encode() not in status.SerializeToString()


@pytest.mark.parametrize("way", [*SENDING, by_event], ids=METHODS.get)
async def test_a_bug_in_a_handler(stage: Stage, way: Way) -> None:
    """It costs its own message: what stands beside it in a batch or on a stream is accepted."""
    async with somebody(stage, "mallory") as mallory, stage.caller() as caller, stage.seen():
        status = await way(caller, stage, stage.attempt(mallory, BUG.encode()))
        check_incident(stage, status, METHODS[way], mallory)


async def test_a_bug_in_a_broadcast(stage: Stage) -> None:
    async with somebody(stage, "mallory") as mallory, stage.caller() as caller, stage.seen(broadcast=1):
        check_incident(stage, await broadcast(caller, stage, mallory, BUG), "Broadcast", mallory)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(UNREACHABLE, "STORAGE_UNAVAILABLE"), (UNKNOWN, "OUTCOME_UNKNOWN")],
    ids=["out of reach", "unknown"],
)
@pytest.mark.parametrize("way", [*SENDING, by_event], ids=METHODS.get)
async def test_a_store_that_fails(stage: Stage, way: Way, payload: str, reason: str) -> None:
    """Nothing was appended: the next message has the sequence."""
    async with somebody(stage, "erin") as erin, stage.caller() as caller, stage.seen():
        attempt = stage.attempt(erin, payload.encode())
        status = await way(caller, stage, attempt)
        assert check_status(status, attempt.token, attempt.key, "please") == Refused("UNAVAILABLE", reason, retry_s=1.0)
        await stage.untouched(erin)


@contextmanager
def full_disk(stage: Stage) -> Iterator[None]:
    """No file of the process may grow beyond the trail as it is now (setrlimit(2), EFBIG)."""
    process, size = stage.sidecar.process.pid, stage.sidecar.audit_path.stat().st_size
    _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (most, most))


async def test_a_full_audit_disk(stage: Stage) -> None:
    """Nothing is granted, all else goes on; what was taken away and refused meanwhile is recorded afterwards."""
    async with somebody(stage, "dora") as dora, somebody(stage, "frank") as frank, stage.caller() as caller:
        doomed = await stage.exchange(stage.alice, "send")
        await stage.trail.mark()
        with full_disk(stage):
            await grants_are_refused(stage, caller)
            await connecting_is_refused(stage)
            await sending_goes_on(stage, caller)
            await refusing_goes_on(stage, caller)
            await taking_away_goes_on(stage, caller, dora, frank, doomed)
            await stage.bystander.goes_on(2)
        await stage.trail.until("audit_interrupted", error="EFBIG")
        added = Counter(record["event"] for record in await stage.trail.added())
        looks = added.pop("admin_call")
        assert looks >= 2  # the one DisconnectUser and those that looked until the trail was written again
        assert added == {
            "audit_interrupted": 1,
            "connect_refused": 1,
            "isolation_violation": 1,
            "token_denied": 2,
            "token_revoked": 1,
            "socket_closed": 3,
            "context_closed": 3,
        }
        disconnections = [r for r in await stage.sidecar.audit_records("admin_call") if r["method"] == "DisconnectUser"]
        assert [record["user_id"] for record in disconnections] == ["dora"]
        assert verify_file(stage.sidecar.audit_path).ok
    async with stage.sidecar.user("grace") as grace:
        await stage.trail.expect(context_opened=1, token_minted=1)
    await stage.trail.until("context_closed", connection_id=grace.welcome["connection_id"])


async def grants_are_refused(stage: Stage, caller: Caller) -> None:
    exchange = context_pb.ExchangeContextTokenRequest(
        user_token=stage.sidecar.user_token("alice"), connection_id=stage.alice.welcome["connection_id"]
    )
    operator: dict[str, Any] = {"metadata": caller.as_operator, "timeout": TIMEOUT_S}
    client = as_client(stage.alice.context_token)
    for call in (
        caller.context.ExchangeContextToken(exchange, **operator),
        caller.context.RefreshContextToken(context_pb.RefreshContextTokenRequest(), **client),
        caller.admin.GetFactoryStats(admin_pb.GetFactoryStatsRequest(), **operator),
        caller.admin.GetSecurityStats(admin_pb.GetSecurityStatsRequest(), **operator),
        caller.admin.ListManagers(admin_pb.ListManagersRequest(), **operator),
    ):
        assert check_status(await refused(call)) == UNAVAILABLE


async def connecting_is_refused(stage: Stage) -> None:
    async with connect(stage.sidecar.websocket_url, subprotocols=["sidecar.v1.json"], compression=None) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "hello", "token": stage.sidecar.user_token("grace")}))
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(socket.recv(), TIMEOUT_S)
        assert (socket.close_code, socket.close_reason) == (1013, "overloaded")


async def sending_goes_on(stage: Stage, caller: Caller) -> None:
    carol, client = stage.carol, as_client(stage.tokens[stage.carol.isolation_key])
    await caller.send(carol.isolation_key, carol.context_token)
    await stage.went_to(carol, 1)
    event = pb.EmitCriticalEventRequest(isolation_key=carol.isolation_key, event_type="event", data=b"{}")
    await caller.delivery.EmitCriticalEvent(event, **client)
    await stage.went_to(carol, 1)
    bad_message = stage.attempt(payload=b"{")
    assert check_status(await by_batch(caller, stage, bad_message)).reason == "BAD_REQUEST"
    await caller.context.GetContext(context_pb.GetContextRequest(), **client)
    await caller.delivery.GetManagerStats(pb.GetManagerStatsRequest(isolation_key=carol.isolation_key), **client)


async def refusing_goes_on(stage: Stage, caller: Caller) -> None:
    foreign = replace(stage.attempt(), key=stage.carol.isolation_key)
    assert check_status(await by_unary(caller, stage, foreign)).reason == "ISOLATION_VIOLATION"
    garbage = replace(stage.attempt(), token="garbage")
    assert check_status(await by_unary(caller, stage, garbage)).reason == "TOKEN_INVALID"


async def taking_away_goes_on(stage: Stage, caller: Caller, dora: User, frank: User, doomed: str) -> None:
    await caller.context.RevokeContextToken(context_pb.RevokeContextTokenRequest(), **as_client(doomed))
    assert check_status(await by_unary(caller, stage, replace(stage.attempt(), token=doomed))).reason == "TOKEN_REVOKED"
    disconnect = admin_pb.DisconnectUserRequest(user_id="dora")
    answer = await caller.admin.DisconnectUser(disconnect, metadata=caller.as_operator, timeout=TIMEOUT_S)
    assert (answer.managers, answer.connections) == (1, 1)
    await dora.socket.wait_closed()
    close = pb.CloseManagerRequest(isolation_key=frank.isolation_key)
    await caller.delivery.CloseManager(close, **as_client(stage.tokens[frank.isolation_key]))
    await frank.socket.wait_closed()
    assert (dora.socket.close_code, frank.socket.close_code) == (4505, 4505)
