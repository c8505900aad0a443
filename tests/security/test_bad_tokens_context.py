"""Bad context tokens, signed with the sidecar's own key: what the signature cannot say, the claims and the header must.

By the three ways that a context token takes: metadata, an item of a batch, a lane. That a service presents a token of
another key, or none, is test_bad_grpc_tokens.py's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidecar.api.v1 import delivery_service_pb2 as api
from sidecar.api.v1 import types_pb2
from tests.security import token_doors as doors
from tests.security.forge import ABSENT, Hand, decode_segment, read, segment
from tests.security.token_cases import Case, claims, dates, header, literal, padded, payload, text, with_signature
from tests.security.token_watch import Watch
from tests.support.running import RunningSidecar, running_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR_S = 3600
WAYS = ("SendToUser", "SendBatch", "Deliver")
IN_A_FIELD = ("SendBatch", "Deliver")
"""For what gRPC puts into no metadata."""


def stranger(name: str, fault: str, change: Callable[[Hand], Hand]) -> Case:
    """A token by another hand."""
    return Case(name, fault, lambda hand: change(hand).token(hand.claims()))


def with_other_secret(hand: Hand) -> Hand:
    other = Hand.with_secret(hand.issuer, hand.audience, b"a secret of the attacker's own, long enough")
    return Hand(hand.issuer, hand.audience, hand.header, other.sign)


CASES = [
    # the header
    header("typ of a user token", "type", typ="JWT"),
    header("typ absent", "type", typ=ABSENT),
    header("typ in capitals", "type", typ="CTX+JWT"),
    header("typ with its prefix", "type", typ="application/ctx+jwt"),
    header("typ null", "type", typ=None),
    header("alg none", "algorithm", alg="none"),
    header("alg nOnE", "algorithm", alg="nOnE"),
    header("alg of another strength", "algorithm", alg="HS512"),
    header("alg asymmetric", "algorithm", alg="ES256"),
    header("crit", "header", crit=["exp"]),
    header("b64=false", "header", b64=False, crit=["b64"]),
    header("kid absent", "key", kid=ABSENT),
    header("kid of no key", "key", kid="0000000000000000"),
    header("kid traversal", "key", kid="../context.keys"),
    header("kid a number", "header", kid=0),
    header("jku and a kid of its set", "key", jku="https://evil.test/jwks", kid="evil"),
    # the signature and the form
    stranger("signed by another", "signature", with_other_secret),
    Case(
        "a key in the header",
        "signature",
        lambda hand: with_other_secret(hand).token(
            hand.claims(), hand.head(jwk={"kty": "oct", "k": segment("x" * 32)})
        ),
    ),
    text("signature of zeros", lambda token: with_signature(token, bytes(32)), WAYS, "signature"),
    text("two segments", lambda token: token.rpartition(".")[0], WAYS),
    text("four segments", lambda token: f"{token}.AAAA", WAYS),
    text("padding", lambda token: f"{token}=", WAYS),
    text("newline behind", lambda token: f"{token}\n", IN_A_FIELD),
    text("not ASCII", lambda token: f"{token}\u00e4", IN_A_FIELD),
    text("a megabyte", lambda token: token + "A" * 1_000_000, IN_A_FIELD, "too_long"),
    Case("4,097 characters", "too_long", lambda hand: padded(hand, 4097)),
    payload("claims an array", "[]"),
    literal("sub repeated", "malformed", sub='"mallory","sub":"alice"'),
    literal("ik repeated", "malformed", ik=f'"{"0" * 64}","ik":"{"1" * 64}"'),
    literal("objects 33 deep", "malformed", z='{"a":' * 32 + "1" + "}" * 32),
    # what must be there
    *(claims(f"{name} absent", "claims", **{name: ABSENT}) for name in ("exp", "iat", "nbf", "sub", "tid", "sid")),
    *(claims(f"{name} absent", "claims", **{name: ABSENT}) for name in ("cid", "ik", "scope", "fam", "jti")),
    claims("iss absent", "issuer", iss=ABSENT),
    claims("iss a prefix", "issuer", iss="ws-sideca"),
    claims("iss a list", "issuer", iss=["ws-sidecar"]),
    claims("aud absent", "audience", aud=ABSENT),
    claims("aud of user tokens", "audience", aud="chat"),
    claims("aud a list", "audience", aud=["sidecar"]),
    # of which form
    *(claims(f"{name} a wildcard", "claims", **{name: "a.>"}) for name in ("sub", "tid", "sid", "cid", "jti", "fam")),
    *(claims(f"{name} a number", "claims", **{name: 7}) for name in ("sub", "tid", "sid", "cid", "jti", "fam")),
    claims("sub NUL", "claims", sub="alice\0"),
    claims("sub CRLF", "claims", sub="alice\r\nx"),
    claims("ik empty", "claims", ik=""),
    claims("ik a star", "claims", ik="*"),
    claims("ik in capitals", "claims", ik="A" * 64),
    claims("ik with a newline", "claims", ik="a" * 64 + "\n"),
    claims("ik a list", "claims", ik=["a" * 64]),
    claims("scope unheard of", "claims", scope="send admin"),
    claims("scope in capitals", "claims", scope="SEND"),
    claims("scope a list", "claims", scope=["send"]),
    claims("scope between two spaces", "claims", scope="send  emit"),
    # dates
    literal("exp Infinity", "malformed", exp="Infinity"),
    literal("exp a float", "claims", exp="99999999999.0"),
    literal("exp 2,500 digits", "claims", exp="9" * 2500),
    claims("exp a string", "claims", exp="99999999999"),
    claims("exp true", "claims", exp=True),
    claims("nbf null", "claims", nbf=None),
    dates("expired as long ago as the leeway", "expired", "TOKEN_EXPIRED", iat=-600, exp=-5),
    dates("iat ahead of the leeway", "not_yet_valid", iat=120),
    dates("nbf ahead of the leeway", "not_yet_valid", nbf=120),
    dates("an hour and a second", "lifetime", iat=0, exp=HOUR_S + 1),
    dates("a day", "lifetime", iat=0, exp=24 * HOUR_S),
    dates("exp at iat", "lifetime", iat=0, exp=0),
]

GOOD: dict[str, Callable[[Hand], str]] = {
    "as usual": lambda hand: hand.token(),
    "4,096 characters": lambda hand: padded(hand, 4096),
    "an hour": lambda hand: hand.token(hand.claims(exp=int(str(hand.claims()["iat"])) + HOUR_S)),
    "iat ahead by the leeway": lambda hand: hand.token(hand.claims(iat=int(str(hand.claims()["iat"])) + 5)),
    "pointers to keys, which are not followed": lambda hand: hand.token(header=hand.head(jku="https://evil.test")),
}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("context")) as running:
        yield running


@pytest.fixture
def hand(watch: Watch) -> Hand:
    """The sidecar's own hand: its key, and the claims of the bystander's token."""
    token = watch.other.context_token
    ring = json.loads(watch.sidecar.audit_path.with_name("context.keys").read_text())
    (key,) = [key for key in ring["keys"] if key["kid"] == read(token, 0)["kid"]]
    own = Hand.with_secret("ws-sidecar", "sidecar", decode_segment(key["secret"]))
    claims = {name: value for name, value in read(token, 1).items() if name not in {"iss", "aud", "iat", "exp"}}
    return Hand(own.issuer, own.audience, read(token, 0), own.sign, claims)


async def present(watch: Watch, way: str, token: str, address: str, payload: bytes) -> Any:
    """Send the bystander this payload with this token; a receipt, or the refusal's status, serialised."""
    key, message = watch.other.isolation_key, types_pb2.Message(payload=payload)
    async with doors.channel(watch.sidecar, address) as own:
        stub = doors.deliveries(own)
        if way == "SendToUser":
            call = api.SendToUserRequest(isolation_key=key, message=message)
            answer = await doors.outcome(stub.SendToUser(call, metadata=(("x-context-token", token),), timeout=10))
            return answer if isinstance(answer, bytes) else answer.receipt
        if way == "SendBatch":
            item = api.SendBatchItem(isolation_key=key, context_token=token, message=message)
            (result,) = (await stub.SendBatch(api.SendBatchRequest(items=[item]), timeout=10)).results
            return result.receipt if result.HasField("receipt") else result.error.SerializeToString()
        return await by_lane(stub, key, token, message)


