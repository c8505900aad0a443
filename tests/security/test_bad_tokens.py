"""Bad user tokens of an HMAC issuer at every way in: one answer, one record with its fault, no manager, no word of it.

Each token is a good one but for what its case says; that good ones are let in is shown beside.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.forge import ABSENT, Hand, other_bits, segment
from tests.security.token_cases import (
    DAY_S,
    Case,
    claims,
    dates,
    header,
    literal,
    padded,
    part,
    payload,
    text,
    with_signature,
)
from tests.security.token_watch import IN_TEXT, NOT_OFFERED, Watch
from tests.support.running import AUDIENCE, ISSUER, RunningSidecar, running_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

ATTACKER = Hand.with_secret(ISSUER, AUDIENCE, b"a secret of the attacker's own, long enough")


def attacker(name: str, fault: str, /, **changes: object) -> Case:
    """A token signed with a key that its own header offers or points to."""
    return Case(name, fault, lambda hand: ATTACKER.token(hand.claims(), ATTACKER.head(**changes)))


def unsigned_as(algorithm: str) -> Case:
    """A token with anybody's signature, for a verifier that believes what it says of itself."""
    name = f"alg {algorithm}"
    return Case(name, "algorithm", lambda hand: ATTACKER.token(hand.claims(), hand.head(alg=algorithm)))


MINE = segment(b"a secret of the attacker's own, long enough")

