"""The raw protocol: payloads as they are, at most once, one context a socket."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import Close as Frame

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import ContentType, DeliveryState
from sidecar.core.ports import AuditEvent
from tests.ws.harness import RAW_PROTOCOL, Harness, closed


def manager_of(edge: Harness, connection: ClientConnection) -> IsolatedWebSocketManager:
    assert connection.response is not None
    return edge.manager_of(connection.response.headers["Sidecar-Connection-Id"])


@pytest.mark.parametrize("offers", [(), (RAW_PROTOCOL,)])
async def test_payloads(edge: Harness, offers: tuple[str, ...]) -> None:
    connection = await edge.raw("alice", *offers)
    manager = manager_of(edge, connection)
    edge.send(manager, b' {"a": 1}')
    edge.send(manager, "grüße".encode(), content_type=ContentType.TEXT)
    receipt = edge.send(manager, b"\x00\xff", content_type=ContentType.BINARY, event_type="e", headers={"h": "v"})
    assert receipt.state is DeliveryState.WRITTEN
    assert [await connection.recv() for _ in range(3)] == [' {"a": 1}', "grüße", b"\x00\xff"]
    assert manager.outbox.entries == {}, "what is written has left the outbox"
    (record,) = edge.trail.of(AuditEvent.CONTEXT_OPENED)
    assert record.fields["protocol"] == "raw"
    assert edge.trail.of(AuditEvent.TOKEN_MINTED) == []


async def test_what_it_sends_is_activity_and_nothing_else(edge: Harness) -> None:
    connection = await edge.raw()
    manager = manager_of(edge, connection)
    edge.clock.advance(10)
    await connection.send('{"type":"ack","sequence":99}')
    await connection.send(b"\x00")
    await (await connection.ping())
    assert manager.last_activity == edge.now()
    edge.send(manager, b"1")
    assert await connection.recv() == "1"


@pytest.mark.parametrize("code", [1000, 1001])
async def test_the_context_ends_with_its_socket(edge: Harness, code: int) -> None:
    connection = await edge.raw()
    await connection.close(code)
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert len(edge.factory) == 0


async def test_the_context_ends_with_a_lost_socket(edge: Harness) -> None:
    connection = await edge.raw()
    connection.transport.abort()
    (record,) = await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert record.fields["reason"] == "socket_lost"


async def test_closed_by_the_manager(edge: Harness) -> None:
    connection = await edge.raw()
    manager = manager_of(edge, connection)
    manager.end("test", catalogued(CloseCode.REVOKED), edge.now())
    assert await closed(connection) == Frame(4506, "revoked")


async def test_the_user_token_ends_it_without_a_warning(edge: Harness) -> None:
    connection = await edge.connect(token=edge.token(ttl_s=100))
    edge.advance(50)
    edge.advance(50)
    assert await closed(connection) == Frame(4000, "token_expired")
    assert len(edge.factory) == 0


async def test_a_mirror_has_no_token_to_join_by(edge: Harness) -> None:
    await edge.raw()
    assert not edge.factory._by_resume_digest
