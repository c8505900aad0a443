"""The error table, row by row: the same status by every way in, one audit record, true counts, nobody else touched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from sidecar.api.v1 import types_pb2
from sidecar.core.identity import Scope
from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from tests.rpc.conftest import MakeRig
from tests.rpc.rig import Attempt, Refused, Rig, refused, summary

Way = Callable[[Rig, Attempt], Awaitable[status_pb2.Status]]
VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
SCOPE_MISSING = Refused("PERMISSION_DENIED", "SCOPE_MISSING")
TOKEN_INVALID = Refused("UNAUTHENTICATED", "TOKEN_INVALID")
NOBODY = {"unauthorized_access_attempts": 1, "context_validation_failures": 1}


def bad(field: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=field)


async def by_unary(rig: Rig, attempt: Attempt) -> status_pb2.Status:
    return await refused(rig.unary(attempt))


async def by_batch(rig: Rig, attempt: Attempt) -> status_pb2.Status:
    """The item stands between two good ones, which are accepted."""
    good, before = rig.attempt(rig.carol), rig.carol.manager.outbox.head
    first, result, last = await rig.batch(good, attempt, good)
    assert (first.receipt.sequence, last.receipt.sequence) == (before + 1, before + 2)
    assert result.WhichOneof("result") == "error"
    return result.error


async def by_lane(rig: Rig, attempt: Attempt) -> status_pb2.Status:
    """The lane's own error, or that of its message; another lane of the stream goes on."""
    stream = rig.deliver()
    good, before = rig.attempt(rig.carol), rig.carol.manager.outbox.head
    await stream.opened(7, good)
    await stream.open(3, attempt)
    answer = await stream.read()
    if answer.WhichOneof("frame") == "lane_error":
        assert answer.lane_error.lane == 3
        status = answer.lane_error.error
        await stream.send((7, good.message))
        (item,) = await stream.receipts(1)
    else:
        assert answer.lane_opened.lane == 3
        await stream.send((3, attempt.message), (7, good.message))
        first, item = await stream.receipts(2)
        assert (first.lane, first.number, first.WhichOneof("result")) == (3, 0, "error")
        status = first.error
    assert (item.lane, item.number, item.receipt.sequence) == (7, 0, before + 1)
    assert await stream.finish() == []
    return status


WAYS = pytest.mark.parametrize("way", [by_unary, by_batch, by_lane])


def with_token(change: Callable[[Rig], str]) -> Callable[[Rig], Attempt]:
    return lambda rig: Attempt(rig.alice.key, change(rig), types_pb2.Message(payload=b"{}"))


def with_key(change: Callable[[Rig], str]) -> Callable[[Rig], Attempt]:
    return lambda rig: Attempt(change(rig), rig.alice.token, types_pb2.Message(payload=b"{}"))


def with_message(payload: bytes = b"{}", **members: Any) -> Callable[[Rig], Attempt]:
    return lambda rig: rig.attempt(rig.alice, payload, **members)


def forged(token: str) -> str:
    head, claims, signature = token.split(".")
    return f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


TOKENS: dict[str, tuple[Callable[[Rig], str], Refused]] = {
    "no token": (lambda rig: "", Refused("UNAUTHENTICATED", "TOKEN_MISSING")),
    "garbage": (lambda rig: "garbage", TOKEN_INVALID),
    "a bad signature": (lambda rig: forged(rig.alice.token), TOKEN_INVALID),
    "a user token": (lambda rig: rig.user_token("alice"), TOKEN_INVALID),
    "4,097 characters": (lambda rig: "a" * 4_097, TOKEN_INVALID),
    "two segments": (lambda rig: rig.alice.token.rpartition(".")[0], TOKEN_INVALID),
}


@WAYS
@pytest.mark.parametrize("case", TOKENS)
async def test_a_token_that_is_not_good(rig: Rig, way: Way, case: str) -> None:
    change, expected = TOKENS[case]
    async with rig.seen(AuditEvent.TOKEN_DENIED, **NOBODY) as records:
        assert summary(await way(rig, with_token(change)(rig))) == expected
    assert records[0]["reason"] == expected.reason
    assert records[0]["address"] == "127.0.0.1"
    assert rig.alice.manager.outbox.head == 0


@pytest.mark.parametrize("way", [by_batch, by_lane])
@pytest.mark.parametrize("token", ["é", "a\0b", "a b", "\n"])
async def test_a_token_in_a_field_may_be_any_text(rig: Rig, way: Way, token: str) -> None:
    async with rig.seen(AuditEvent.TOKEN_DENIED, **NOBODY):
        assert summary(await way(rig, with_token(lambda _: token)(rig))) == TOKEN_INVALID


