"""AsyncSidecarClient and SidecarClient against a real sidecar: every method, every refusal that one can cause."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from sidecar_client import AsyncSidecarClient, BatchItem, SidecarClient
from sidecar_client.errors import (
    BadRequest,
    DurabilityUnavailable,
    Internal,
    IsolationViolation,
    ManagerGone,
    MessageIdReused,
    OutcomeUnknown,
    ScopeMissing,
    ServiceDenied,
    StorageUnavailable,
    TokenError,
    TransportError,
)
from sidecar_client.values import BroadcastScope, ContentType, DeliveryState, Durability, Receipt
from tests.support.faulty_sidecar import BUG, UNKNOWN, UNREACHABLE
from tests.support.restarting import free_ports
from tests.support.running import RunningSidecar, running_sidecar


def test_both_clients_have_the_same_methods() -> None:
    def face(kind: type) -> dict[str, list[str]]:
        public = {name: each for name, each in vars(kind).items() if not name.startswith("_")}
        return {name: list(inspect.signature(each).parameters) for name, each in public.items()}

    assert face(AsyncSidecarClient) == face(SidecarClient)


async def test_a_message_arrives_and_the_receipt_says_how_far(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        receipt = await client.send_to_user(
            alice.isolation_key,
            alice.context_token,
            json={"hello": "Aλice", "n": [1, None]},
            event_type="greeting",
            reply_to="question-1",
            headers={"trace": "1"},
            ttl_s=60,
            min_durability=Durability.MEMORY,
            expected_user_id="alice",
        )
        frame = await alice.frame()
    assert frame["data"] == {"hello": "Aλice", "n": [1, None]}
    assert (frame["event"], frame["reply_to"], frame["headers"]) == ("greeting", "question-1", {"trace": "1"})
    assert frame["id"] == receipt.message_id
    assert receipt.sequence == 1
    assert receipt.state is DeliveryState.WRITTEN
    assert receipt.durability is Durability.MEMORY
    assert receipt.connections == 1
    assert not receipt.duplicate
    assert receipt.accepted_time > 1e9


async def test_every_content_type(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        to = (alice.isolation_key, alice.context_token)
        await client.send_to_user(*to, b'{"n":1.0}')
        await client.send_to_user(*to, "grüß".encode(), content_type=ContentType.TEXT)
        await client.send_to_user(*to, b"\x00\xff", content_type=ContentType.BINARY)
        await client.send_to_user(*to, json=None)
        frames = [await alice.frame() for _ in range(4)]
    assert [(frame["content_type"], frame["data"]) for frame in frames] == [
        ("json", {"n": 1.0}),
        ("text", "grüß"),
        ("binary", "AP8="),
        ("json", None),
    ]


async def test_the_same_message_id_is_taken_once(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        to = (alice.isolation_key, alice.context_token)
        first = await client.send_to_user(*to, json=1, message_id="m-1")
        again = await client.send_to_user(*to, json=1, message_id="m-1")
        with pytest.raises(MessageIdReused) as refused:
            await client.send_to_user(*to, json=2, message_id="m-1")
        assert len(await alice.frames_before_answer_to("probe")) == 1
    assert again.duplicate
    assert (again.sequence, again.accepted_time) == (first.sequence, first.accepted_time)
    assert refused.value.definite


async def test_one_users_token_does_not_open_the_others_key(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice, sidecar.user("mallory") as mallory:
        for key, token, expected in (
            (alice.isolation_key, mallory.context_token, ""),
            ("0" * 64, mallory.context_token, ""),
            (mallory.isolation_key, mallory.context_token, "alice"),
        ):
            with pytest.raises(IsolationViolation) as refused:
                await client.send_to_user(key, token, json=1, expected_user_id=expected)
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
            assert refused.value.reason == "ISOLATION_VIOLATION"
            assert refused.value.definite
            assert key not in str(refused.value)
        assert await alice.frames_before_answer_to("probe") == []
        assert await mallory.frames_before_answer_to("probe") == []


@pytest.mark.parametrize(
    "token",
    ["", "garbage", "a\r\nx-service-token: b", "ü", "\ud800", "x" * 5_000, "x" * 10_000, " x", "a\x00"],
    ids=["none", "garbage", "a line break", "no ASCII", "a surrogate", "long", "longer", "a space", "NUL"],
)
async def test_a_bad_token_is_a_token_error_that_does_not_quote_it(
    sidecar: RunningSidecar, client: Any, token: str
) -> None:
    async with sidecar.user("alice") as alice:
        with pytest.raises(TokenError) as refused:
            await client.send_to_user(alice.isolation_key, token, json=1)
        (outcome,) = await client.send_batch([BatchItem(alice.isolation_key, token, b"1")])
    assert isinstance(outcome, TokenError)
    for error in (refused.value, outcome):
        assert error.definite
        assert not token or token not in f"{error!r} {error} {error.__context__!r}"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"json": float("nan")}, "message.payload"),
        ({"json": "\ud800"}, "message.payload"),
        ({"json": {1, 2}}, "message.payload"),
        ({"payload": b"{"}, "message.payload"),
        ({"json": 1, "ttl_s": 0}, "message.ttl"),
        ({"json": 1, "ttl_s": float("inf")}, "message.ttl"),
        ({"json": 1, "event_type": "no spaces"}, "message.event_type"),
        ({"json": 1, "event_type": "\ud800"}, "message"),
        ({"json": 1, "headers": {"a": "b" * 2_000}}, "message.headers"),
        ({"payload": b'"' + b"x" * 300_000 + b'"'}, "message.payload"),
    ],
)
async def test_a_bad_field_is_named(sidecar: RunningSidecar, client: Any, options: dict[str, Any], field: str) -> None:
    async with sidecar.user("alice") as alice:
        with pytest.raises(BadRequest) as refused:
            await client.send_to_user(alice.isolation_key, alice.context_token, **options)
    assert refused.value.violations[0][0] == field
    assert refused.value.violations[0][1]


async def test_what_is_no_message_at_all_is_a_type_error(client: Any) -> None:
    for options in ({}, {"payload": b"1", "json": 1}, {"payload": "text"}, {"json": 1, "nonsense": 1}):
        with pytest.raises(TypeError):
            await client.send_to_user("key", "token", **options)
    with pytest.raises(BadRequest):
        await client.send_to_user("\ud800", "token", json=1)


async def test_a_critical_event(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        to = (alice.isolation_key, alice.context_token)
        receipt = await client.emit_critical_event(*to, "alarm", {"level": 3}, message_id="alarm-1")
        as_bytes = await client.emit_critical_event(*to, "alarm", b"[1]", expected_user_id="alice")
        frame, second = await alice.frame(), await alice.frame()
        with pytest.raises(DurabilityUnavailable):
            await client.send_to_user(*to, json=1, min_durability=Durability.DISK)
    assert (frame["id"], frame["event"], frame["critical"], frame["data"]) == ("alarm-1", "alarm", True, {"level": 3})
    assert second["data"] == [1]
    assert receipt.message_id == "alarm-1"
    assert as_bytes.message_id == second["id"]


async def test_waiting_for_the_acknowledgement(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        to = (alice.isolation_key, alice.context_token)
        # The deadline is later by what the sidecar may hold the answer for.
        sending = asyncio.ensure_future(client.send_to_user(*to, json=1, wait_for_ack_s=30, timeout_s=1))
        frame = await alice.frame()
        assert not sending.done()
        await alice.socket.send(f'{{"type":"ack","sequence":{frame["sequence"]}}}')
        assert (await sending).state is DeliveryState.ACKNOWLEDGED
        unheeded = await client.send_to_user(*to, json=2, wait_for_ack_s=0.05)
    assert unheeded.state is DeliveryState.WRITTEN


async def test_each_item_of_a_batch_stands_or_falls_alone(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice, sidecar.user("bob") as bob:
        good = (alice.isolation_key, alice.context_token)
        outcomes = await client.send_batch(
            [
                BatchItem(*good, json=1),
                BatchItem(bob.isolation_key, alice.context_token, b"2"),
                BatchItem(alice.isolation_key, "line\nbreak", b"3"),
                BatchItem(bob.isolation_key, bob.context_token, b"4", expected_user_id="bob"),
                BatchItem(*good, json=float("inf")),
                BatchItem(*good, b"5", message_id="m-5"),
            ]
        )
        to_alice = [frame["data"] for frame in await alice.frames_before_answer_to("probe")]
        to_bob = [frame["data"] for frame in await bob.frames_before_answer_to("probe")]
    assert [type(outcome) for outcome in outcomes] == [
        Receipt,
        IsolationViolation,
        TokenError,
        Receipt,
        BadRequest,
        Receipt,
    ]
    assert (to_alice, to_bob) == ([1, 5], [4])
    assert outcomes[-1].message_id == "m-5"
    assert await client.send_batch([]) == []


async def test_a_batch_of_1001_is_refused_whole(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice") as alice:
        item = BatchItem(alice.isolation_key, alice.context_token, b"1")
        assert len(await client.send_batch([item] * 1_000)) == 1_000
        with pytest.raises(BadRequest):
            await client.send_batch([item] * 1_001)
        alice.socket.transport.abort()  # it has not read them all, and would wait for its close to be answered


async def test_the_life_of_a_context_token(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("alice", "default") as alice:
        facts = await client.get_context(alice.context_token)
        renewed = await client.refresh_context_token(alice.context_token)
        exchanged = await client.exchange_context_token(
            sidecar.user_token("alice"), str(alice.welcome["connection_id"]), ["send"]
        )
        with pytest.raises(IsolationViolation):
            await client.exchange_context_token(sidecar.user_token("bob"), str(alice.welcome["connection_id"]))
        with pytest.raises(ScopeMissing):
            await client.get_manager_stats(alice.isolation_key, exchanged.token.text)
        await client.send_to_user(alice.isolation_key, exchanged.token.text, json=1)
        await client.revoke_context_token(renewed.text)
        with pytest.raises(TokenError) as revoked:
            await client.send_to_user(alice.isolation_key, alice.context_token, json=2)
    assert facts.isolation_key == exchanged.isolation_key == alice.isolation_key
    assert (facts.context.user_id, facts.context.tenant_id) == ("alice", "default")
    assert facts.context == exchanged.context
    assert facts.scopes == ("emit", "send", "stats")
    assert renewed.text != alice.context_token
    assert renewed.expire_time >= facts.expire_time
    assert revoked.value.reason == "TOKEN_REVOKED"
    assert renewed.text not in repr(renewed)
    assert exchanged.token.text not in repr(exchanged)


async def test_an_exchange_needs_the_service_token(sidecar: RunningSidecar, open_client: Callable[..., Any]) -> None:
    async with sidecar.user("alice") as alice:
        for service_token in ("", "wrong", "line\nbreak"):
            async with open_client(endpoint=sidecar.grpc_target, service_token=service_token) as stranger:
                with pytest.raises((TokenError, ServiceDenied)):
                    await stranger.exchange_context_token(
                        sidecar.user_token("alice"), str(alice.welcome["connection_id"])
                    )


async def test_broadcast_reaches_the_users_own_contexts(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("carol") as one, sidecar.user("carol") as two, sidecar.user("dave") as other:
        grant = await client.exchange_context_token(
            sidecar.user_token("carol"), str(one.welcome["connection_id"]), ["broadcast:user"]
        )
        result = await client.broadcast(grant.token.text, BroadcastScope.USER, json="all", message_id="b-1")
        with pytest.raises(ScopeMissing):
            await client.broadcast(grant.token.text, BroadcastScope.TENANT, json="all")
        frames = [await one.frame(), await two.frame()]
        assert await other.frames_before_answer_to("probe") == []
    assert (result.managers, result.connections, result.refused) == (2, 2, 0)
    assert [frame["data"] for frame in frames] == ["all", "all"]


async def test_closing_a_context(sidecar: RunningSidecar, client: Any) -> None:
    async with sidecar.user("erin") as erin:
        grant = await client.exchange_context_token(
            sidecar.user_token("erin"), str(erin.welcome["connection_id"]), ["close", "send", "stats"]
        )
        to = (erin.isolation_key, grant.token.text)
        await client.send_to_user(*to, json=1)
        stats = await client.get_manager_stats(*to)
        closed = await client.close_manager(*to, code=4_900, reason="over")
        await erin.frame()
        await erin.socket.wait_closed()
        with pytest.raises(ManagerGone):
            await client.send_to_user(*to, json=2)
    assert (stats.connections_managed, stats.messages_sent_total, stats.outbox_messages) == (1, 1, 1)
    assert stats.manager_age_seconds > 0
    assert closed == 1
    assert (erin.socket.close_code, erin.socket.close_reason) == (4_900, "over")


async def test_what_the_store_does_is_told_apart(faulty: RunningSidecar, open_client: Callable[..., Any]) -> None:
    async with faulty.user("alice") as alice, open_client(endpoint=faulty.grpc_target, max_attempts=1) as client:
        to = (alice.isolation_key, alice.context_token)
        with pytest.raises(StorageUnavailable) as unreachable:
            await client.send_to_user(*to, UNREACHABLE.encode())
        with pytest.raises(OutcomeUnknown) as unknown:
            await client.send_to_user(*to, UNKNOWN.encode())
        with pytest.raises(Internal) as bug:
            await client.send_to_user(*to, BUG.encode())
    assert unreachable.value.definite
    assert unreachable.value.retry_after_s is not None
    assert not unknown.value.definite
    assert not bug.value.definite
    assert bug.value.incident_id in str(bug.value)
    assert bug.value.incident_id


async def test_ready_waits_for_a_sidecar_that_starts_later(tmp_path: Path, open_client: Callable[..., Any]) -> None:
    (port,) = free_ports(1)
    endpoint = f"127.0.0.1:{port}"
    async with open_client(endpoint=endpoint) as client:
        with pytest.raises(TransportError) as late:
            await client.wait_until_ready(0.2)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = asyncio.ensure_future(client.wait_until_ready(30))
        await asyncio.sleep(0)
        with running_sidecar(tmp_path, SIDECAR_GRPC__LISTEN=endpoint) as running:
            await waiting
            async with running.user("alice") as alice:
                await client.send_to_user(alice.isolation_key, alice.context_token, json=1)


async def test_a_unix_socket_and_the_environment(
    tmp_path: Path, open_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    with running_sidecar(tmp_path, SIDECAR_GRPC__LISTEN=f"unix:{folder}/g") as running:
        monkeypatch.setenv("SIDECAR_GRPC_ENDPOINT", f"unix:{folder}/g")
        monkeypatch.setenv("SIDECAR_SERVICE_TOKEN", running.service_token)
        async with running.user("alice") as alice, open_client() as client:
            await client.wait_until_ready()
            grant = await client.exchange_context_token(
                running.user_token("alice"), str(alice.welcome["connection_id"])
            )
            assert grant.isolation_key == alice.isolation_key


async def test_a_closed_client_says_so(sidecar: RunningSidecar, open_client: Callable[..., Any]) -> None:
    async with open_client(endpoint=sidecar.grpc_target) as client:
        sender = client.sender()
        await client.close()
        await client.close()
        for call in (
            lambda: client.get_context("token"),
            client.wait_until_ready,
            lambda: sender.send("key", "token", json=1),
        ):
            with pytest.raises(RuntimeError):
                await call()
        with pytest.raises(RuntimeError):
            client.sender()


async def test_nothing_prints_a_secret(sidecar: RunningSidecar) -> None:
    item = BatchItem("key", "the-context-token", b"the-payload")
    client = SidecarClient(endpoint=sidecar.grpc_target, service_token="the-service-token")
    client.close()
    printed = f"{item!r} {client!r} {AsyncSidecarClient(service_token='the-service-token')!r}"
    assert "the-" not in printed
    assert sidecar.grpc_target in printed


def test_errors_of_use_are_said_at_once() -> None:
    for settings in ({"endpoint": "nowhere"}, {"endpoint": "h:p"}, {"timeout_s": 0}, {"max_attempts": 0}):
        with pytest.raises(ValueError, match=r"endpoint|timeout_s|max_attempts"):
            AsyncSidecarClient(**settings)
