"""The JSON protocol over real sockets: the first frame, what a client may say, tokens in band."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from websockets.frames import Close as Frame

from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.errors import ErrorReason, IsolationViolation
from sidecar.core.events import Draining
from sidecar.core.identity import Scope
from sidecar.core.limits import Limits
from sidecar.core.message import ContentType
from sidecar.core.ports import AuditEvent
from tests.ws.conftest import MakeHarness
from tests.ws.harness import JSON_PROTOCOL, NOW, OTHER_SECRET, Client, Harness


async def test_welcome(make_edge: MakeHarness) -> None:
    edge = await make_edge(idle_timeout_s=1800.0, resume_window_s=90.5, client_scopes=(Scope.SEND,))
    client = await edge.client()
    welcome = await client.hello(token=edge.token(session_id="s-7"))
    manager = edge.manager(welcome["isolation_key"])
    grant = edge.tokens.verify(welcome["context_token"])
    assert set(welcome) == {
        "type",
        "connection_id",
        "session_id",
        "attach_id",
        "isolation_key",
        "context_token",
        "context_token_expires_at",
        "resume_token",
        "recovery",
        "sequence",
        "limits",
    }
    assert manager.primary is not None
    assert welcome["attach_id"] == manager.primary.attach_id
    assert welcome["connection_id"] == manager.context.connection_id
    assert welcome["session_id"] == "s-7"
    assert (welcome["recovery"], welcome["sequence"]) == ("new", 0)
    assert len(bytes.fromhex(welcome["resume_token"])) == 32
    assert grant.isolation_key == welcome["isolation_key"]
    assert grant.scopes == frozenset({Scope.SEND})
    assert welcome["context_token_expires_at"] == NOW + 900
    assert welcome["limits"] == {
        "max_message_bytes": 262_144,
        "max_inbound_bytes": 65_536,
        "idle_timeout_s": 1800,
        "resume_window_s": 90.5,
    }


async def test_the_records_come_before_the_welcome(edge: Harness) -> None:
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    await edge.trail.until(lambda: edge.trail.waiting)
    (manager,) = edge.factory
    assert manager.primary is not None, "a context being made is attached"
    edge.send(manager, b'"early"')
    edge.trail.release()
    assert (await client.receive())["type"] == "welcome"
    assert (await client.receive())["data"] == "early"
    assert [record.event for record in edge.trail.records] == [AuditEvent.CONTEXT_OPENED, AuditEvent.TOKEN_MINTED]
    opened, minted = edge.trail.records
    assert opened.context is manager.context
    assert opened.fields == {"attach_id": manager.primary.attach_id, "address": "127.0.0.1", "protocol": "json"}
    assert minted.fields["scopes"] == "send emit stats"


@pytest.mark.parametrize("place", ["header", "subprotocol", "hello"])
async def test_the_three_places_of_a_token(edge: Harness, place: str) -> None:
    token = edge.token()
    if place == "header":
        client = await edge.client(token=token)
    elif place == "subprotocol":
        client = Client(await edge.connect(JSON_PROTOCOL, f"bearer.{token}"))
    else:
        client = await edge.client()
    await client.hello(**({"token": token} if place == "hello" else {}))
    assert edge.manager(client.key).context.user_id == "alice"


FIRST_FRAMES: dict[str, tuple[str | bytes, bool, int, str, str]] = {
    "no token": ('{"type":"hello"}', False, 4501, "token_invalid", "token_refused"),
    "empty token": ('{"type":"hello","token":""}', False, 4501, "token_invalid", "token_refused"),
    "bad token": ('{"type":"hello","token":"a.b.c"}', False, 4501, "token_invalid", "token_refused"),
    "long token": (json.dumps({"type": "hello", "token": "x" * 60_000}), False, 4501, "token_invalid", "token_refused"),
    "bad token and resume": (
        '{"type":"hello","token":"x","resume":{"token":"r","last_sequence":1,"attempt":1}}',
        False,
        4501,
        "token_invalid",
        "token_refused",
    ),
    "second token": ('{"type":"hello","token":"a.b.c"}', True, 4500, "bad_frame", "two_tokens"),
    "ack first": ('{"type":"ack","sequence":0}', True, 4500, "bad_frame", "no_hello"),
    "message first": ('{"type":"message","id":"a","data":1}', False, 4500, "bad_frame", "no_hello"),
    "unknown first": ('{"type":"what"}', False, 4500, "bad_frame", "no_hello"),
    "not JSON": ("hello", False, 4500, "bad_frame", "bad_frame"),
    "bad resume": ('{"type":"hello","resume":{}}', True, 4500, "bad_frame", "bad_frame"),
    "binary": (b'{"type":"hello"}', True, 1003, "unsupported_data", "binary_frame"),
}


@pytest.mark.parametrize(("frame", "token", "code", "text", "reason"), FIRST_FRAMES.values(), ids=FIRST_FRAMES.keys())
async def test_first_frames(edge: Harness, frame: str | bytes, token: bool, code: int, text: str, reason: str) -> None:
    client = await edge.client(token=edge.token() if token else None)
    await client.connection.send(frame)
    assert await client.closed() == closing(code, text)
    assert edge.trail.reasons() == [reason]
    assert len(edge.trail.records) == 1
    assert len(edge.factory) == 0
    assert edge.counters.unauthorized_access_attempts == (1 if code == 4501 else 0)


def closing(code: int, text: str) -> Frame:
    return Frame(code, text)


async def test_hello_timeout(make_edge: MakeHarness) -> None:
    edge = await make_edge(hello_timeout_s=0.02)
    client = await edge.client()
    assert await client.closed() == closing(4001, "hello_timeout")
    assert edge.trail.reasons() == ["hello_timeout"]


async def test_a_client_that_goes_before_hello_is_nobodys_business(edge: Harness) -> None:
    client = await edge.client()
    await client.connection.close()
    await edge.edge.close()
    assert edge.trail.records == []


async def test_user_limit(make_edge: MakeHarness) -> None:
    edge = await make_edge(Limits(managers_per_user=2))
    clients = [await edge.welcomed() for _ in range(2)]
    third = await edge.client()
    await third.send(type="hello", token=edge.token())
    assert await third.closed() == closing(4504, "limit_reached")
    assert edge.trail.reasons() == ["user_limit"]
    assert edge.counters.resource_limit_enforcements == 1
    await edge.welcomed("bob")
    clients[0].connection.transport.abort()
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    await edge.welcomed()
    assert edge.trail.of(AuditEvent.CONTEXT_CLOSED)[0].fields["reason"] == "replaced"


async def test_a_hundred_at_once_never_hold_more_than_five(edge: Harness) -> None:
    most = 0

    async def one() -> bool:
        nonlocal most
        client = await edge.client()
        await client.send(type="hello", token=edge.token())
        try:
            await client.receive()
        except Exception:  # noqa: BLE001 - closed 4504
            return False
        finally:
            most = max(most, len(edge.factory))
        return True

    welcomed = await asyncio.gather(*(one() for _ in range(100)))
    assert (sum(welcomed), most) == (5, 5)
    assert edge.trail.reasons() == ["user_limit"] * 95


async def test_an_unavailable_trail_lets_nobody_in(edge: Harness) -> None:
    edge.trail.failing = True
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    assert await client.closed() == closing(1013, "overloaded")
    assert len(edge.factory) == 0
    assert edge.trail.reasons() == ["audit_unavailable"]


async def test_draining_after_the_upgrade(edge: Harness) -> None:
    client = await edge.client()
    edge.factory.draining = True
    await client.send(type="hello", token=edge.token())
    assert await client.closed() == closing(1012, "restart")
    assert edge.trail.reasons() == ["draining"]


async def test_a_client_that_goes_while_its_record_is_written(edge: Harness) -> None:
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    await edge.trail.until(lambda: edge.trail.waiting)
    client.connection.transport.abort()
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    edge.trail.release()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert len(edge.factory) == 0
    assert not edge.factory._by_resume_digest


async def test_a_context_that_ends_while_its_record_is_written(edge: Harness) -> None:
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    await edge.trail.until(lambda: edge.trail.waiting)
    (manager,) = edge.factory
    manager.end("test", catalogued(CloseCode.REVOKED), edge.now())
    edge.trail.release()
    assert await client.closed() == closing(4506, "revoked")


# Messages out


@pytest.mark.parametrize(
    ("payload", "members", "expected"),
    [
        (b' {"a": [1, 2.50]} ', {}, {"content_type": "json", "data": {"a": [1, 2.5]}}),
        ("grüße\n".encode(), {"content_type": ContentType.TEXT}, {"content_type": "text", "data": "grüße\n"}),
        (
            b"\x00\xff",
            {"content_type": ContentType.BINARY},
            {"content_type": "binary", "data": base64.b64encode(b"\x00\xff").decode()},
        ),
        (
            b"1",
            {"event_type": "e", "critical": True, "reply_to": "q", "headers": {"h": 'a"b'}},
            {
                "event": "e",
                "content_type": "json",
                "critical": True,
                "reply_to": "q",
                "headers": {"h": 'a"b'},
                "data": 1,
            },
        ),
    ],
)
async def test_messages(edge: Harness, payload: bytes, members: dict[str, Any], expected: dict[str, Any]) -> None:
    client = await edge.welcomed()
    edge.send(edge.manager(client.key), payload, message_id="given", **members)
    assert await client.receive() == {"type": "message", "sequence": 1, "id": "given", **expected}


async def test_two_users_are_never_mixed(edge: Harness) -> None:
    clients = [await edge.welcomed(f"user{number % 4}") for number in range(12)]
    for round_ in range(5):
        for number, client in enumerate(clients):
            edge.send(edge.manager(client.key), json.dumps([number, round_]).encode())
    for number, client in enumerate(clients):
        frames = [await client.receive() for _ in range(5)]
        assert [frame["data"] for frame in frames] == [[number, round_] for round_ in range(5)]
        assert [frame["sequence"] for frame in frames] == [1, 2, 3, 4, 5]
    keys = {client.key for client in clients}
    assert len(keys) == len(clients)
    with pytest.raises(IsolationViolation):
        edge.manager(clients[0].key).send_to_user(edge.manager(clients[1].key).context, None, edge.now())  # type: ignore[arg-type]


# What a client says


async def test_ack(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    for number in range(3):
        edge.send(manager, b"%d" % number)
    for _ in range(3):
        await client.receive()
    await client.send(type="ack", sequence=2)
    assert (await client.ask(type="what", id="q"))["id"] == "q"
    assert manager.outbox.acknowledged == 2
    await client.send(type="ack", sequence=1)
    await client.ask(type="what")
    assert manager.outbox.acknowledged == 2
    await client.send(type="ack", sequence=4)
    assert await client.closed() == closing(4500, "bad_frame")
    assert manager.outbox.acknowledged == 2, "nothing changes"
    assert manager.detached_at is not None


@pytest.mark.parametrize(
    ("frame", "message_id", "reason"),
    [
        ({"type": "message", "id": "m-1", "data": {}}, "m-1", "NO_AGENT"),
        ({"type": "message", "id": "m-1", "event": "ask", "data": None}, "m-1", "NO_AGENT"),
        ({"type": "message", "data": {}}, None, "BAD_REQUEST"),
        ({"type": "message", "id": "not an id", "data": {}}, None, "BAD_REQUEST"),
        ({"type": "message", "id": "m-1"}, "m-1", "BAD_REQUEST"),
        ({"type": "cancel"}, None, "BAD_REQUEST"),
        ({"type": "unheard", "id": "m-1"}, "m-1", "BAD_REQUEST"),
        ({"type": "welcome"}, None, "BAD_REQUEST"),
    ],
)
async def test_errors(edge: Harness, frame: dict[str, Any], message_id: str | None, reason: str) -> None:
    client = await edge.welcomed()
    answer = await client.ask(**frame)
    assert answer.pop("message")
    assert answer == {"type": "error", "reason": reason} | ({"id": message_id} if message_id else {})


@pytest.mark.parametrize(
    "frame",
    [
        "not JSON",
        "[]",
        '{"type":7}',
        '{"type":"ack"}',
        '{"type":"ack","sequence":-1}',
        '{"type":"message","id":"a","data":"\\ud800"}',
        '{"type":"message","id":"a","data":' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"type":"hello"}',
    ],
)
async def test_bad_frames(edge: Harness, frame: str) -> None:
    client = await edge.welcomed()
    await client.connection.send(frame)
    assert await client.closed() == closing(4500, "bad_frame")
    (record,) = await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    assert record.fields["code"] == 4500


async def test_binary(edge: Harness) -> None:
    client = await edge.welcomed()
    await client.connection.send(b'{"type":"ack","sequence":0}')
    assert await client.closed() == closing(1003, "unsupported_data")


async def test_nothing_counts_after_this_side_closed(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    edge.send(manager, b"1")
    assert manager.primary is not None
    await client.receive()
    manager.close_connection(manager.primary, catalogued(CloseCode.TAKEN_OVER), edge.now())
    before = manager.last_activity
    edge.clock.advance(1)
    await client.send(type="ack", sequence=1)
    await client.send(type="message", id="a", data=1)
    await client.send(type="refresh", token=edge.token())
    await client.connection.send("not JSON")
    assert await client.closed() == closing(4503, "taken_over")
    assert edge.trail.of(AuditEvent.USER_TOKEN_REFRESHED) == []
    assert manager.outbox.acknowledged == 0
    assert manager.last_activity == before
    edge.send(manager, b"2")
    assert manager.outbox.cursor == 1


async def test_what_is_activity(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    started = manager.last_activity
    edge.clock.advance(10)
    await client.send(type="ack", sequence=0)
    await client.ask(type="what")
    pong = await client.connection.ping()
    await pong
    assert manager.last_activity == started
    await client.send(type="cancel", stream_id="s")
    await client.ask(type="what")
    assert manager.last_activity == edge.now()
    edge.clock.advance(10)
    await client.ask(type="message", id="a", data=1)
    assert manager.last_activity == edge.now()
    edge.clock.advance(10)
    await client.ask(type="refresh", token=edge.token())
    assert manager.last_activity == edge.now()


# Closes that the manager decides


@pytest.mark.parametrize("code", [code for code in CloseCode if code >= 4000] + [CloseCode.GOING_AWAY])
async def test_every_catalogued_close_has_its_name(edge: Harness, code: CloseCode) -> None:
    client = await edge.welcomed()
    edge.factory.cleanup_manager(client.key, catalogued(code), "test", edge.now())
    assert await client.closed() == closing(int(code), code.name.lower())


async def test_a_services_own_close(edge: Harness) -> None:
    client = await edge.welcomed()
    edge.factory.cleanup_manager(client.key, Close(4999, "until later"), "test", edge.now())
    assert await client.closed() == closing(4999, "until later")


async def test_the_clients_1000_ends_the_context(edge: Harness) -> None:
    client = await edge.welcomed()
    await client.connection.close(1000)
    (record,) = await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert record.fields["reason"] == "client_closed"
    assert not edge.factory._by_resume_digest


# Time


async def test_idle(edge: Harness) -> None:
    client = await edge.welcomed(ttl_s=7200)
    edge.advance(1799)
    assert len(edge.factory) == 1
    edge.advance(1)
    assert await client.closed() == closing(4507, "idle")
    assert len(edge.factory) == 0


async def test_pings_and_a_pong_that_does_not_come(edge: Harness) -> None:
    stream = await edge.stream()
    await stream.hello(edge.token())
    edge.advance(60)
    assert await stream.frame() == (0x9, b"")
    edge.advance(20)
    assert await stream.close_frame() == (4002, "pong_timeout")


async def test_a_pong_keeps_the_socket(edge: Harness) -> None:
    client = await edge.welcomed()
    for _ in range(3):
        edge.advance(60)
        await client.ask(type="what")  # behind the pong
        edge.advance(20)
    assert edge.manager(client.key).primary is not None


async def test_user_token_expires(edge: Harness) -> None:
    client = await edge.welcomed(ttl_s=100)
    edge.advance(40)
    assert await client.receive() == {"type": "token_expiring", "expires_at": NOW + 100}
    edge.advance(59)
    assert edge.manager(client.key).primary is not None
    edge.advance(1)
    assert await client.closed() == closing(4000, "token_expired")
    assert len(edge.factory) == 1, "detached"


async def test_refresh(edge: Harness) -> None:
    client = await edge.welcomed(ttl_s=100)
    edge.advance(40)
    await client.receive()
    answer = await client.ask(type="refresh", token=edge.token(ttl_s=600))
    assert answer == {"type": "refreshed", "expires_at": NOW + 640}
    (record,) = edge.trail.of(AuditEvent.USER_TOKEN_REFRESHED)
    assert record.fields["expires_at"] == NOW + 640
    edge.advance(500)
    assert edge.manager(client.key).primary is not None


REFRESHES = {
    "garbage": ({}, 4501, "token_invalid"),
    "expired": ({"ttl_s": 1}, 4501, "token_invalid"),
    "another user": ({"subject": "bob"}, 4502, "forbidden"),
    "another tenant": ({"tenant_id": "other"}, 4502, "forbidden"),
    "another issuer": ({"issuer": "second", "tenant_id": "third", "secret": OTHER_SECRET}, 4502, "forbidden"),
}


@pytest.mark.parametrize(("claims", "code", "text"), REFRESHES.values(), ids=REFRESHES.keys())
async def test_refresh_with_another_token(edge: Harness, claims: dict[str, Any], code: int, text: str) -> None:
    client = await edge.welcomed()
    token = edge.token(**claims) if claims else "garbage"
    edge.clock.advance(40)
    await client.send(type="refresh", token=token)
    assert await client.closed() == closing(code, text)
    assert len(edge.trail.of(AuditEvent.TOKEN_DENIED)) == 1
    assert edge.trail.of(AuditEvent.USER_TOKEN_REFRESHED) == []
    assert edge.counters.unauthorized_access_attempts == 1


async def test_refresh_without_its_record_changes_nothing(edge: Harness) -> None:
    client = await edge.welcomed(ttl_s=100)
    edge.trail.failing = True
    answer = await client.ask(type="refresh", token=edge.token(ttl_s=600))
    assert answer["reason"] == ErrorReason.AUDIT_UNAVAILABLE
    edge.advance(100)
    assert (await client.closed()) == closing(4000, "token_expired")


async def test_a_new_context_token_comes_before_the_old_one_ends(edge: Harness) -> None:
    client = await edge.welcomed()
    edge.advance(839)
    edge.advance(1)
    frame = await client.receive()
    assert frame["type"] == "context_token"
    assert frame["expires_at"] == NOW + 840 + 900
    assert edge.tokens.verify(frame["context_token"]).isolation_key == client.key
    assert len(edge.trail.of(AuditEvent.TOKEN_MINTED)) == 2
    await client.ask(type="what")  # behind the pong
    edge.advance(20)
    assert (await client.ask(type="what"))["type"] == "error", "not asked again"


async def test_a_context_token_that_could_not_be_recorded_is_asked_for_again(edge: Harness) -> None:
    client = await edge.welcomed()
    edge.trail.failing = True
    edge.advance(840)
    await client.ask(type="what")
    edge.trail.failing = False
    edge.advance(15)
    assert (await client.receive())["type"] == "context_token"


async def test_a_socket_that_goes_takes_its_renewal_along(edge: Harness) -> None:
    client = await edge.welcomed()
    edge.trail.hold()
    edge.advance(840)
    await edge.trail.until(lambda: edge.trail.waiting)
    await client.connection.close()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    await edge.edge.close()
    assert edge.trail.waiting == 0


async def test_a_refresh_that_is_recorded_after_the_socket_was_closed(edge: Harness) -> None:
    client = await edge.welcomed(ttl_s=100)
    edge.trail.hold()
    await client.send(type="refresh", token=edge.token(ttl_s=600))
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.factory.cleanup_manager(client.key, catalogued(CloseCode.REVOKED), "test", edge.now())
    edge.trail.release()
    assert await client.closed() == closing(4506, "revoked")


async def test_a_context_token_that_is_recorded_after_the_socket_was_closed(edge: Harness) -> None:
    client = await edge.welcomed()
    edge.trail.hold()
    edge.advance(840)
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.factory.cleanup_manager(client.key, catalogued(CloseCode.REVOKED), "test", edge.now())
    edge.trail.release()
    assert await client.closed() == closing(4506, "revoked")


async def test_events_before_the_welcome_are_not_sent(edge: Harness) -> None:
    """The first frame is the welcome, whatever happens while its record is written."""
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token(ttl_s=30))
    await edge.trail.until(lambda: edge.trail.waiting)
    (manager,) = edge.factory
    assert manager.primary is not None
    manager.primary.notify(Draining(5))
    edge.advance(1)
    edge.trail.release()
    assert (await client.receive())["type"] == "welcome"
    edge.advance(1)
    assert (await client.receive())["type"] == "token_expiring"