@WAYS
async def test_an_expired_token_is_cut_out_of_the_cache(rig: Rig, way: Way) -> None:
    await rig.send(rig.alice)
    rig.clock.advance(905)  # 900 s and the leeway
    rig.carol.token = rig.mint(rig.carol.manager)
    async with rig.seen(AuditEvent.TOKEN_DENIED, **NOBODY):
        assert summary(await way(rig, rig.attempt())) == Refused("UNAUTHENTICATED", "TOKEN_EXPIRED")
    assert rig.alice.manager.outbox.head == 1


async def test_a_token_is_good_until_its_last_moment(rig: Rig) -> None:
    rig.clock.advance(904)
    assert (await rig.send(rig.alice)).sequence == 1


@WAYS
async def test_a_revoked_token_is_cut_out_of_the_cache(rig: Rig, way: Way) -> None:
    await rig.send(rig.alice)
    rig.tokens.revoke_family(rig.tokens.verify(rig.alice.token).family)
    async with rig.seen(AuditEvent.TOKEN_DENIED, **NOBODY):
        assert summary(await way(rig, rig.attempt())) == Refused("UNAUTHENTICATED", "TOKEN_REVOKED")
    assert rig.alice.manager.outbox.head == 1


KEYS: dict[str, Callable[[Rig], str]] = {
    "another user's": lambda rig: rig.bystander.key,
    "unknown": lambda rig: "0" * 64,
    "her own in capitals": lambda rig: rig.alice.key.upper(),
    "her own and more": lambda rig: rig.alice.key + "0",
    "her own and NUL": lambda rig: rig.alice.key + "\0",
    "*": lambda rig: "*",
    ">": lambda rig: ">",
    "../": lambda rig: "../",
    "NUL": lambda rig: "\0",
    "long": lambda rig: "a" * 100_000,
}


@WAYS
@pytest.mark.parametrize("case", KEYS)
async def test_a_key_that_is_not_the_tokens(rig: Rig, way: Way, case: str) -> None:
    async with rig.seen(AuditEvent.ISOLATION_VIOLATION, isolation_violations_detected=1) as records:
        assert summary(await way(rig, with_key(KEYS[case])(rig))) == VIOLATION
    assert (records[0]["user_id"], records[0]["address"]) == ("alice", "127.0.0.1")
    assert rig.alice.manager.outbox.head == 0


@WAYS
async def test_there_is_no_oracle(rig: Rig, way: Way) -> None:
    """Existing, ended, foreign to the tenant and made-up keys are answered by the same bytes."""
    ended, stranger = rig.connect("dave"), rig.connect("alice", "elsewhere")
    ended.manager.end("test", None, rig.at())
    keys = (rig.bystander.key, ended.key, stranger.key, "f" * 64)
    statuses = {(await way(rig, with_key(lambda _, key=key: key)(rig))).SerializeToString() for key in keys}  # type: ignore[misc]
    assert len(statuses) == 1


@WAYS
async def test_another_user_than_the_caller_means(rig: Rig, way: Way) -> None:
    message = types_pb2.Message(payload=b"{}")
    async with rig.seen(AuditEvent.ISOLATION_VIOLATION, isolation_violations_detected=1):
        attempt = Attempt(rig.alice.key, rig.alice.token, message, expected_user_id="mallory")
        assert summary(await way(rig, attempt)) == VIOLATION
    assert (await rig.unary(Attempt(rig.alice.key, rig.alice.token, message, "alice"))).receipt.sequence == 1


@WAYS
async def test_an_empty_key(rig: Rig, way: Way) -> None:
    async with rig.seen():
        assert summary(await way(rig, with_key(lambda _: "")(rig))) == bad("isolation_key")


@WAYS
async def test_a_missing_scope(rig: Rig, way: Way) -> None:
    token = rig.mint(rig.alice.manager, Scope.EMIT, Scope.STATS)
    async with rig.seen(AuditEvent.SCOPE_DENIED, unauthorized_access_attempts=1) as records:
        assert summary(await way(rig, with_token(lambda _: token)(rig))) == SCOPE_MISSING
    assert (records[0]["user_id"], records[0]["reason"]) == ("alice", "SCOPE_MISSING")


@WAYS
async def test_a_critical_message_needs_the_emit_scope(rig: Rig, way: Way) -> None:
    token = rig.mint(rig.alice.manager, Scope.SEND)
    attempt = Attempt(rig.alice.key, token, types_pb2.Message(payload=b"{}", critical=True))
    async with rig.seen(AuditEvent.SCOPE_DENIED, unauthorized_access_attempts=1):
        assert summary(await way(rig, attempt)) == SCOPE_MISSING
    assert rig.alice.manager.outbox.head == 0