CASES = [
    # the algorithm (RFC 8725 §3.1)
    unsigned_as("none"),
    unsigned_as("nOnE"),
    Case(
        "alg none, no signature",
        "malformed",
        lambda hand: ".".join((segment({"alg": "none"}), segment(hand.claims()), "")),
    ),
    Case("alg nOnE, two segments", "malformed", lambda hand: f"{segment({'alg': 'nOnE'})}.{segment(hand.claims())}"),
    header("alg of another strength", "algorithm", alg="HS512"),
    header("alg asymmetric", "algorithm", alg="RS256"),
    header("alg in lower case", "algorithm", alg="hs256"),
    header("alg absent", "algorithm", alg=ABSENT),
    header("alg null", "algorithm", alg=None),
    header("alg a list", "algorithm", alg=["HS256"]),
    # what a header may not say
    header("crit", "header", crit=["exp"]),
    header("crit empty", "header", crit=[]),
    header("crit null", "header", crit=None),
    header("b64=false, crit", "header", b64=False, crit=["b64"]),
    header("b64=false", "header", b64=False),
    header("b64=true", "header", b64=True),
    # the key
    attacker("signed by another", "signature"),
    attacker("jku", "signature", jku="https://evil.test/jwks.json"),
    attacker("x5u", "signature", x5u="https://evil.test/chain.pem"),
    attacker("jwk", "signature", jwk={"kty": "oct", "k": MINE}),
    attacker("x5c", "signature", x5c=[MINE]),
    attacker("jku and a kid of its set", "key", jku="https://evil.test/jwks.json", kid="evil"),
    header("kid of no key", "key", kid="k1"),
    header("kid empty", "key", kid=""),
    header("kid traversal", "key", kid="../../../../../../dev/null"),
    Case(
        "kid traversal to a key of nothing",
        "key",
        lambda hand: Hand.with_secret(ISSUER, AUDIENCE, b"", kid="../../../../dev/null").token(hand.claims()),
    ),
    header("kid a query", "key", kid="x' UNION SELECT 'secret"),
    header("kid a number", "header", kid=0),
    header("kid null", "header", kid=None),
    header("kid a list", "header", kid=["k1"]),
    # the type (RFC 8725 §3.11)
    header("typ of a context token", "type", typ="ctx+jwt"),
    header("typ of a logout token", "type", typ="logout+jwt"),
    header("typ null", "type", typ=None),
    header("typ a number", "type", typ=1),
    header("typ with a space", "type", typ="JWT "),
    # the form (RFC 7515 §7.1)
    text("one segment", lambda token: part(token, 1)),
    text("two segments", lambda token: token.rpartition(".")[0]),
    text("four segments", lambda token: f"{token}.{part(token, 2)}"),
    text("four segments, one empty", lambda token: f"{token}."),
    text("five segments", lambda token: f"{token}.AAAA.AAAA"),
    text("no header", lambda token: token[token.index(".") :]),
    text("no claims", lambda token: f"{part(token, 0)}..{part(token, 2)}"),
    text("no signature", lambda token: token.rpartition(".")[0] + "."),
    text("signature cut", lambda token: with_signature(token, b"x" * 31), fault="signature"),
    text("signature longer", lambda token: token + "A", fault="signature"),
    text("signature of zeros", lambda token: with_signature(token, bytes(32)), fault="signature"),
    text("trailing bits in the signature", lambda token: f"{token.rpartition('.')[0]}.{other_bits(part(token, 2))}"),
    text("padding", lambda token: f"{token}=", NOT_OFFERED),
    text("padding in the header", lambda token: token.replace(".", "=.", 1), NOT_OFFERED),
    text("plus", lambda token: f"{token[:-3]}+{token[-2:]}"),
    text("slash", lambda token: f"{token[:-3]}/{token[-2:]}", NOT_OFFERED),
    text("percent", lambda token: token.replace(".", "%2E")),
    text("junk that a lenient decoder skips", lambda token: f"{token[:-3]}!{token[-3:]}"),
    text("space within", lambda token: f"{token[:-3]} {token[-3:]}", NOT_OFFERED),
    text("tab within", lambda token: f"{token[:-3]}\t{token[-3:]}", NOT_OFFERED),
    text("space before", lambda token: f" {token}", IN_TEXT),
    text("space behind", lambda token: f"{token} ", IN_TEXT),
    text("newline behind", lambda token: f"{token}\n", IN_TEXT),
    text("CRLF within", lambda token: token.replace(".", ".\r\n", 1), IN_TEXT),
    text("NUL behind", lambda token: f"{token}\0", IN_TEXT),
    text("its scheme before", lambda token: f"Bearer {token}", NOT_OFFERED),
    text("a digit that is not ASCII", lambda token: f"{token[:-1]}\u0663", IN_TEXT),
    text("a letter that is not ASCII", lambda token: f"{token}\u00e4", IN_TEXT),
    text("full width", lambda token: token.translate({ord("A"): "\uff21", ord("e"): "\uff45"}), IN_TEXT),
    text("a character beyond 16 bits", lambda token: f"{token}\U0001f511", IN_TEXT),
    Case("garbage", "malformed", lambda _: "garbage"),
    Case("4,097 characters", "too_long", lambda hand: padded(hand, 4097)),
    # JSON (RFC 8259)
    payload("claims no JSON", "claims"),
    payload("claims nothing but a space", " "),
    payload("claims an array", "[]"),
    payload("claims a string", '"claims"'),
    payload("claims null", "null"),
    payload("claims not UTF-8", b'{"sub":"\xff"}'),
    payload("claims in UTF-16", '{"sub":"alice"}'.encode("utf-16")),
    payload("claims with a byte order mark", b'\xef\xbb\xbf{"sub":"alice"}'),
    Case("claims and more", "malformed", lambda hand: hand.token(hand.literal() + "{}")),
    Case("claims cut", "malformed", lambda hand: hand.token(hand.literal()[:-1])),
    Case("header an array", "malformed", lambda hand: hand.token(header='[{"alg":"HS256"}]')),
    Case("header a string", "malformed", lambda hand: hand.token(header='"HS256"')),
    Case("alg repeated", "malformed", lambda hand: hand.token(header='{"alg":"HS256","alg":"HS256"}')),
    Case("alg repeated, one none", "malformed", lambda hand: hand.token(header='{"alg":"none","alg":"HS256"}')),
    literal("sub repeated", "malformed", sub='"mallory","sub":"alice"'),
    literal("sub repeated, escaped", "malformed", sub='"mallory","\\u0073ub":"alice"'),
    literal("exp repeated", "malformed", exp='1,"exp":9999999999'),
    literal("a member repeated in an object", "malformed", z='{"a":1,"a":1}'),
    literal("a member repeated in a list's object", "malformed", z='[[{"a":1,"a":1}]]'),
    literal("arrays 33 deep", "malformed", z="[" * 32 + "]" * 32),
    literal("objects 33 deep", "malformed", z='{"a":' * 32 + "1" + "}" * 32),
    literal("arrays 1,200 deep", "malformed", z="[" * 1200 + "]" * 1200),
    literal("NaN", "malformed", z="NaN"),
    # dates
    literal("exp Infinity", "malformed", exp="Infinity"),
    literal("exp -Infinity", "malformed", exp="-Infinity"),
    literal("exp 1e999", "claims", exp="1e999"),
    literal("exp a float", "claims", exp="99999999999.0"),
    literal("exp with an exponent", "claims", exp="1e10"),
    literal("exp 2,500 digits", "claims", exp="9" * 2500),
    literal("exp 5,000 digits", "too_long", exp="9" * 5000),
    literal("exp 2^53", "claims", exp=str(2**53)),
    literal("exp negative", "claims", exp="-1"),
    claims("exp a string", "claims", exp="99999999999"),
    claims("exp true", "claims", exp=True),
    claims("exp null", "claims", exp=None),
    claims("exp a list", "claims", exp=[99999999999]),
    claims("exp an object", "claims", exp={}),
    claims("iat a string", "claims", iat="1"),
    claims("iat a float", "claims", iat=1.5),
    claims("iat true", "claims", iat=True),
    claims("nbf a string", "claims", nbf="0"),
    claims("nbf null", "claims", nbf=None),
    claims("nbf a float", "claims", nbf=0.0),
    dates("expired as long ago as the leeway", "expired", "TOKEN_EXPIRED", iat=-600, exp=-30),
    dates("expired long ago", "expired", "TOKEN_EXPIRED", iat=-DAY_S, exp=-DAY_S + 60),
    dates("iat ahead of the leeway", "not_yet_valid", iat=300),
    dates("nbf ahead of the leeway", "not_yet_valid", nbf=300),
    dates("a day and a second", "lifetime", iat=0, exp=DAY_S + 1),
    dates("a year", "lifetime", iat=0, exp=365 * DAY_S),
    dates("exp before iat", "lifetime", iat=10, exp=5),
    dates("exp at iat", "lifetime", iat=0, exp=0),
    # who, for whom
    claims("iss absent", "issuer", iss=ABSENT),
    claims("iss a prefix", "issuer", iss=ISSUER[:-1]),
    claims("iss longer", "issuer", iss=ISSUER + "/"),
    claims("iss as a host's part", "issuer", iss=ISSUER + ".evil.test"),
    claims("iss in capitals", "issuer", iss=ISSUER.upper()),
    claims("iss a list", "issuer", iss=[ISSUER]),
    claims("iss an object", "issuer", iss={"iss": ISSUER}),
    claims("iss null", "issuer", iss=None),
    claims("iss of context tokens", "issuer", iss="ws-sidecar"),
    claims("aud absent", "audience", aud=ABSENT),
    claims("aud another", "audience", aud="other"),
    claims("aud a list", "audience", aud=[AUDIENCE]),
    claims("aud a list of two", "audience", aud=[AUDIENCE, "other"]),
    claims("aud a prefix", "audience", aud=AUDIENCE[:-1]),
    claims("aud null", "audience", aud=None),
    claims("aud of context tokens", "audience", aud="sidecar"),
    claims("exp absent", "claims", exp=ABSENT),
    claims("iat absent", "claims", iat=ABSENT),
    claims("sub absent", "claims", sub=ABSENT),
    claims("sub empty", "claims", sub=""),
    claims("sub null", "claims", sub=None),
    claims("sub a number", "claims", sub=7),
    claims("sub a list", "claims", sub=["alice"]),
    claims("sub CRLF", "claims", sub='alice\r\n{"event":"forged"}'),
    claims("sub newline behind", "claims", sub="alice\n"),
    claims("sub NUL", "claims", sub="alice\0"),
    claims("sub a wildcard", "claims", sub="a.>"),
    claims("sub a star", "claims", sub="*"),
    claims("sub a path", "claims", sub="../alice"),
    claims("sub a space", "claims", sub="alice bob"),
    claims("sub not ASCII", "claims", sub="\u0430lice"),
    claims("sub a lone surrogate", "claims", sub="\ud800"),
    claims("sub 129 characters", "claims", sub="a" * 129),
    claims("sub 2 KB", "claims", sub="a" * 2048),
    claims("sub 10 KB", "too_long", IN_TEXT, sub="a" * 10_240),
    claims("tid null", "claims", tid=None),
    claims("tid empty", "claims", tid=""),
    claims("tid a number", "claims", tid=1),
    claims("tid a wildcard", "claims", tid="acme.>"),
    claims("sid with a space", "claims", sid="a b"),
    claims("sid null", "claims", sid=None),
    claims("jti a number", "claims", jti=1),
    claims("permissions a string", "claims", permissions="admin"),
    claims("a permission a number", "claims", permissions=[1]),
    claims("65 permissions", "claims", permissions=["p"] * 65),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    # What a bad refresh leaves detached must not end while it is counted.
    with running_sidecar(tmp_path_factory.mktemp("tokens"), SIDECAR_OUTBOX__RESUME_WINDOW_S="3600") as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_bad_token_gets_the_one_answer_everywhere(watch: Watch, case: Case) -> None:
    token = case.make(watch.hand)
    good = watch.hand.token(watch.hand.claims(sub=f"user-{CASES.index(case)}"))
    await watch.refused_everywhere(token, case.fault, case.reason, case.through, good)
