"""First frames of `sidecar.v1.json` that get no context, and what leads to another one than they ask for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.security.websocket_watch import (
    Watch,
    context_closed,
    opened,
    quiet_sidecar,
    refused,
    socket_closed,
    watching,
)
from tests.support.raw_websocket import JSON_OFFER, text
from tests.support.running import RunningSidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_INTEGER = 2**53 - 1
BAD_FRAME = (4500, "bad_frame")


@dataclass(frozen=True)
class First:
    """A first frame that gets no context. `token`: a good one stands in the header already."""

    name: str
    members: dict[str, object]
    reason: str
    close: tuple[int, str] = BAD_FRAME
    token: bool = False
    fault: str | None = None


def hello(name: str, **members: object) -> First:
    """A hello that is no hello."""
    return First(name, {"type": "hello"} | members, "bad_frame", token=True)


def resume(name: str, **changes: object) -> First:
    """A resume that is none."""
    good: dict[str, object] = {"token": "0" * 64, "last_sequence": 0, "attempt": 1}
    return hello(name, resume={key: value for key, value in (good | changes).items() if value is not ABSENT})


ABSENT = object()
TOKEN_INVALID = (4501, "token_invalid")
FIRST = [
    First("ack first", {"type": "ack", "sequence": 0}, "no_hello"),
    First("ack first, a token in the header", {"type": "ack", "sequence": 0}, "no_hello", token=True),
    First("message first", {"type": "message", "id": "m", "data": 1}, "no_hello"),
    First("bad message first", {"type": "message"}, "no_hello"),
    First("cancel first", {"type": "cancel", "id": "m"}, "no_hello"),
    First("refresh first", {"type": "refresh", "token": "t"}, "no_hello"),
    First("an unknown type first", {"type": "what"}, "no_hello"),
    First("the server's own first", {"type": "welcome"}, "no_hello"),
    First("HELLO", {"type": "HELLO"}, "no_hello"),
    First("a second token", {"type": "hello", "token": "a.b.c"}, "two_tokens", token=True),
    First("no token", {"type": "hello"}, "token_refused", TOKEN_INVALID, fault="missing"),
    First("an empty token", {"type": "hello", "token": ""}, "token_refused", TOKEN_INVALID, fault="missing"),
    First("a bad token", {"type": "hello", "token": "a.b.c"}, "token_refused", TOKEN_INVALID, fault="malformed"),
    First(
        "a bad token before a resume",
        {"type": "hello", "token": "x", "resume": {"token": "r", "last_sequence": 0, "attempt": 1}},
        "token_refused",
        TOKEN_INVALID,
        fault="malformed",
    ),
    hello("token null", token=None),
    hello("token a number", token=1),
    hello("token a list", token=["a.b.c"]),
    hello("resume null", resume=None),
    hello("resume a string", resume="0" * 64),
    hello("resume empty", resume={}),
    hello("mirror null", mirror=None),
    hello("mirror a string", mirror="0" * 64),
    hello("mirror empty", mirror={}),
    hello("mirror's token null", mirror={"token": None}),
    hello(
        "resume and mirror",
        resume={"token": "0" * 64, "last_sequence": 0, "attempt": 1},
        mirror={"token": "0" * 64},
    ),
    resume("resume without a token", token=ABSENT),
    resume("resume's token null", token=None),
    resume("resume's token a number", token=0),
    resume("resume without last_sequence", last_sequence=ABSENT),
    resume("last_sequence negative", last_sequence=-1),
    resume("last_sequence a float", last_sequence=0.0),
    resume("last_sequence a string", last_sequence="0"),
    resume("last_sequence true", last_sequence=True),
    resume("last_sequence past 2^53 - 1", last_sequence=MAX_INTEGER + 1),
    resume("resume without an attempt", attempt=ABSENT),
    resume("attempt null", attempt=None),
    resume("attempt negative", attempt=-1),
    resume("attempt past 2^64", attempt=2**64),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with quiet_sidecar(tmp_path_factory.mktemp("hello")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(sidecar: RunningSidecar) -> AsyncIterator[Watch]:
    async with watching(sidecar) as watched:
        yield watched


@pytest.mark.parametrize("case", FIRST, ids=[case.name for case in FIRST])
async def test_a_first_frame_that_gets_no_context(watch: Watch, case: First) -> None:
    bearer = ("Authorization", f"Bearer {watch.sidecar.user_token(watch.new_user())}")
    async with watch.client() as client:
        await client.upgrade(JSON_OFFER, *((bearer,) if case.token else ()))
        client.send(text(json.dumps(case.members)))
        assert await client.end() == ((), case.close)
        await watch.left(refused(client, case.reason, **({"fault": case.fault} if case.fault else {})))


@pytest.mark.parametrize("kind", ["resume", "mirror"])
@pytest.mark.parametrize("whose", ["another user's", "another tenant's", "nobody's"])
async def test_a_resume_token_of_somebody_else_opens_a_fresh_context(watch: Watch, kind: str, whose: str) -> None:
    owner, thief = watch.new_user(), watch.new_user()
    if whose == "another tenant's":
        thief = owner
    async with watch.client() as first, watch.client() as second:
        welcome = await first.hello(watch.sidecar.user_token(owner))
        token = "0" * 64 if whose == "nobody's" else welcome["resume_token"]
        tenant = "other" if whose == "another tenant's" else None
        further = {"last_sequence": 0, "attempt": 1} if kind == "resume" else {}
        given = await second.hello(watch.sidecar.user_token(thief, tenant), **{kind: {"token": token} | further})
        assert (given["recovery"], given["sequence"]) == ("denied", 0)
        for name in ("connection_id", "session_id", "isolation_key", "context_token", "resume_token"):
            assert given[name] != welcome[name]
        denied = {
            "event": "resume_denied",
            "user_id": thief,
            "kind": kind,
            "reason": "not_found" if whose == "nobody's" else "not_yours",
            "address": second.address,
        }
        await watch.left(*opened(first, owner), denied, *opened(second, thief))
        assert await second.leave() == ((), (1000, ""))
        first.send(text('{"type":"what"}'))
        assert (await first.json())["reason"] == "BAD_REQUEST", "the owner is still there"
        assert await first.leave() == ((), (1000, ""))
        ended = [[socket_closed(user, 1000), context_closed(user, "client_closed")] for user in (thief, owner)]
        await watch.left(*ended[0], *ended[1])
