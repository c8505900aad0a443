"""Clients that nobody here wrote, unchanged: Python's websocket-client, npm's ws, a browser's own WebSocket.

Each does the whole round of both protocols, with a service on the other side that has nothing but the stubs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import duration_pb2

from sidecar.api.v1 import agent_service_pb2_grpc, types_pb2
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.clients.third_party.clients import Client, Closed, Refused
from tests.clients.third_party.conftest import NewClient
from tests.rpc.workers import Event, Worker, registration
from tests.support.running import RunningSidecar, Service

EVERY_BYTE = bytes(range(256))
TEXT = "naïve – 文 \U0001f642"
NUMBERS = count()


class Partner(NamedTuple):
    """The other side of one user: a service that sends, and the worker that hears from its clients."""

    tenant: str
    service: Service
    worker: Worker

    async def event(self, kind: str) -> Event:
        event = await self.worker.event(kind)
        await self.worker.acknowledge(event)
        return event

    async def send(self, event: Event, payload: bytes, content_type: int) -> Any:
        """With what the event of its context gave."""
        return await self.service.send(
            event.isolation_key,
            event.context_token,
            payload,
            content_type=content_type,
            expected_user_id=event.context.user_id,
        )

    async def send_and_wait(self, welcome: dict[str, Any]) -> Any:
        """With the client's own token, until it was acknowledged; the receipt."""
        request = pb.SendToUserRequest(
            isolation_key=welcome["isolation_key"],
            message=types_pb2.Message(payload=b"4"),
            wait_for_ack=duration_pb2.Duration(seconds=20),
        )
        metadata = (("x-context-token", welcome["context_token"]),)
        return (await self.service.delivery.SendToUser(request, metadata=metadata, timeout=30)).receipt

    async def send_each(self, event: Event) -> None:
        """One message of each kind."""
        await self.send(event, b'{"n": 1}', types_pb2.CONTENT_TYPE_JSON)
        await self.send(event, TEXT.encode(), types_pb2.CONTENT_TYPE_TEXT)
        await self.send(event, EVERY_BYTE, types_pb2.CONTENT_TYPE_BINARY)


@pytest.fixture
async def partner(sidecar: RunningSidecar) -> AsyncIterator[Partner]:
    """Of a tenant of its own."""
    async with alone(sidecar, f"tenant-{next(NUMBERS)}") as partner:
        yield partner


@asynccontextmanager
async def alone(sidecar: RunningSidecar, tenant: str) -> AsyncIterator[Partner]:
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        worker = Worker(stub, sidecar.service_token, timeout_s=60)
        await worker.register(registration(tenant, (tenant, "")))
        yield Partner(tenant, Service(channel, sidecar.service_token), worker)


async def frame(client: Client) -> dict[str, Any]:
    """The next of the JSON protocol, which is a text."""
    text = await client.receive()
    assert isinstance(text, str)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


async def greet(client: Client, sidecar: RunningSidecar, partner: Partner, **members: Any) -> dict[str, Any]:
    """Connect and say hello; the welcome."""
    await client.connect(sidecar.websocket_url, ["sidecar.v1.json"])
    assert client.protocol == "sidecar.v1.json"
    token = sidecar.user_token("alice", partner.tenant)
    await client.send(json.dumps({"type": "hello", "token": token, **members}))
    welcome = await frame(client)
    assert welcome["type"] == "welcome"
    return welcome


async def test_messages_acknowledgements_and_the_other_way(
    new_client: NewClient, sidecar: RunningSidecar, partner: Partner
) -> None:
    client = new_client()
    welcome = await greet(client, sidecar, partner)
    assert (welcome["recovery"], welcome["sequence"]) == ("new", 0)
    opened = await partner.event("opened")
    assert opened.isolation_key == welcome["isolation_key"]
    await partner.send_each(opened)
    frames = [await frame(client) for _ in range(3)]
    assert [(one["sequence"], one["content_type"]) for one in frames] == [(1, "json"), (2, "text"), (3, "binary")]
    assert (frames[0]["data"], frames[1]["data"]) == ({"n": 1}, TEXT)
    asked = asyncio.create_task(partner.send_and_wait(welcome))
    assert (await frame(client))["sequence"] == 4
    await client.send('{"type":"ack","sequence":4}')
    assert (await asked).state == types_pb2.DELIVERY_STATE_ACKNOWLEDGED
    await client.send(json.dumps({"type": "message", "id": "m-1", "data": {"question": TEXT}}))
    assert await frame(client) == {"type": "accepted", "id": "m-1"}
    message = (await partner.event("message")).message
    assert (message.message_id, json.loads(message.payload)) == ("m-1", {"question": TEXT})
    await client.close()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1000
    assert (await partner.event("closed")).closed.code == 1000