async def by_lane(stub: Any, key: str, token: str, message: types_pb2.Message) -> Any:
    """The same by a lane of a stream."""
    opening = api.DeliverRequest.OpenLane(lane=1, isolation_key=key, context_token=token)
    stream = stub.Deliver(timeout=10)
    await stream.write(api.DeliverRequest(open_lane=opening))
    answer = await stream.read()
    if answer.HasField("lane_opened"):
        items = [api.DeliverRequest.LaneMessage(lane=1, message=message)]
        await stream.write(api.DeliverRequest(messages=api.DeliverRequest.Messages(items=items)))
        answer = (await stream.read()).receipts.items[0].receipt
    else:
        answer = answer.lane_error.error.SerializeToString()
    await stream.done_writing()
    return answer


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_bad_context_token_opens_nothing(watch: Watch, hand: Hand, case: Case) -> None:
    token, records = case.make(hand), []
    for way in case.through if set(case.through) <= set(WAYS) else WAYS:
        address = doors.new_address()
        answer, _ = await asyncio.gather(present(watch, way, token, address, b'"bad"'), watch.goes_on())
        assert answer == doors.status(case.reason)
        facts = {"address": address, "reason": case.reason, "method": way, "fault": case.fault}
        records.append({"event": "token_denied", **facts})
    await watch.left(records, token=token)


@pytest.mark.parametrize("name", GOOD)
async def test_a_context_token_at_the_limit_opens_its_context(watch: Watch, hand: Hand, name: str) -> None:
    """What the table changes one thing of is good, and reaches the bystander in its turn."""
    for way in WAYS:
        payload = watch.say().encode()
        receipt = await present(watch, way, GOOD[name](hand), doors.new_address(), payload)
        await watch.heard(receipt.sequence)
    await watch.left([])


async def test_a_user_token_is_no_context_token(watch: Watch, hand: Hand) -> None:
    token, address = watch.hand.token(watch.hand.claims(sub="bystander")), doors.new_address()
    assert await present(watch, "SendToUser", token, address, b"1") == doors.status("TOKEN_INVALID")
    facts = {"address": address, "reason": "TOKEN_INVALID", "method": "SendToUser", "fault": "type"}
    await watch.left([{"event": "token_denied", **facts}], token=token)


async def test_two_context_tokens_are_none(watch: Watch, hand: Hand) -> None:
    """Two tokens in the metadata, good ones at that: which was meant is not guessed."""
    address, token = doors.new_address(), hand.token()
    message = types_pb2.Message(payload=b"1")
    call = api.SendToUserRequest(isolation_key=watch.other.isolation_key, message=message)
    async with doors.channel(watch.sidecar, address) as own:
        twice = (("x-context-token", token), ("x-context-token", token))
        answer = await doors.outcome(doors.deliveries(own).SendToUser(call, metadata=twice, timeout=10))
    assert answer == doors.status("TOKEN_INVALID")
    facts = {"address": address, "reason": "TOKEN_INVALID", "method": "SendToUser", "fault": "malformed"}
    await watch.left([{"event": "token_denied", **facts}], token=token)
