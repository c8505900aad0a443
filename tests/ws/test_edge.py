"""The listener: starts, counts, stops in order and in time; leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from pathlib import Path

import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.frames import Close as Frame
from websockets.typing import Subprotocol

from sidecar.core.ports import AuditEvent
from sidecar.security.audit import JsonLinesAuditTrail
from sidecar.security.audit_verify import verify_file
from sidecar.ws.connection import EdgeConnection
from tests.ws.conftest import MakeHarness
from tests.ws.harness import JSON_PROTOCOL, FakeClock, Harness, closed, masked, until


async def test_a_port_in_use(make_edge: MakeHarness) -> None:
    edge = await make_edge()
    second = Harness({"port": edge.edge.port})
    with pytest.raises(OSError, match="in use"):
        await second.start()
    await second.close()


async def test_connections_are_counted(edge: Harness) -> None:
    client = await edge.welcomed()
    raw = await edge.raw("bob")
    await edge.client()
    assert edge.edge.connections == 3
    await client.connection.close()
    await raw.close()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED, 2)
    await until(lambda: edge.edge.connections == 1)


async def test_a_connection_that_has_ended_is_gone_without_the_collector(edge: Harness) -> None:
    gc.collect()
    gc.disable()
    try:
        client = await edge.welcomed()
        raw = await edge.raw("bob")
        await client.connection.close()
        await raw.close()
        await edge.trail.seen(AuditEvent.CONTEXT_CLOSED, 2)
        await until(lambda: edge.edge.connections == 0)
        await until(lambda: not any(type(thing) is EdgeConnection for thing in gc.get_objects()))
    finally:
        gc.enable()


async def test_close(edge: Harness) -> None:
    client = await edge.welcomed()
    raw = await edge.raw("bob")
    waiting = await edge.client()
    silent = await edge.stream()
    closing = asyncio.create_task(edge.edge.close())
    frame = await client.receive()
    assert frame["type"] == "draining"
    assert 0 <= frame["reconnect_in_ms"] < 5_000
    assert await client.closed() == Frame(1012, "restart")
    assert await closed(raw) == Frame(1012, "restart")
    assert await waiting.closed() == Frame(1012, "restart")
    assert await silent.ended() == b""
    await closing
    await edge.edge.close()
    assert edge.edge.connections == 0
    assert len(edge.factory) == 1, "a JSON context is detached, a raw one ended"
    with pytest.raises(ConnectionRefusedError):
        await edge.stream()


async def test_a_drain_goes_on_when_a_client_leaves_before_its_turn(edge: Harness) -> None:
    clients = [await edge.welcomed(f"user{number}") for number in range(3)]
    hurry = asyncio.Event()
    draining = asyncio.create_task(edge.edge.drain(600.0, hurry))
    await until(lambda: sum(edge.manager(client.key).primary is None for client in clients) == 1)
    leaving, staying = (client for client in clients if edge.manager(client.key).primary is not None)
    await leaving.connection.close()
    await until(lambda: edge.edge.connections == 1)
    hurry.set()
    await draining
    assert (await staying.receive())["type"] == "draining"
    assert await staying.closed() == Frame(1012, "restart")


async def test_close_does_not_wait_for_a_client_that_does_not_read(make_edge: MakeHarness) -> None:
    edge = await make_edge(close_timeout_s=0.05)
    stream = await edge.stream()
    await stream.hello(edge.token())
    async with asyncio.timeout(10):
        await edge.edge.close()
    assert edge.edge.connections == 0


async def test_a_handshake_under_way_when_the_edge_stops(edge: Harness) -> None:
    edge.trail.hold()
    connecting = asyncio.create_task(edge.ask(("Authorization", f"Bearer {edge.token()}")))
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.edge.stop_accepting()
    edge.trail.release()
    assert await connecting == (503, "draining\n")
    assert len(edge.factory) == 0


async def test_close_does_not_wait_for_a_trail_that_hangs(make_edge: MakeHarness) -> None:
    edge = await make_edge(close_timeout_s=0.05)
    client = await edge.welcomed()
    edge.trail.hold()
    await client.send(type="refresh", token=edge.token())
    connecting = asyncio.create_task(edge.ask(("Authorization", f"Bearer {edge.token('bob')}")))
    await edge.trail.until(lambda: edge.trail.waiting == 2)
    async with asyncio.timeout(3):
        await edge.edge.close()
    assert edge.edge.connections == 0
    assert edge.trail.waiting == 0
    assert len(edge.factory) == 1, "alice's, detached"
    await asyncio.gather(connecting, return_exceptions=True)


async def test_a_hello_after_the_edge_closed_the_socket(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.upgrade(("Sec-WebSocket-Protocol", JSON_PROTOCOL))
    closing = asyncio.create_task(edge.edge.close())
    assert await stream.close_frame() == (1012, "restart")
    stream.writer.write(masked(0x1, json.dumps({"type": "hello", "token": edge.token()}).encode()))
    stream.writer.write(masked(0x8, (1012).to_bytes(2, "big")))
    await stream.ended()
    await closing
    assert edge.trail.records == []


async def test_repr(edge: Harness) -> None:
    client = await edge.welcomed()
    assert repr(edge.edge) == "<WebSocketEdge open=1 half_open=0 stopping=False>"
    socket = edge.manager(client.key).primary
    assert repr(socket) == f"<ClientSocket {client.welcome['attach_id']} writable>"


async def test_close_before_start() -> None:
    await Harness().edge.close()


async def test_nothing_is_left(make_edge: MakeHarness) -> None:
    edge = await make_edge()
    before = asyncio.all_tasks()
    for number in range(5):
        await edge.welcomed(f"user{number}")
        await edge.raw(f"user{number}")
        await edge.client()
    await edge.ask(("Host", None))
    await edge.edge.close()
    edge.factory.end_all(Frame(1012, "restart"), "test", edge.now())  # type: ignore[arg-type]
    gc.collect()
    left = {task for task in asyncio.all_tasks() - before if "conn_handler" in repr(task) or "renew" in repr(task)}
    assert left == set()
    assert len(edge.factory) == 0
    assert not edge.factory._by_resume_digest
    assert edge.edge._half_open == set()


@pytest.mark.parametrize("when", ["before the start", "after the start"])
async def test_the_library_does_not_log_tokens(when: str, caplog: pytest.LogCaptureFixture) -> None:
    edge = Harness()
    if when == "before the start":
        caplog.set_level(logging.DEBUG, "websockets.server")
    await edge.start()
    if when == "after the start":
        caplog.set_level(logging.DEBUG, "websockets.server")
    token = edge.token()
    connection = await edge.connect(JSON_PROTOCOL, f"bearer.{token}")
    await connection.close()
    await edge.close()
    said = [record.getMessage() for record in caplog.records if record.name == "websockets.server"]
    assert not any(token in line or "Sec-WebSocket" in line for line in said)


async def test_a_session_that_fails_closes_its_socket_alone(edge: Harness) -> None:
    other = await edge.welcomed("bob")
    client = await edge.welcomed()
    manager = edge.manager(client.key)

    edge.trail.broken = True
    await client.send(type="refresh", token=edge.token())
    assert await client.closed() == Frame(1001, "going_away")
    assert manager.primary is None
    assert (await other.ask(type="what"))["type"] == "error"


async def test_a_handshake_that_fails(edge: Harness, caplog: pytest.LogCaptureFixture) -> None:
    edge.trail.broken = True
    assert await edge.ask(("Authorization", f"Bearer {edge.token()}")) == (500, "internal error\n")
    assert len(edge.factory) == 0
    assert edge.trail.reasons() == ["internal"]
    assert "nobody is to see" not in caplog.text


async def test_with_the_real_trail(tmp_path: Path) -> None:
    clock = FakeClock()
    trail = JsonLinesAuditTrail(tmp_path / "audit.jsonl", clock)
    harness = Harness(audit=trail, clock=clock)
    trail.start()
    await harness.start()
    client = await harness.welcomed()
    await client.connection.close()
    await harness.ask()
    await harness.close()
    await trail.close()
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert events[:2] == ["context_opened", "token_minted"]
    assert sorted(events[2:]) == ["connect_refused", "context_closed", "socket_closed"]
    assert verify_file(tmp_path / "audit.jsonl").fault is None


def test_under_uvloop() -> None:
    """The loop that the sidecar runs on: a whole life of a socket, a stalled one, and the end."""

    async def life() -> None:
        edge = Harness({"close_timeout_s": 0.05})
        await edge.start()
        async with connect(edge.url, subprotocols=[Subprotocol(JSON_PROTOCOL)], proxy=None) as client:
            await client.send(json.dumps({"type": "hello", "token": edge.token()}))
            welcome = json.loads(await client.recv())
            edge.send(edge.manager(welcome["isolation_key"]), b"[1]")
            assert json.loads(await client.recv())["data"] == [1]
        await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
        stream = await edge.stream(receive_buffer_bytes=4_096)
        key = (await stream.hello(edge.token()))["isolation_key"]
        manager = edge.manager(key)
        while manager.primary is not None and manager.primary.writable:
            edge.send(manager, b'"' + b"x" * 200_000 + b'"')
        edge.advance(30)
        assert manager.primary is None
        await edge.close()
        assert edge.edge.connections == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())
