"""Messages to a running sidecar that break a rule, at its edge or beyond it, by every way in.

Each case: the exact refusal, the records that it adds, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from tests.rpc.rig import Refused
from tests.support.stage import Stage, check_status, staged
from tests.support.ways import METHODS, SENDING, Way, as_client, by_broadcast, by_event

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST = 262_144


def bad(name: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("messages")) as stage:
        yield stage


@dataclass(frozen=True)
class BadMessage:
    """A message to Alice that breaks a rule, and the field that the answer names."""

    id: str
    field: str
    members: Mapping[str, Any]
    as_event: str = ""
    """The field's name in EmitCriticalEvent, where it has one that can be as bad."""


def payload(id: str, data: bytes, **members: Any) -> BadMessage:
    return BadMessage(id, "message.payload", {"payload": data} | members, "" if members else "data")


def named(name: str, id: str, value: str) -> BadMessage:
    as_event = "" if name == "reply_to" else name
    return BadMessage(f"{name} {id}", f"message.{name}", {name: value}, as_event)


def ttl(id: str, **parts: int) -> BadMessage:
    return BadMessage(f"ttl {id}", "message.ttl", {"ttl": Duration(**parts)})


MESSAGES = (
    payload("no payload", b""),
    payload("not JSON", b"{x}"),
    payload("two values", b"{}{}"),
    payload("a trailing comma", b"[1,]"),
    payload("a byte order mark", b"\xef\xbb\xbf{}"),
    payload("NaN", b"[NaN]"),
    payload("Infinity", b"-Infinity"),
    payload("a lone surrogate", rb'"\ud800"'),
    payload("JSON that is not UTF-8", b'"\xed\xa0\x80"'),
    payload("an open string", b'"'),
    payload("a comment", b"{}//"),
    payload("depth 100,000", b"[" * 100_000 + b"]" * 100_000),
    payload("a forged envelope", b'1,"sequence":9'),
    payload("one byte over the limit", b'"%s"' % (b"a" * (LONGEST - 1))),
    payload("text that is not UTF-8", b"\xc3", content_type=2),
    payload("text over the limit", b"a" * (LONGEST + 1), content_type=2),
    payload("bytes over the limit", b"\0" * (LONGEST + 1), content_type=3),
    BadMessage("content type 4", "message.content_type", {"content_type": 4}),
    BadMessage("content type -1", "message.content_type", {"content_type": -1}),
    BadMessage("content type 2^31 - 1", "message.content_type", {"content_type": 2**31 - 1}),
    BadMessage("a critical text", "message.critical", {"content_type": 2, "critical": True}),
    *(
        named(member, name, value)
        for member in ("message_id", "event_type", "reply_to")
        for name, value in (("*", "*"), (">", "a.>"), ("../", "../"), ("NUL", "a\0"), ("of 129", "a" * 129))
    ),
    named("message_id", "newline", "a\n"),
    named("event_type", "space", " "),
    named("event_type", "not ASCII", "é"),
    ttl("0"),
    ttl("below 0", seconds=-1),
    ttl("a nanosecond below 0", nanos=-1),
    ttl("over a day", seconds=86_400, nanos=1),
    ttl("of 2^63 - 1", seconds=2**63 - 1),
    ttl("of -2^63", seconds=-(2**63)),
    ttl("of a second's nanoseconds", nanos=1_000_000_000),
    ttl("of mixed signs", seconds=1, nanos=-1),
    BadMessage("33 headers", "message.headers", {"headers": {f"h{n}": "" for n in range(33)}}),
    BadMessage("a header without a name", "message.headers", {"headers": {"": ""}}),
    BadMessage("a header's name", "message.headers", {"headers": {"a b": ""}}),
    BadMessage("a header's name of 129", "message.headers", {"headers": {"a" * 129: ""}}),
    BadMessage("a header of 1,025", "message.headers", {"headers": {"a": "b" * 1_025}}),
)
BY_MESSAGE = (*SENDING, by_broadcast)


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case.id)
async def test_a_message_that_breaks_a_rule(stage: Stage, case: BadMessage) -> None:
    attempt = stage.attempt(**dict(case.members))
    secrets = (attempt.token, attempt.key, attempt.message.payload)
    async with stage.caller() as caller, stage.seen():
        for way in BY_MESSAGE:
            assert check_status(await way(caller, stage, attempt), *secrets) == bad(case.field), METHODS[way]
        if case.as_event:
            assert check_status(await by_event(caller, stage, attempt), *secrets) == bad(case.as_event)


@dataclass(frozen=True)
class Refusable:
    """A well-formed message to Alice that this sidecar refuses all the same."""

    id: str
    members: Mapping[str, Any]
    expected: Refused
    broadcast: Mapping[str, int] = field(default_factory=dict)
    """What a broadcast of it leaves in the trail."""


