"""Bad context tokens, keys and scopes by every way into the gRPC edge of a running sidecar.

Each case: the exact refusal, its one audit record, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import types_pb2
from tests.rpc.rig import Attempt, Refused, refused
from tests.support.stage import OPERATOR, SCOPES, Stage, check_status, staged
from tests.support.ways import (
    KEYED,
    METHODS,
    SENDING,
    Way,
    as_client,
    by_batch,
    by_broadcast,
    by_close,
    by_event,
    by_lane,
    by_look,
    by_refresh,
    by_revocation,
    by_stats,
    named,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = Refused("UNAUTHENTICATED", "TOKEN_INVALID")
VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
SCOPE_MISSING = Refused("PERMISSION_DENIED", "SCOPE_MISSING")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("tokens")) as stage:
        yield stage


async def refuse(
    stage: Stage, ways: Iterable[Way], attempt: Attempt, expected: Refused, event: str
) -> list[dict[str, Any]]:
    """Play one case by each of these ways; the records, one for each and no more."""
    ways = tuple(ways)
    async with stage.caller() as caller, stage.seen(**{event: len(ways)}) as records:
        for way in ways:
            status = await way(caller, stage, attempt)
            outcome = check_status(status, attempt.token, attempt.key, attempt.message.payload)
            assert outcome == expected, METHODS[way]
    assert [record["method"] for record in records] == [METHODS[way] for way in ways]
    assert {record["reason"] for record in records} == {expected.reason}
    assert {record["address"] for record in records} == {caller.address}
    return records


# Tokens


@dataclass(frozen=True)
class BadToken:
    """What is presented for Alice's context token, the reason it gets, and what the trail says was wrong."""

    id: str
    make: Callable[[Stage], str]
    fault: str
    reason: str = "TOKEN_INVALID"
    in_metadata: bool = True


def signature_of(token: str) -> str:
    return token.rpartition(".")[2]


def with_bad_signature(stage: Stage) -> str:
    token = stage.tokens[stage.alice.isolation_key]
    signature = signature_of(token)
    return token.removesuffix(signature) + ("B" if signature[0] == "A" else "A") + signature[1:]


TOKENS = (
    BadToken("none", lambda stage: "", "missing", "TOKEN_MISSING"),
    BadToken("garbage", lambda stage: "garbage", "malformed"),
    BadToken("two segments", lambda stage: stage.alice.context_token.rpartition(".")[0], "malformed"),
    BadToken("4,096 characters", lambda stage: "a" * 4_096, "malformed"),
    BadToken("4,097 characters", lambda stage: "a" * 4_097, "too_long"),
    BadToken("5,000 characters", lambda stage: stage.alice.context_token.ljust(5_000, "a"), "too_long"),
    BadToken("a service token", lambda stage: OPERATOR, "malformed"),
    BadToken("a user token", lambda stage: stage.sidecar.user_token("alice"), "type"),
    BadToken("a bad signature", with_bad_signature, "signature"),
    BadToken("another issuer", lambda stage: stage.forged(stage.alice, iss="ws-sidecar2"), "issuer"),
    BadToken("another audience", lambda stage: stage.forged(stage.alice, aud="sidecar2"), "audience"),
    BadToken("an unknown scope", lambda stage: stage.forged(stage.alice, scope="send *"), "claims"),
    BadToken("no NUL in a name", lambda stage: stage.forged(stage.alice, sub="alice\0"), "claims"),
    BadToken("expired", lambda stage: stage.forged(stage.alice, iat=1, nbf=1, exp=900), "expired", "TOKEN_EXPIRED"),
    BadToken("revoked", lambda stage: stage.revoked, "revoked", "TOKEN_REVOKED"),
    BadToken("not ASCII", lambda stage: stage.alice.context_token + "\u00e9", "malformed", in_metadata=False),
    BadToken("NUL", lambda stage: stage.alice.context_token + "\0", "malformed", in_metadata=False),
    BadToken("newline", lambda stage: stage.alice.context_token + "\n", "malformed", in_metadata=False),
)


