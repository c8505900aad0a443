"""Tools that know nothing of the contract: what they learn by reflection, in development mode, is enough to call it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from websockets.asyncio.client import connect

from tests.clients.third_party.dynamic import Dynamic, Members
from tests.support.development_mode import DevelopmentMode, development_mode
from tests.support.running import RunningSidecar, User
from tests.support.tools import lacking

DELIVERY, CONTEXT = "sidecar.api.v1.DeliveryService", "sidecar.api.v1.ContextService"
HEALTH = "grpc.health.v1.Health"
SERVICES = {
    *(DELIVERY, CONTEXT, "sidecar.api.v1.AgentService", "sidecar.api.v1.AdminService", HEALTH),
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(scope="module")
def development() -> Iterator[DevelopmentMode]:
    with development_mode([sys.executable, "-m", "sidecar", "serve", "--dev"]) as running:
        yield running


@pytest.fixture
def dynamic(development: DevelopmentMode) -> Iterator[Dynamic]:
    with grpc.insecure_channel(development.addresses["grpc"]) as channel:
        yield Dynamic(channel)


@pytest.fixture
async def alice(development: DevelopmentMode) -> AsyncIterator[User]:
    minted = await asyncio.to_thread(development.post, "/dev/token", {"sub": "alice"})
    async with connect(development.addresses["websocket"], subprotocols=["sidecar.v1.json"]) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "hello", "token": minted["token"]}))
        yield User("alice", socket, json.loads(await socket.recv()))


async def message(alice: User) -> object:
    """The next that is none of the demo agent's."""
    while (frame := await alice.frame()).get("event") == "probe" or "stream" in frame:
        pass
    return frame["data"]


async def test_every_service_is_told_of(dynamic: Dynamic) -> None:
    assert await asyncio.to_thread(dynamic.services) == SERVICES


async def test_a_message_reaches_its_user(dynamic: Dynamic, alice: User) -> None:
    token = (("x-context-token", alice.context_token),)
    found = await asyncio.to_thread(dynamic.unary, CONTEXT, "GetContext", {}, token)
    assert (found["isolation_key"], found["context"]["user_id"]) == (alice.isolation_key, "alice")
    request = {
        "isolation_key": alice.isolation_key,
        "message": {"payload": base64.b64encode(b'{"dynamic": 1}').decode()},
        "expected_user_id": "alice",
    }
    answer = await asyncio.to_thread(dynamic.unary, DELIVERY, "SendToUser", request, token)
    assert answer["receipt"]["state"] == "DELIVERY_STATE_WRITTEN"
    assert await message(alice) == {"dynamic": 1}


async def test_another_key_is_refused_with_its_reason(dynamic: Dynamic, alice: User) -> None:
    request = {"isolation_key": "f" * 64, "message": {"payload": base64.b64encode(b"{}").decode()}}
    with pytest.raises(grpc.RpcError) as refused:
        await asyncio.to_thread(
            dynamic.unary, DELIVERY, "SendToUser", request, (("x-context-token", alice.context_token),)
        )
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "ISOLATION_VIOLATION" in str(refused.value.trailing_metadata())


async def test_a_stream_of_lanes(dynamic: Dynamic, alice: User) -> None:
    frames: list[Members] = [
        {"open_lane": {"lane": 1, "isolation_key": alice.isolation_key, "context_token": alice.context_token}},
        {"messages": {"items": [{"lane": 1, "message": {"payload": base64.b64encode(b'"on a lane"').decode()}}]}},
    ]
    answers = await asyncio.to_thread(dynamic.both_ways, DELIVERY, "Deliver", frames)
    assert answers[0] == {"lane_opened": {"lane": 1}}
    assert answers[1]["receipts"]["items"][0]["receipt"]["state"] == "DELIVERY_STATE_WRITTEN"
    assert await message(alice) == "on a lane"


async def test_health_is_called_as_anything_else(dynamic: Dynamic) -> None:
    assert await asyncio.to_thread(dynamic.unary, HEALTH, "Check", {"service": DELIVERY}) == {"status": "SERVING"}
    watching = dynamic.from_stream(HEALTH, "Watch", {})
    assert await asyncio.to_thread(next, watching) == {"status": "SERVING"}


async def grpcurl(*arguments: str) -> str:
    """What it prints."""
    if shutil.which("grpcurl") is None:
        lacking("grpcurl")
    process = await asyncio.create_subprocess_exec("grpcurl", "-plaintext", *arguments, stdout=PIPE, stderr=PIPE)
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_grpcurl_lists_and_describes(development: DevelopmentMode) -> None:
    address = development.addresses["grpc"]
    assert set((await grpcurl(address, "list")).split()) == SERVICES
    assert "rpc SendToUser" in await grpcurl(address, "describe", DELIVERY)


async def test_grpcurl_checks_health(development: DevelopmentMode) -> None:
    answer = await grpcurl("-d", json.dumps({"service": DELIVERY}), development.addresses["grpc"], f"{HEALTH}/Check")
    assert json.loads(answer) == {"status": "SERVING"}


async def test_outside_development_there_is_none(sidecar: RunningSidecar) -> None:
    with grpc.insecure_channel(sidecar.grpc_target) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(Dynamic(channel).services)
        assert isinstance(refused.value, grpc.Call)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