async def test_a_lost_connection_is_resumed(new_client: NewClient, sidecar: RunningSidecar, partner: Partner) -> None:
    first = new_client()
    welcome = await greet(first, sidecar, partner)
    opened = await partner.event("opened")
    await partner.send_each(opened)
    assert [(await frame(first))["sequence"] for _ in range(3)] == [1, 2, 3]
    await first.lose()
    await partner.event("away")
    missed = await partner.send(opened, b'"missed"', types_pb2.CONTENT_TYPE_JSON)
    assert (missed.sequence, missed.state) == (4, types_pb2.DELIVERY_STATE_QUEUED)
    second = new_client()
    resume = {"token": welcome["resume_token"], "last_sequence": 2, "attempt": 1}
    again = await greet(second, sidecar, partner, resume=resume)
    assert (again["recovery"], again["sequence"]) == ("full", 2)
    assert again["connection_id"] == welcome["connection_id"]
    await partner.event("back")
    await partner.send(opened, b'"after"', types_pb2.CONTENT_TYPE_JSON)
    frames = [await frame(second) for _ in range(3)]
    assert [one["sequence"] for one in frames] == [3, 4, 5]
    assert [one["data"] for one in frames[1:]] == ["missed", "after"]


async def test_the_raw_protocol(new_client: NewClient, sidecar: RunningSidecar, partner: Partner) -> None:
    client = new_client()
    token = sidecar.user_token("alice", partner.tenant)
    await client.connect(sidecar.websocket_url, ["sidecar.v1.raw"], token)
    assert client.protocol == "sidecar.v1.raw"
    opened = await partner.event("opened")
    assert client.connection_id == (opened.context.connection_id if client.sets_headers else "")
    await partner.send_each(opened)
    assert [await client.receive() for _ in range(3)] == ['{"n": 1}', TEXT, EVERY_BYTE]
    await client.send(TEXT)
    await client.send(EVERY_BYTE)
    messages = [(await partner.event("message")).message for _ in range(2)]
    assert [one.payload for one in messages] == [TEXT.encode(), EVERY_BYTE]
    assert [one.message_id for one in messages] == ["", ""]
    await client.close()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1000
    assert (await partner.event("closed")).closed.code == 1000


async def test_no_subprotocol_at_all_is_raw(new_client: NewClient, sidecar: RunningSidecar, partner: Partner) -> None:
    client = new_client()
    token = sidecar.user_token("alice", partner.tenant)
    if not client.sets_headers:  # its token must be a subprotocol, and that alone is none
        with pytest.raises(Refused) as refused:
            await client.connect(sidecar.websocket_url, [], token)
        assert refused.value.status == 400
        return
    await client.connect(sidecar.websocket_url, [], token)
    assert client.protocol == ""
    opened = await partner.event("opened")
    await partner.send(opened, b'{"n": 1}', types_pb2.CONTENT_TYPE_JSON)
    assert await client.receive() == '{"n": 1}'


async def test_a_bad_token_is_refused(new_client: NewClient, sidecar: RunningSidecar) -> None:
    over = sidecar.user_token("alice", now=1_000_000_000.0)
    for protocol in ("sidecar.v1.raw", "sidecar.v1.json"):
        with pytest.raises(Refused) as refused:
            await new_client().connect(sidecar.websocket_url, [protocol], over)
        assert refused.value.status == 401
    client = new_client()
    await client.connect(sidecar.websocket_url, ["sidecar.v1.json"])
    await client.send(json.dumps({"type": "hello", "token": over}))
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 4501


async def test_a_bad_frame_is_told_with_its_code(
    new_client: NewClient, sidecar: RunningSidecar, partner: Partner
) -> None:
    client = new_client()
    await greet(client, sidecar, partner)
    await client.send('{"type":"ack","sequence":9}')
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 4500