IN_METADATA = tuple(METHODS)
IN_A_FIELD = (by_batch, by_lane)
"""Where a token may be any text; what grpcio puts into no metadata, test_bad_grpc_transport.py does."""


@pytest.mark.parametrize("case", TOKENS, ids=lambda case: case.id)
async def test_a_token_that_is_not_good(stage: Stage, case: BadToken) -> None:
    attempt = replace(stage.attempt(), token=case.make(stage))
    ways = IN_METADATA if case.in_metadata else IN_A_FIELD
    records = await refuse(stage, ways, attempt, Refused("UNAUTHENTICATED", case.reason), "token_denied")
    assert {record["fault"] for record in records} == {case.fault}


async def test_a_context_that_has_ended(stage: Stage) -> None:
    attempt, gone = stage.attempt(stage.gone), Refused("NOT_FOUND", "MANAGER_GONE")
    for record in await refuse(stage, METHODS.keys() - {by_revocation}, attempt, gone, "token_denied"):
        assert (record["user_id"], record["connection_id"]) == ("gone", stage.gone.welcome["connection_id"])


async def test_revoking_for_a_context_that_has_ended_changes_nothing(stage: Stage) -> None:
    """There is nothing left that the token opens: its holder has what was asked for."""
    async with stage.caller() as caller, stage.seen(token_revoked=1):
        token = stage.tokens[stage.gone.isolation_key]
        await caller.context.RevokeContextToken(context_pb.RevokeContextTokenRequest(), **as_client(token))


async def test_a_token_for_the_context_of_somebody_else(stage: Stage) -> None:
    """Signed with the sidecar's own key, as only a bug could: the owner is checked beside the key."""
    key = stage.carol.isolation_key
    attempt = replace(stage.attempt(stage.carol), token=stage.forged(stage.alice, ik=key))
    records = await refuse(stage, METHODS, attempt, VIOLATION, "isolation_violation")
    assert {record["user_id"] for record in records} == {"alice"}


@pytest.mark.parametrize("again", [True, False], ids=["the same", "another"])
async def test_two_tokens(stage: Stage, again: bool) -> None:
    token = stage.tokens[stage.alice.isolation_key]
    async with stage.caller() as caller, stage.seen(token_denied=1) as records:
        metadata = (("x-context-token", token), ("x-context-token", token if again else "garbage"))
        call = caller.context.GetContext(context_pb.GetContextRequest(), metadata=metadata)
        assert check_status(await refused(call), token) == INVALID
    assert records[0]["fault"] == "malformed"


@pytest.mark.parametrize("name", ["x-context-token-bin", "x-other-bin"])
async def test_binary_metadata_is_no_token(stage: Stage, name: str) -> None:
    metadata = ((name, stage.tokens[stage.alice.isolation_key].encode() + b"\xff\0"),)
    async with stage.caller() as caller, stage.seen(token_denied=1):
        call = caller.context.GetContext(context_pb.GetContextRequest(), metadata=metadata)
        assert check_status(await refused(call)) == Refused("UNAUTHENTICATED", "TOKEN_MISSING")


# Keys


@dataclass(frozen=True)
class BadKey:
    """What is named beside Alice's good token."""

    id: str
    make: Callable[[Stage], str]
    expected_user_id: str = ""


KEYS = (
    BadKey("another user's", lambda stage: stage.carol.isolation_key),
    BadKey("another tenant's", lambda stage: stage.stranger.isolation_key),
    BadKey("her own second context's", lambda stage: stage.second.isolation_key),
    BadKey("an ended one", lambda stage: stage.gone.isolation_key),
    BadKey("an unknown one", lambda stage: "0" * 64),
    BadKey("her own in capitals", lambda stage: stage.alice.isolation_key.upper()),
    BadKey("her own and NUL", lambda stage: stage.alice.isolation_key + "\0"),
    BadKey("*", lambda stage: "*"),
    BadKey(">", lambda stage: ">"),
    BadKey("../", lambda stage: "../"),
    BadKey("NUL", lambda stage: "\0"),
    BadKey("100,000 characters", lambda stage: "a" * 100_000),
)
MEANT = (
    BadKey("another user", lambda stage: stage.alice.isolation_key, "carol"),
    BadKey("any user", lambda stage: stage.alice.isolation_key, "*"),
    BadKey("her name and NUL", lambda stage: stage.alice.isolation_key, "alice\0"),
)


