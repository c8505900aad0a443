"""A second screen: joins by the resume token and a user token of the same user, and counts for nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.frames import Close as Frame

from sidecar.core.errors import ErrorReason
from sidecar.core.limits import Limits
from sidecar.core.ports import AuditEvent
from tests.ws.conftest import MakeHarness
from tests.ws.harness import OTHER_SECRET, Client, Harness, until


async def joined(edge: Harness, primary: Client) -> Client:
    client = await edge.client()
    await client.hello(token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    return client


async def test_a_mirror_gets_what_is_sent_from_then_on(edge: Harness) -> None:
    primary = await edge.welcomed()
    manager = edge.manager(primary.key)
    edge.send(manager, b'"before"')
    mirror = await joined(edge, primary)
    edge.send(manager, b'"after"')
    assert (mirror.welcome["recovery"], mirror.welcome["sequence"]) == ("mirror", 1)
    assert "resume_token" not in mirror.welcome
    for name in ("connection_id", "isolation_key", "session_id"):
        assert mirror.welcome[name] == primary.welcome[name]
    assert mirror.welcome["attach_id"] != primary.welcome["attach_id"]
    assert (await mirror.receive())["sequence"] == 2
    assert [(await primary.receive())["data"] for _ in range(2)] == ["before", "after"]
    (record,) = edge.trail.of(AuditEvent.MIRROR_JOINED)
    assert record.fields["attach_id"] == mirror.welcome["attach_id"]
    assert len(edge.trail.of(AuditEvent.CONTEXT_OPENED)) == 1
    assert len(edge.trail.of(AuditEvent.TOKEN_MINTED)) == 2


async def test_a_mirror_counts_for_nothing_else(edge: Harness) -> None:
    primary = await edge.welcomed()
    mirror = await joined(edge, primary)
    manager = edge.manager(primary.key)
    edge.send(manager, b"1")
    active = manager.last_activity
    edge.clock.advance(5)
    await mirror.send(type="ack", sequence=1)
    await mirror.send(type="cancel", id="a")
    assert (await mirror.receive())["type"] == "message"
    assert (await mirror.ask(type="message", id="a", data=1))["reason"] == "NO_AGENT"
    assert manager.outbox.acknowledged == 0
    assert manager.last_activity == active
    await mirror.connection.close(1000)
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert manager.primary is not None
    assert manager.mirrors == {}


async def test_mirrors_end_with_the_context(edge: Harness) -> None:
    primary = await edge.welcomed()
    mirror = await joined(edge, primary)
    await primary.connection.close(1000)
    assert await mirror.closed() == Frame(1001, "going_away")


async def test_a_mirror_of_a_detached_context(edge: Harness) -> None:
    primary = await edge.welcomed()
    primary.connection.transport.abort()
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    mirror = await joined(edge, primary)
    edge.send(edge.manager(primary.key), b'"away"')
    assert (await mirror.receive())["data"] == "away"


STRANGERS = {
    "another user": {"subject": "bob"},
    "another tenant": {"tenant_id": "other"},
    "another issuer": {"issuer": "second", "tenant_id": "third", "secret": OTHER_SECRET},
}


@pytest.mark.parametrize("claims", STRANGERS.values(), ids=STRANGERS.keys())
async def test_somebody_elses_token(edge: Harness, claims: dict[str, Any]) -> None:
    primary = await edge.welcomed()
    stranger = await edge.client()
    welcome = await stranger.hello(token=edge.token(**claims), mirror={"token": primary.welcome["resume_token"]})
    assert welcome["recovery"] == "denied"
    assert welcome["isolation_key"] != primary.key
    assert edge.manager(primary.key).mirrors == {}
    (record,) = edge.trail.of(AuditEvent.RESUME_DENIED)
    assert record.fields["reason"] == "not_yours"
    assert edge.counters.isolation_violations_detected == 1
    assert edge.counters.context_validation_failures == 1


@pytest.mark.parametrize("token", ["", "x", "0" * 64, "é" * 1000])
async def test_a_token_that_leads_nowhere(edge: Harness, token: str) -> None:
    client = await edge.client()
    assert (await client.hello(token=edge.token(), mirror={"token": token}))["recovery"] == "denied"
    assert edge.trail.reasons(AuditEvent.RESUME_DENIED) == ["not_found"]
    assert edge.counters.isolation_violations_detected == 0


async def test_the_token_of_an_ended_context(edge: Harness) -> None:
    primary = await edge.welcomed()
    await primary.connection.close(1000)
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    client = await edge.client()
    welcome = await client.hello(token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    assert welcome["recovery"] == "denied"


async def test_sockets_at_the_limit_and_past_it(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(connections_per_manager=3))
    primary = await edge.welcomed()
    for _ in range(2):
        await joined(edge, primary)
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    assert await client.closed() == Frame(4504, "limit_reached")
    assert edge.trail.reasons() == ["connections_per_manager"]
    assert len(edge.trail.of(AuditEvent.MIRROR_JOINED)) == 2
    assert edge.counters.resource_limit_enforcements == 1


async def test_two_that_join_the_last_place_at_once(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(connections_per_manager=2))
    primary = await edge.welcomed()
    edge.trail.hold()
    clients = [await edge.client() for _ in range(2)]
    for client in clients:
        await client.send(type="hello", token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    await edge.trail.until(lambda: edge.trail.waiting == 2)
    edge.trail.release()
    assert (await clients[0].receive())["recovery"] == "mirror"
    assert await clients[1].closed() == Frame(4504, "limit_reached")
    assert len(edge.manager(primary.key).connections) == 2


async def test_a_context_that_ends_while_a_mirror_joins(edge: Harness) -> None:
    primary = await edge.welcomed()
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.manager(primary.key).end("test", None, edge.now())
    edge.trail.release()
    assert (await client.receive())["recovery"] == "denied"


async def test_a_mirror_that_goes_while_it_joins(edge: Harness) -> None:
    primary = await edge.welcomed()
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    await edge.trail.until(lambda: edge.trail.waiting)
    client.connection.transport.abort()
    sockets = [connection.socket for connection in edge.edge._open]
    await until(lambda: any(socket is not None and socket.lost for socket in sockets))
    edge.trail.release()
    await until(lambda: edge.edge.connections == 1)
    assert edge.manager(primary.key).mirrors == {}
    assert edge.trail.of(AuditEvent.SOCKET_CLOSED) == [], "it was never the manager's"


async def test_a_mirror_without_its_record(edge: Harness) -> None:
    primary = await edge.welcomed()
    edge.trail.failing = True
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    assert await client.closed() == Frame(1013, "overloaded")
    assert edge.manager(primary.key).mirrors == {}
    assert edge.trail.reasons() == [ErrorReason.AUDIT_UNAVAILABLE.lower()]


async def test_one_frame_is_written_to_every_socket(edge: Harness) -> None:
    primary = await edge.welcomed()
    mirror = await joined(edge, primary)
    receipt = edge.send(edge.manager(primary.key), b'{"n":1}')
    assert receipt.connections == 2
    assert await primary.receive() == await mirror.receive()
