"""A client that comes back: what it gets, who is fenced, which hello counts, and what everybody else is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.frames import Close as Frame

from sidecar.core.errors import ErrorReason
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from tests.ws.conftest import MakeHarness
from tests.ws.harness import Client, Harness, masked, until
from tests.ws.test_mirrors import STRANGERS


def resume(client: Client, last_sequence: int, attempt: int = 1) -> dict[str, Any]:
    return {"token": client.welcome["resume_token"], "last_sequence": last_sequence, "attempt": attempt}


async def back(edge: Harness, client: Client, last_sequence: int, attempt: int = 1) -> Client:
    """The same user's client, after its hello."""
    again = await edge.client()
    await again.hello(token=edge.token(), resume=resume(client, last_sequence, attempt))
    return again


async def cut(edge: Harness, client: Client) -> None:
    """The client's connection breaks off, and the edge has noticed."""
    sockets = len(edge.trail.of(AuditEvent.SOCKET_CLOSED))
    client.connection.transport.abort()
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED, sockets + 1)


async def sequences(client: Client, count: int) -> list[int]:
    return [(await client.receive())["sequence"] for _ in range(count)]


async def test_what_was_missed_comes_again_and_no_more(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    for number in range(3):
        edge.send(manager, b"%d" % number)
    assert await sequences(first, 3) == [1, 2, 3]
    await cut(edge, first)
    edge.send(manager, b"3")
    again = await back(edge, first, 2)
    assert (again.welcome["recovery"], again.welcome["sequence"]) == ("full", 2)
    edge.send(manager, b"4")
    assert [(await again.receive())["data"] for _ in range(3)] == [2, 3, 4]
    for name in ("connection_id", "isolation_key", "session_id", "resume_token"):
        assert again.welcome[name] == first.welcome[name]
    assert again.welcome["attach_id"] != first.welcome["attach_id"]
    assert again.welcome["context_token"] != first.welcome["context_token"]
    assert manager.outbox.acknowledged == 2
    (record,) = edge.trail.of(AuditEvent.CONTEXT_RESUMED)
    assert record.context is manager.context
    assert record.fields == {"attach_id": again.welcome["attach_id"], "address": "127.0.0.1", "attempt": 1}
    assert len(edge.trail.of(AuditEvent.CONTEXT_OPENED)) == 1
    assert len(edge.trail.of(AuditEvent.TOKEN_MINTED)) == 2


async def test_nothing_was_ever_sent(edge: Harness) -> None:
    first = await edge.welcomed()
    await cut(edge, first)
    again = await back(edge, first, 0)
    assert (again.welcome["recovery"], again.welcome["sequence"]) == ("full", 0)
    edge.send(edge.manager(first.key), b"1")
    assert await sequences(again, 1) == [1]


async def test_the_former_socket_is_fenced_though_it_lives(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    edge.send(manager, b"1")
    again = await back(edge, first, 0)
    edge.send(manager, b"2")
    assert await first.receive() == {"type": "message", "sequence": 1, "id": f"{manager._message_id_prefix}1",
                                     "content_type": "json", "data": 1}  # fmt: skip
    assert await first.closed() == Frame(4503, "taken_over")
    assert await sequences(again, 2) == [1, 2]
    assert manager.primary is not None
    assert manager.primary.attach_id == again.welcome["attach_id"]


async def test_what_a_fenced_socket_says_does_not_count(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    edge.send(manager, b"1")
    again = await back(edge, first, 0)
    for sequence in (1, 99):  # the latter would end it with 4500
        frame = b'{"type":"ack","sequence":%d}' % sequence
        first.connection.transport.write(masked(0x1, frame))  # whatever its library says of it
    assert await first.closed() == Frame(4503, "taken_over")
    assert manager.outbox.acknowledged == 0
    assert not manager.ended
    assert await sequences(again, 1) == [1]


@pytest.mark.parametrize("stale", [0, 6, 7])
async def test_a_stale_attempt_ends_itself_and_fences_nobody(edge: Harness, stale: int) -> None:
    first = await edge.welcomed()
    current = await back(edge, first, 0, attempt=7)
    late = await edge.client()
    await late.send(type="hello", token=edge.token(), resume=resume(first, 0, stale))
    assert await late.closed() == Frame(4503, "taken_over")
    assert edge.trail.reasons() == ["stale_attempt"]
    edge.send(edge.manager(first.key), b"1")
    assert await sequences(current, 1) == [1]
    assert (await back(edge, first, 1, attempt=8)).welcome["recovery"] == "full"


async def test_a_stale_attempt_is_stale_whatever_else_it_says(edge: Harness) -> None:
    first = await edge.welcomed()
    await back(edge, first, 0, attempt=7)
    late = await edge.client()
    await late.send(type="hello", token=edge.token(), resume=resume(first, 99, 7))
    assert await late.closed() == Frame(4503, "taken_over")
    assert edge.trail.of(AuditEvent.RESUME_DENIED) == []


@pytest.mark.parametrize("kind", ["resume", "mirror"])
async def test_nobody_comes_back_to_a_sidecar_that_drains(edge: Harness, kind: str) -> None:
    first = await edge.welcomed()
    early = await edge.client()  # upgraded before
    edge.factory.draining = True
    members = {"resume": resume(first, 0), "mirror": {"token": first.welcome["resume_token"]}}
    await early.send(type="hello", token=edge.token(), **{kind: members[kind]})
    assert await early.closed() == Frame(1012, "restart")
    edge.send(edge.manager(first.key), b"1")
    assert await sequences(first, 1) == [1]


async def test_an_attempt_overtaken_while_it_is_recorded_ends_itself(edge: Harness) -> None:
    first = await edge.welcomed()
    edge.trail.hold()
    clients = [await edge.client() for _ in range(2)]
    for attempt, client in enumerate(clients, start=1):
        await client.send(type="hello", token=edge.token(), resume=resume(first, 0, attempt))
        await edge.trail.until(lambda attempt=attempt: edge.trail.waiting == attempt)  # type: ignore[misc]
    edge.trail.release()
    assert await clients[0].closed() == Frame(4503, "taken_over")
    assert (await clients[1].receive())["recovery"] == "full"
    assert len(edge.manager(first.key).connections) == 1


async def test_services_tokens_stay_good(edge: Harness) -> None:
    first = await edge.welcomed()
    again = await back(edge, first, 0)
    grants = [edge.tokens.verify(client.welcome["context_token"]) for client in (first, again)]
    assert {grant.isolation_key for grant in grants} == {first.key}


async def test_mirrors_stay(edge: Harness) -> None:
    first = await edge.welcomed()
    mirror = await edge.client()
    await mirror.hello(token=edge.token(), mirror={"token": first.welcome["resume_token"]})
    await cut(edge, first)
    again = await back(edge, first, 0)
    edge.send(edge.manager(first.key), b"1")
    assert await sequences(mirror, 1) == await sequences(again, 1) == [1]


# Gaps


async def test_what_expired_meanwhile_is_a_gap(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    await cut(edge, first)
    for ttl_s in (1.0, 1.0, 100.0, 1.0, 100.0):
        edge.send(manager, b"1", ttl_s=ttl_s)
    edge.clock.advance(2.0)
    again = await back(edge, first, 0)
    assert (again.welcome["recovery"], again.welcome["sequence"]) == ("gap", 0)
    frames = [await again.receive() for _ in range(4)]
    gaps = [frame for frame in frames if frame["type"] == "gap"]
    assert gaps == [
        {"type": "gap", "from": 1, "to": 2, "reason": "expired"},
        {"type": "gap", "from": 4, "to": 4, "reason": "expired"},
    ]
    assert [frame.get("sequence") for frame in frames] == [None, 3, None, 5]


async def test_less_than_was_acknowledged_is_a_gap(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    for _ in range(4):
        edge.send(manager, b"1")
    assert await sequences(first, 4) == [1, 2, 3, 4]
    await first.send(type="ack", sequence=3)
    await until(lambda: manager.outbox.acknowledged == 3)
    again = await back(edge, first, 1)
    assert (again.welcome["recovery"], again.welcome["sequence"]) == ("gap", 1)
    assert await again.receive() == {"type": "gap", "from": 2, "to": 3, "reason": "acknowledged"}
    assert await sequences(again, 1) == [4]
    assert manager.outbox.acknowledged == 3


async def test_what_gave_way_is_a_gap_from_where_the_client_stands(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(outbox=OutboxLimits(max_messages=2)))
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    for _ in range(6):
        edge.send(manager, b"1")
    again = await back(edge, first, 2)
    assert again.welcome["recovery"] == "gap"
    assert await again.receive() == {"type": "gap", "from": 3, "to": 4, "reason": "evicted"}
    assert await sequences(again, 2) == [5, 6]
    # It stays one for whoever has even less.
    once_more = await back(edge, first, 3, attempt=2)
    assert await once_more.receive() == {"type": "gap", "from": 4, "to": 4, "reason": "evicted"}


async def test_what_was_promised_does_not_expire_while_it_waits(make_edge: MakeHarness) -> None:
    room = 64 * 1024 * 1024  # more than the kernel takes on the way
    edge = await make_edge(Limits(queued_bytes_per_user=room, outbox=OutboxLimits(max_bytes=room)))
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    await cut(edge, first)
    large = b'"%s"' % (b"x" * 200_000)
    for _ in range(60):
        edge.send(manager, large, ttl_s=10.0)
    again = await edge.stream(receive_buffer_bytes=4_096)
    await again.upgrade(("Sec-WebSocket-Protocol", "sidecar.v1.json"))
    hello = {"type": "hello", "token": edge.token(), "resume": resume(first, 0)}
    again.writer.write(masked(0x1, json.dumps(hello).encode()))
    await until(lambda: manager.primary is not None and not manager.primary.writable)
    assert manager.outbox.cursor < 60
    edge.advance(20.0)
    edge.send(manager, b'"after"')
    frames = [json.loads((await again.frame())[1]) for _ in range(62)]
    assert frames[0]["recovery"] == "full"
    assert [frame["sequence"] for frame in frames[1:]] == list(range(1, 62))


# Denied: one answer


async def denied(edge: Harness, client: Client, welcome: dict[str, Any], reason: str) -> None:
    assert welcome["recovery"] == "denied"
    assert welcome["sequence"] == 0
    assert welcome["connection_id"] != client.welcome["connection_id"]
    assert welcome["resume_token"] != client.welcome["resume_token"]
    assert edge.trail.reasons(AuditEvent.RESUME_DENIED) == [reason]


@pytest.mark.parametrize("claims", STRANGERS.values(), ids=STRANGERS.keys())
async def test_somebody_elses_token(edge: Harness, claims: dict[str, Any]) -> None:
    first = await edge.welcomed()
    stranger = await edge.client()
    welcome = await stranger.hello(token=edge.token(**claims), resume=resume(first, 0))
    await denied(edge, first, welcome, "not_yours")
    edge.send(edge.manager(first.key), b'"for alice"')
    assert (await first.receive())["data"] == "for alice"
    assert edge.counters.isolation_violations_detected == 1
    assert edge.manager(first.key).attempt == -1


async def test_a_position_above_the_head(edge: Harness) -> None:
    first = await edge.welcomed()
    edge.send(edge.manager(first.key), b"1")
    client = await edge.client()
    welcome = await client.hello(token=edge.token(), resume=resume(first, 2))
    await denied(edge, first, welcome, "above_head")
    assert (await first.receive())["sequence"] == 1


async def test_a_context_that_has_ended(edge: Harness) -> None:
    first = await edge.welcomed()
    await first.connection.close(1000)
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    client = await edge.client()
    await denied(edge, first, await client.hello(token=edge.token(), resume=resume(first, 0)), "not_found")


async def test_a_context_that_ends_while_its_client_comes_back(edge: Harness) -> None:
    first = await edge.welcomed()
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), resume=resume(first, 0))
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.manager(first.key).end("test", None, edge.now())
    edge.trail.release()
    await denied(edge, first, await client.receive(), "not_found")


async def test_the_window_is_over(edge: Harness) -> None:
    first = await edge.welcomed()
    await cut(edge, first)
    edge.advance(120.0)
    client = await edge.client()
    await denied(edge, first, await client.hello(token=edge.token(), resume=resume(first, 0)), "not_found")


# What comes between


async def test_a_client_that_goes_while_it_comes_back(edge: Harness) -> None:
    first = await edge.welcomed()
    manager = edge.manager(first.key)
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), resume=resume(first, 0))
    await edge.trail.until(lambda: edge.trail.waiting)
    client.connection.transport.abort()
    sockets = [connection.socket for connection in edge.edge._open]
    await until(lambda: any(socket is not None and socket.lost for socket in sockets))
    edge.trail.release()
    await until(lambda: edge.edge.connections == 1)
    edge.send(manager, b"1")
    assert await sequences(first, 1) == [1]  # it was not fenced for nothing


async def test_without_its_record_nobody_is_fenced(edge: Harness) -> None:
    first = await edge.welcomed()
    edge.trail.failing = True
    client = await edge.client()
    await client.send(type="hello", token=edge.token(), resume=resume(first, 0))
    assert await client.closed() == Frame(1013, "overloaded")
    assert edge.trail.reasons() == [ErrorReason.AUDIT_UNAVAILABLE.lower()]
    edge.send(edge.manager(first.key), b"1")
    assert await sequences(first, 1) == [1]


async def test_a_detached_context_gives_way_longest_away_first(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(managers_per_user=2))
    first, second = await edge.welcomed(), await edge.welcomed()
    await cut(edge, first)
    edge.clock.advance(1.0)
    await cut(edge, second)
    await edge.welcomed()
    assert (await back(edge, second, 0)).welcome["recovery"] == "full"
    closed = edge.trail.of(AuditEvent.CONTEXT_CLOSED)
    assert [record.fields["reason"] for record in closed] == ["replaced"]
    late = await edge.client()
    await late.send(type="hello", token=edge.token(), resume=resume(first, 0))
    assert await late.closed() == Frame(4504, "limit_reached")