@WAYS
async def test_a_context_that_has_ended(rig: Rig, way: Way) -> None:
    await rig.send(rig.alice)
    rig.alice.manager.end("test", None, rig.at())
    async with rig.seen(AuditEvent.TOKEN_DENIED, context_validation_failures=1) as records:
        assert summary(await way(rig, rig.attempt())) == Refused("NOT_FOUND", "MANAGER_GONE")
    assert (records[0]["reason"], records[0]["user_id"]) == ("MANAGER_GONE", "alice")


MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no payload": ({"payload": b""}, "message.payload"),
    "not JSON": ({"payload": b"{x}"}, "message.payload"),
    "two values": ({"payload": b"{}{}"}, "message.payload"),
    "NaN": ({"payload": b"[NaN]"}, "message.payload"),
    "a lone surrogate": ({"payload": rb'"\ud800"'}, "message.payload"),
    "JSON that is not UTF-8": ({"payload": b'"\xff"'}, "message.payload"),
    "depth 100,000": ({"payload": b"[" * 100_000 + b"]" * 100_000}, "message.payload"),
    "one byte over the limit": ({"payload": b'"%s"' % (b"a" * (262_145 - 2))}, "message.payload"),
    "text that is not UTF-8": ({"payload": b"\xc3", "content_type": 2}, "message.payload"),
    "an unknown content type": ({"content_type": 4}, "message.content_type"),
    "a negative content type": ({"content_type": -1}, "message.content_type"),
    "a critical text": ({"content_type": 2, "critical": True}, "message.critical"),
    "message_id *": ({"message_id": "*"}, "message.message_id"),
    "message_id >": ({"message_id": "a.>"}, "message.message_id"),
    "message_id ../": ({"message_id": "../"}, "message.message_id"),
    "message_id NUL": ({"message_id": "a\0"}, "message.message_id"),
    "message_id newline": ({"message_id": "a\n"}, "message.message_id"),
    "message_id of 129": ({"message_id": "a" * 129}, "message.message_id"),
    "event_type of spaces": ({"event_type": " "}, "message.event_type"),
    "event_type not ASCII": ({"event_type": "é"}, "message.event_type"),
    "reply_to": ({"reply_to": "a b"}, "message.reply_to"),
    "ttl 0": ({"ttl": Duration()}, "message.ttl"),
    "ttl below 0": ({"ttl": Duration(seconds=-1)}, "message.ttl"),
    "ttl over a day": ({"ttl": Duration(seconds=86_400, nanos=1)}, "message.ttl"),
    "ttl of 2^63": ({"ttl": Duration(seconds=2**63 - 1)}, "message.ttl"),
    "ttl of too many nanoseconds": ({"ttl": Duration(seconds=1, nanos=1_000_000_000)}, "message.ttl"),
    "ttl of mixed signs": ({"ttl": Duration(seconds=1, nanos=-1)}, "message.ttl"),
    "33 headers": ({"headers": {f"h{n}": "" for n in range(33)}}, "message.headers"),
    "a header's name": ({"headers": {"a b": ""}}, "message.headers"),
    "a header of 1,025": ({"headers": {"a": "b" * 1_025}}, "message.headers"),
}


@WAYS
@pytest.mark.parametrize("case", MESSAGES)
async def test_a_message_that_breaks_a_rule(rig: Rig, way: Way, case: str) -> None:
    members, field = MESSAGES[case]
    async with rig.seen():
        assert summary(await way(rig, with_message(**members)(rig))) == bad(field)
    assert rig.alice.manager.outbox.head == 0
    assert rig.alice.socket.frames == []


GOOD_MESSAGES: dict[str, dict[str, Any]] = {
    "the longest": {"payload": b'"%s"' % (b"a" * (262_144 - 2))},
    "a day": {"ttl": Duration(seconds=86_400)},
    "a nanosecond": {"ttl": Duration(nanos=1)},
    "identifiers of 128": {"message_id": "a" * 128, "event_type": "A.z_0:@|-", "reply_to": "b" * 128},
    "32 headers of 1,024": {"headers": {f"h{n}": "é" * 1_024 for n in range(32)}},
    "text": {"payload": "é".encode(), "content_type": 2},
    "bytes": {"payload": b"\xff\0", "content_type": 3},
    "no bytes": {"payload": b"", "content_type": 3},
    "memory": {"min_durability": 1},
}


@pytest.mark.parametrize("case", GOOD_MESSAGES)
async def test_a_message_at_the_limit(rig: Rig, case: str) -> None:
    assert (await rig.unary(with_message(**GOOD_MESSAGES[case])(rig))).receipt.sequence == 1