@pytest.mark.parametrize("case", [*KEYS, *MEANT], ids=lambda case: case.id)
async def test_a_key_that_is_not_the_tokens(stage: Stage, case: BadKey) -> None:
    attempt = replace(stage.attempt(), key=case.make(stage), expected_user_id=case.expected_user_id)
    ways = (*SENDING, by_event) if case in MEANT else KEYED
    for record in await refuse(stage, ways, attempt, VIOLATION, "isolation_violation"):
        assert (record["user_id"], record["connection_id"]) == ("alice", stage.alice.welcome["connection_id"])


async def test_an_empty_key(stage: Stage) -> None:
    """Recorded nowhere: it names nothing."""
    attempt = replace(stage.attempt(), key="")
    async with stage.caller() as caller, stage.seen():
        for way in KEYED:
            status = check_status(await way(caller, stage, attempt), attempt.token)
            assert status == Refused("INVALID_ARGUMENT", "BAD_REQUEST", field="isolation_key"), METHODS[way]


@pytest.mark.parametrize("way", KEYED, ids=named)
async def test_there_is_no_oracle(stage: Stage, way: Way) -> None:
    """Keys of others that live, have ended, are another tenant's or made up: the same bytes."""
    others = (stage.carol, stage.stranger, stage.gone)
    keys = (*(user.isolation_key for user in others), "f" * 64)
    async with stage.caller() as caller, stage.seen(isolation_violation=len(keys)) as records:
        attempts = [replace(stage.attempt(), key=key) for key in keys]
        statuses = {(await way(caller, stage, attempt)).SerializeToString() for attempt in attempts}
        assert len(statuses) == 1
    told = [{name: record[name] for name in record if name not in CHAIN} for record in records]
    assert all(one == told[0] for one in told)


CHAIN = ("sequence", "time", "hash", "previous")
"""The members of a record that say which it is."""


# Scopes


@dataclass(frozen=True)
class LackingScope:
    """A way, and the scopes without which it is refused."""

    way: Way
    needed: str
    message: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return f"{METHODS[self.way]} without {self.needed}"


LACKING = (
    *(LackingScope(way, "send") for way in SENDING),
    *(LackingScope(way, "emit", (("critical", True),)) for way in SENDING),
    LackingScope(by_event, "emit"),
    LackingScope(by_broadcast, "broadcast:user"),
    LackingScope(by_broadcast, "emit", (("critical", True),)),
    LackingScope(by_close, "close"),
    LackingScope(by_stats, "stats"),
)


@pytest.mark.parametrize("case", LACKING, ids=lambda case: case.id)
async def test_a_scope_that_the_token_lacks(stage: Stage, case: LackingScope) -> None:
    scopes = " ".join(scope for scope in ("broadcast:tenant", *SCOPES) if scope != case.needed)
    message = types_pb2.Message(payload=b"{}", **dict(case.message))
    attempt = replace(stage.attempt(), token=stage.forged(stage.alice, scope=scopes), message=message)
    (record,) = await refuse(stage, (case.way,), attempt, SCOPE_MISSING, "scope_denied")
    assert record["user_id"] == "alice"


@pytest.mark.parametrize("way", [by_look, by_refresh, by_revocation], ids=named)
async def test_a_token_without_any_scope_is_a_token_all_the_same(stage: Stage, way: Way) -> None:
    """What acts on the token itself needs no scope."""
    token = stage.forged(stage.alice, scope="", fam="of-no-scope")
    granting: dict[Way, dict[str, int]] = {by_refresh: {"token_refreshed": 1}, by_revocation: {"token_revoked": 1}}
    events = granting.get(way, {})
    async with stage.caller() as caller, stage.seen(**events):
        with pytest.raises(AssertionError, match="not refused"):
            await way(caller, stage, replace(stage.attempt(), token=token))