DURABILITY = Refused("FAILED_PRECONDITION", "DURABILITY_UNAVAILABLE")
REFUSABLE = (
    # A broadcast is recorded before its first append.
    *(
        Refusable(f"min_durability {value}", {"min_durability": value}, DURABILITY, {"broadcast": 1})
        for value in (2, 3, 99)
    ),
    Refusable("a stream without an id", {"stream": types_pb2.Stream()}, bad("message.stream.stream_id")),
    Refusable("a stream named *", {"stream": types_pb2.Stream(stream_id="*")}, bad("message.stream.stream_id")),
    Refusable("a stream's 2^53", {"stream": types_pb2.Stream(stream_id="s", index=2**53)}, bad("message.stream.index")),
    Refusable("a stream's state", {"stream": types_pb2.Stream(stream_id="s", state=99)}, bad("message.stream.state")),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("case", REFUSABLE, ids=lambda case: case.id)
async def test_a_message_that_is_not_served(stage: Stage, case: Refusable) -> None:
    attempt = stage.attempt(**dict(case.members))
    async with stage.caller() as caller, stage.seen(**case.broadcast):
        for way in BY_MESSAGE:
            assert check_status(await way(caller, stage, attempt), attempt.token) == case.expected, METHODS[way]


REUSED = Refused("ALREADY_EXISTS", "MESSAGE_ID_REUSED")


@pytest.mark.parametrize("way", [*SENDING, by_event], ids=METHODS.get)
async def test_a_message_id_of_another_message(stage: Stage, way: Way) -> None:
    """The first stays what it was; a repeat of it is answered with its own receipt."""
    message_id = f"once-{METHODS[way]}"
    key, token = stage.alice.isolation_key, stage.alice.context_token
    async with stage.caller() as caller, stage.seen():
        first = await caller.send(key, token, b'"first"', message_id=message_id)
        await stage.went_to(stage.alice, 1)
        for members in ({"payload": b'"second"'}, {"event_type": "other"}, {"reply_to": "m"}, {"critical": True}):
            attempt = stage.attempt(**({"payload": b'"first"', "message_id": message_id} | members))
            assert check_status(await way(caller, stage, attempt), token, attempt.message.payload) == REUSED
            if way is by_event:
                break  # a critical event is another message whatever it says
        again = await caller.send(key, token, b'"first"', message_id=message_id)
        assert (again.duplicate, again.sequence, again.connections) == (True, first.sequence, 0)


async def test_a_broadcast_under_a_message_id_of_another_message(stage: Stage) -> None:
    """Refused by the one outbox that knows the id, accepted by the user's other context."""
    key, token = stage.alice.isolation_key, stage.tokens[stage.alice.isolation_key]
    async with stage.caller() as caller, stage.seen(broadcast=1):
        await caller.send(key, token, b'"first"', message_id="once-Broadcast")
        await stage.went_to(stage.alice, 1)
        message = types_pb2.Message(payload=b'"second"', message_id="once-Broadcast")
        request = pb.BroadcastRequest(scope=pb.BROADCAST_SCOPE_USER, message=message)
        answer = await caller.delivery.Broadcast(request, **as_client(token))
        assert (answer.managers, answer.connections, answer.refused) == (1, 1, 1)
        await stage.went_to(stage.second, 1)


@dataclass(frozen=True)
class AtTheLimit:
    """A message that is just not too much."""

    id: str
    members: Mapping[str, Any]


AT_THE_LIMIT = (
    AtTheLimit("the longest", {"payload": b'"%s"' % (b"a" * (LONGEST - 2))}),
    AtTheLimit("a day", {"ttl": Duration(seconds=86_400)}),
    AtTheLimit("a nanosecond", {"ttl": Duration(nanos=1)}),
    AtTheLimit("identifiers of 128", {"message_id": "a" * 128, "event_type": "A.z_0:@|-", "reply_to": "b" * 128}),
    AtTheLimit("32 headers of 1,024", {"headers": {f"h{n}": "é" * 1_024 for n in range(32)}}),
    AtTheLimit("no bytes", {"payload": b"", "content_type": 3}),
    AtTheLimit("text with NUL", {"payload": b"\0", "content_type": 2}),
    AtTheLimit("memory", {"min_durability": 1}),
)


@pytest.mark.parametrize("case", AT_THE_LIMIT, ids=lambda case: case.id)
async def test_a_message_at_the_limit(stage: Stage, case: AtTheLimit) -> None:
    members = {"payload": b"{}"} | dict(case.members)
    async with stage.caller() as caller, stage.seen():
        await caller.send(stage.alice.isolation_key, stage.alice.context_token, members.pop("payload"), **members)
        await stage.went_to(stage.alice, 1)