@WAYS
@pytest.mark.parametrize("durability", [2, 3, 99])
async def test_a_durability_that_is_not_on_offer(rig: Rig, way: Way, durability: int) -> None:
    async with rig.seen():
        status = await way(rig, with_message(min_durability=durability)(rig))
    assert summary(status) == Refused("FAILED_PRECONDITION", "DURABILITY_UNAVAILABLE")
    assert rig.alice.manager.outbox.head == 0


@WAYS
async def test_a_message_id_used_for_another_message(rig: Rig, way: Way) -> None:
    await rig.send(rig.alice, message_id="m1")
    changes: tuple[dict[str, Any], ...] = (
        {"payload": b"[]"},
        {"event_type": "e"},
        {"reply_to": "r"},
        {"critical": True},
    )
    for change in changes:
        async with rig.seen():
            status = await way(rig, with_message(**{"message_id": "m1", **change})(rig))
        assert summary(status) == Refused("ALREADY_EXISTS", "MESSAGE_ID_REUSED")
    assert rig.alice.manager.outbox.head == 1


@WAYS
async def test_a_full_outbox(make_rig: MakeRig, way: Way) -> None:
    """Away, and having acknowledged once: nothing gives way."""
    rig = await make_rig(limits=Limits(outbox=OutboxLimits(max_messages=2)))
    await rig.send(rig.alice)
    rig.alice.manager.acknowledge(rig.alice.socket.attach_id, 1, rig.at())
    rig.alice.socket.paused = True
    await rig.send(rig.alice)
    await rig.send(rig.alice)
    async with rig.seen():
        status = await way(rig, rig.attempt())
    assert summary(status) == Refused("RESOURCE_EXHAUSTED", "OUTBOX_FULL", retry_s=1.0)
    assert rig.alice.manager.outbox.head == 3


@WAYS
async def test_a_full_reserve_of_critical_events(make_rig: MakeRig, way: Way) -> None:
    rig = await make_rig(limits=Limits(outbox=OutboxLimits(critical_reserve=1)))
    await rig.send(rig.alice, critical=True)
    async with rig.seen():
        status = await way(rig, with_message(critical=True)(rig))
    assert summary(status) == Refused("RESOURCE_EXHAUSTED", "OUTBOX_FULL", retry_s=1.0)
    assert (await rig.send(rig.alice)).sequence == 2


@WAYS
async def test_the_limit_of_the_tokens_own_user(make_rig: MakeRig, way: Way) -> None:
    rig = await make_rig(limits=Limits(queued_bytes_per_user=2 * 258))
    rig.alice.socket.paused = True  # what was never written does not give way
    await rig.send(rig.alice)
    await rig.send(rig.alice)
    async with rig.seen(AuditEvent.LIMIT_ENFORCED, resource_limit_enforcements=1) as records:
        status = await way(rig, rig.attempt())
    assert summary(status) == Refused("RESOURCE_EXHAUSTED", "USER_LIMIT", retry_s=1.0)
    assert records[0]["user_id"] == "alice"


@WAYS
async def test_a_users_rate(make_rig: MakeRig, way: Way) -> None:
    rig = await make_rig(limits=Limits(messages_per_second_per_user=2))
    await rig.send(rig.alice)
    await rig.send(rig.alice)
    async with rig.seen():
        status = await way(rig, rig.attempt())
    assert summary(status) == Refused("RESOURCE_EXHAUSTED", "RATE_LIMITED", retry_s=0.5)
    rig.clock.advance(0.5)
    assert (await rig.send(rig.alice)).sequence == 3


@WAYS
async def test_draining_refuses_what_nobody_would_receive(rig: Rig, way: Way) -> None:
    """With the store in memory a message to a context without its socket would die with the process."""
    away = rig.connect("erin", attached=False)
    rig.factory.draining = True
    async with rig.seen():
        status = await way(rig, rig.attempt(away))
    assert summary(status) == Refused("UNAVAILABLE", "DRAINING", retry_s=5.0)
    assert away.manager.outbox.head == 0
    assert (await rig.send(rig.alice)).sequence == 1


@WAYS
async def test_a_repeat_is_answered_with_the_first_receipt(rig: Rig, way: Way) -> None:
    first = await rig.send(rig.alice, message_id="m1")
    rig.clock.advance(1)
    attempt = rig.attempt(message_id="m1")
    if way is by_unary:
        again = (await rig.unary(attempt)).receipt
    elif way is by_batch:
        again = (await rig.batch(attempt))[0].receipt
    else:
        stream = rig.deliver()
        await stream.opened(1, attempt)
        await stream.send((1, attempt.message))
        again = (await stream.receipts(1))[0].receipt
        await stream.finish()
    assert again.duplicate
    assert (again.message_id, again.sequence, again.accepted_time) == ("m1", 1, first.accepted_time)
    assert len(rig.alice.socket.frames) == 1
