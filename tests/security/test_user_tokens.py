"""User tokens: the good ones say who the user is; every other one gets the same answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms

from sidecar.core.errors import BadRequest, ErrorReason, TokenFault, Unauthenticated
from sidecar.core.identity import VerifiedUser
from sidecar.security.files import SettingError
from sidecar.security.keys import KeySet, VerificationKey, hmac_key_set
from sidecar.security.user_tokens import IssuerSettings, UserTokenVerifier, mint_user_token
from tests.security.forge import NOW, SECRET, FakeClock, hs256, read, segment, unsigned

ISSUER = "https://idp.example"
AUDIENCE = "chat"
CLAIMS: dict[str, object] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 600}
HEADER: dict[str, object] = {"alg": "HS256", "typ": "JWT"}
SETTINGS = IssuerSettings(ISSUER, AUDIENCE, ("HS256",), hmac_key_set(SECRET))

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def signed(header: Mapping[str, object], claims: Mapping[str, object], key: PrivateKey) -> str:
    """A token signed with a private key by the algorithm that its header names."""
    signing_input = unsigned(header, claims)
    algorithm: Any = get_default_algorithms()[str(header["alg"])]
    return f"{signing_input}.{segment(algorithm.sign(signing_input.encode(), key))}"


def verifier(clock: FakeClock, **changes: Any) -> UserTokenVerifier:
    return UserTokenVerifier([dataclasses.replace(SETTINGS, **changes)], clock)


def refusal(subject: UserTokenVerifier, token: str | None) -> tuple[ErrorReason, TokenFault]:
    with pytest.raises(Unauthenticated) as caught:
        subject.verify(token)
    assert caught.value.__cause__ is None
    return caught.value.reason, caught.value.fault


def without(name: str) -> dict[str, object]:
    return {member: value for member, value in CLAIMS.items() if member != name}


def raw(**members: str) -> str:
    """The claims with some members written as these very characters."""
    texts = {name: json.dumps(value) for name, value in CLAIMS.items()} | members
    return "{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}"


def test_a_token_with_nothing_but_what_it_must_have(clock: FakeClock) -> None:
    assert verifier(clock).verify(hs256(HEADER, CLAIMS)) == VerifiedUser(
        tenant_id="default",
        user_id="alice",
        session_id=None,
        issuer=ISSUER,
        token_id=None,
        permissions=(),
        expires_at=NOW + 600,
    )


def test_a_token_with_everything(clock: FakeClock) -> None:
    claims = CLAIMS | {"tid": "acme", "sid": "s-1", "jti": "j:1", "nbf": NOW, "permissions": ["read:all", "x"], "z": {}}
    user = verifier(clock, tenants=("other", "acme")).verify(hs256({"alg": "HS256"}, claims))
    assert user == VerifiedUser("acme", "alice", "s-1", ISSUER, "j:1", ("read:all", "x"), NOW + 600)


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_a_missing_one(clock: FakeClock, token: str | None) -> None:
    assert refusal(verifier(clock), token) == (ErrorReason.TOKEN_MISSING, TokenFault.MISSING)


@pytest.mark.parametrize(
    ("claims", "fault"),
    [
        pytest.param(without("iss"), TokenFault.ISSUER, id="no iss"),
        pytest.param(CLAIMS | {"iss": "https://idp.exampl"}, TokenFault.ISSUER, id="issuer a prefix"),
        pytest.param(CLAIMS | {"iss": "https://idp.example/"}, TokenFault.ISSUER, id="issuer longer"),
        pytest.param(CLAIMS | {"iss": "HTTPS://idp.example"}, TokenFault.ISSUER, id="issuer in capitals"),
        pytest.param(CLAIMS | {"iss": [ISSUER]}, TokenFault.ISSUER, id="issuer a list"),
        pytest.param(CLAIMS | {"iss": {}}, TokenFault.ISSUER, id="issuer an object"),
        pytest.param(without("aud"), TokenFault.AUDIENCE, id="no aud"),
        pytest.param(CLAIMS | {"aud": "other"}, TokenFault.AUDIENCE, id="another audience"),
        pytest.param(CLAIMS | {"aud": [AUDIENCE]}, TokenFault.AUDIENCE, id="audience a list"),
        pytest.param(CLAIMS | {"aud": None}, TokenFault.AUDIENCE, id="audience null"),
        pytest.param(without("sub"), TokenFault.CLAIMS, id="no sub"),
        pytest.param(CLAIMS | {"sub": ""}, TokenFault.CLAIMS, id="sub empty"),
        pytest.param(CLAIMS | {"sub": 7}, TokenFault.CLAIMS, id="sub a number"),
        pytest.param(CLAIMS | {"sub": "a\r\nb"}, TokenFault.CLAIMS, id="sub CRLF"),
        pytest.param(CLAIMS | {"sub": "alice\n"}, TokenFault.CLAIMS, id="sub newline"),
        pytest.param(CLAIMS | {"sub": "a\0"}, TokenFault.CLAIMS, id="sub NUL"),
        pytest.param(CLAIMS | {"sub": "a" * 2000}, TokenFault.CLAIMS, id="sub 2 KB"),
        pytest.param(CLAIMS | {"sub": "a" * 10_240}, TokenFault.TOO_LONG, id="sub 10 KB"),
        pytest.param(CLAIMS | {"sub": "a.>"}, TokenFault.CLAIMS, id="sub a wildcard"),
        pytest.param(CLAIMS | {"sub": "\ud800"}, TokenFault.CLAIMS, id="sub a lone surrogate"),
        pytest.param(raw(sub='"a","sub":"b"'), TokenFault.MALFORMED, id="sub repeated"),
        pytest.param(without("exp"), TokenFault.CLAIMS, id="no exp"),
        pytest.param(without("iat"), TokenFault.CLAIMS, id="no iat"),
        pytest.param(CLAIMS | {"exp": str(NOW + 600)}, TokenFault.CLAIMS, id="exp a string"),
        pytest.param(CLAIMS | {"exp": NOW + 600.5}, TokenFault.CLAIMS, id="exp a float"),
        pytest.param(CLAIMS | {"exp": True}, TokenFault.CLAIMS, id="exp true"),
        pytest.param(CLAIMS | {"exp": float("inf")}, TokenFault.MALFORMED, id="exp Infinity"),
        pytest.param(raw(exp="1e999"), TokenFault.CLAIMS, id="exp 1e999"),
        pytest.param(raw(exp="9" * 2500), TokenFault.CLAIMS, id="exp 2,500 digits"),
        pytest.param(raw(exp="9" * 5000), TokenFault.TOO_LONG, id="exp 5,000 digits"),
        pytest.param(CLAIMS | {"exp": 2**53}, TokenFault.CLAIMS, id="exp 2^53"),
        pytest.param(CLAIMS | {"nbf": "0"}, TokenFault.CLAIMS, id="nbf a string"),
        pytest.param(CLAIMS | {"exp": NOW + 24 * 3600 + 1}, TokenFault.LIFETIME, id="more than a day"),
        pytest.param(CLAIMS | {"nbf": NOW + 31}, TokenFault.NOT_YET_VALID, id="nbf ahead"),
        pytest.param(CLAIMS | {"iat": NOW + 31}, TokenFault.NOT_YET_VALID, id="iat ahead"),
        pytest.param(CLAIMS | {"tid": None}, TokenFault.CLAIMS, id="tid null"),
        pytest.param(CLAIMS | {"tid": ""}, TokenFault.CLAIMS, id="tid empty"),
        pytest.param(CLAIMS | {"sid": "a b"}, TokenFault.CLAIMS, id="sid with a space"),
        pytest.param(CLAIMS | {"jti": 1}, TokenFault.CLAIMS, id="jti a number"),
        pytest.param(CLAIMS | {"permissions": "admin"}, TokenFault.CLAIMS, id="permissions a string"),
        pytest.param(CLAIMS | {"permissions": None}, TokenFault.CLAIMS, id="permissions null"),
        pytest.param(CLAIMS | {"permissions": [1]}, TokenFault.CLAIMS, id="a permission a number"),
        pytest.param(CLAIMS | {"permissions": ["a\n"]}, TokenFault.CLAIMS, id="a permission with a newline"),
        pytest.param(CLAIMS | {"permissions": ["p"] * 65}, TokenFault.CLAIMS, id="65 permissions"),
    ],
)
def test_bad_claims_are_refused_though_the_signature_is_good(
    clock: FakeClock, claims: Mapping[str, object] | str, fault: TokenFault
) -> None:
    assert refusal(verifier(clock), hs256(HEADER, claims)) == (ErrorReason.TOKEN_INVALID, fault)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        pytest.param({"alg": "none"}, TokenFault.ALGORITHM, id="none"),
        pytest.param({"alg": "nOnE"}, TokenFault.ALGORITHM, id="nOnE"),
        pytest.param({"alg": "HS512"}, TokenFault.ALGORITHM, id="not of the list"),
        pytest.param({"typ": "JWT"}, TokenFault.ALGORITHM, id="no alg"),
        pytest.param(HEADER | {"crit": ["exp"]}, TokenFault.HEADER, id="crit"),
        pytest.param(HEADER | {"b64": False, "crit": ["b64"]}, TokenFault.HEADER, id="b64=false"),
        pytest.param(HEADER | {"b64": False}, TokenFault.HEADER, id="b64=false without crit"),
        pytest.param(HEADER | {"kid": "../../../dev/null"}, TokenFault.KEY, id="kid traversal"),
        pytest.param(HEADER | {"kid": "k1"}, TokenFault.KEY, id="kid of no key"),
        pytest.param(HEADER | {"kid": 1}, TokenFault.HEADER, id="kid a number"),
        pytest.param(HEADER | {"typ": "ctx+jwt"}, TokenFault.TYPE, id="typ of a context token"),
        pytest.param(HEADER | {"typ": "logout+jwt"}, TokenFault.TYPE, id="typ of a logout token"),
        pytest.param(HEADER | {"typ": None}, TokenFault.TYPE, id="typ null"),
        pytest.param('{"alg":"HS256","alg":"HS256"}', TokenFault.MALFORMED, id="alg repeated"),
    ],
)
def test_bad_headers_are_refused_though_the_signature_is_good(
    clock: FakeClock, header: Mapping[str, object] | str, fault: TokenFault
) -> None:
    assert refusal(verifier(clock), hs256(header, CLAIMS)) == (ErrorReason.TOKEN_INVALID, fault)


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt", "application/jwt"])
def test_the_usual_types_are_good_and_so_are_headers_that_point_to_keys(clock: FakeClock, typ: str) -> None:
    pointers = {"jku": "https://evil.example/jwks", "x5u": "file:///", "jwk": {"kty": "oct", "k": "AA"}, "x5c": []}
    assert verifier(clock).verify(hs256(HEADER | {"typ": typ} | pointers, CLAIMS)).user_id == "alice"


def test_a_key_in_the_header_verifies_nothing(clock: FakeClock) -> None:
    mine = b"a secret of the attacker's, long enough"
    header = HEADER | {"jwk": {"kty": "oct", "k": segment(mine)}, "jku": "https://evil.example"}
    assert refusal(verifier(clock), hs256(header, CLAIMS, mine))[1] is TokenFault.SIGNATURE


GOOD = hs256(HEADER, CLAIMS)


@pytest.mark.parametrize(
    ("token", "fault"),
    [
        pytest.param(GOOD.rsplit(".", 1)[0], TokenFault.MALFORMED, id="2 segments"),
        pytest.param(GOOD.rsplit(".", 1)[0] + ".", TokenFault.MALFORMED, id="no signature"),
        pytest.param(f"{GOOD}.x", TokenFault.MALFORMED, id="4 segments"),
        pytest.param(GOOD + "A" * 1_000_000, TokenFault.TOO_LONG, id="1 MB"),
        pytest.param(f"{GOOD}\ud800", TokenFault.MALFORMED, id="lone surrogate"),
        pytest.param(f"Bearer {GOOD}", TokenFault.MALFORMED, id="with its scheme"),
        pytest.param("garbage", TokenFault.MALFORMED, id="garbage"),
        pytest.param(hs256(HEADER, CLAIMS, SECRET + b"x"), TokenFault.SIGNATURE, id="another secret"),
    ],
)
def test_bad_tokens_are_refused(clock: FakeClock, token: str, fault: TokenFault) -> None:
    assert refusal(verifier(clock), token) == (ErrorReason.TOKEN_INVALID, fault)


@pytest.mark.parametrize("position", range(0, len(GOOD), 7))
def test_any_changed_character_refuses_the_token(clock: FakeClock, position: int) -> None:
    changed = "A" if GOOD[position] != "A" else "B"
    token = GOOD[:position] + changed + GOOD[position + 1 :]
    assert refusal(verifier(clock), token)[0] is ErrorReason.TOKEN_INVALID


def test_the_text_of_the_public_key_is_no_hmac_secret(clock: FakeClock, rsa_pem: bytes) -> None:
    keys = KeySet([VerificationKey(None, frozenset({"RS256"}), load_pem_public_key(rsa_pem))])
    for secret in (rsa_pem, rsa_pem.rstrip()):
        token = hs256(HEADER, CLAIMS, secret)
        assert refusal(verifier(clock, algorithms=("RS256",), keys=keys), token)[1] is TokenFault.ALGORITHM


@pytest.mark.parametrize(
    ("name", "fixture"), [("RS256", "rsa_key"), ("PS512", "rsa_key"), ("ES256", "ec_key"), ("EdDSA", "ed_key")]
)
def test_each_kind_of_key_verifies_what_it_signed(
    clock: FakeClock, request: pytest.FixtureRequest, name: str, fixture: str
) -> None:
    key: PrivateKey = request.getfixturevalue(fixture)
    keys = KeySet([VerificationKey("k1", frozenset({name}), key.public_key())])
    subject = verifier(clock, algorithms=(name,), keys=keys)
    token = signed({"alg": name, "kid": "k1"}, CLAIMS, key)
    assert subject.verify(token).user_id == "alice"
    body, signature = token.rsplit(".", 1)
    for forged in (segment(bytes(64)), segment(bytes(256)), "AA", segment(b"0" + bytes(63)), signature[4:] + "AAAA"):
        assert refusal(subject, f"{body}.{forged}") == (ErrorReason.TOKEN_INVALID, TokenFault.SIGNATURE)


def test_a_key_that_breaks_the_library_verifies_nothing(clock: FakeClock, ec_key: ec.EllipticCurvePrivateKey) -> None:
    keys = KeySet([VerificationKey(None, frozenset({"ES256"}), object())])
    token = signed({"alg": "ES256"}, CLAIMS, ec_key)
    outcome = refusal(verifier(clock, algorithms=("ES256",), keys=keys), token)
    assert outcome == (ErrorReason.TOKEN_INVALID, TokenFault.MALFORMED)


def test_a_token_may_mean_one_key_of_several_only_by_its_name(clock: FakeClock, rsa_key: rsa.RSAPrivateKey) -> None:
    other = rsa.generate_private_key(65537, 2048)
    keys = KeySet(VerificationKey(k, frozenset({"RS256"}), p.public_key()) for k, p in (("a", rsa_key), ("b", other)))
    subject = verifier(clock, algorithms=("RS256",), keys=keys)
    assert subject.verify(signed({"alg": "RS256", "kid": "b"}, CLAIMS, other)).user_id == "alice"
    assert refusal(subject, signed({"alg": "RS256", "kid": "a"}, CLAIMS, other))[1] is TokenFault.SIGNATURE
    assert refusal(subject, signed({"alg": "RS256"}, CLAIMS, other))[1] is TokenFault.KEY
    assert refusal(subject, signed({"alg": "RS256", "kid": "c"}, CLAIMS, other))[1] is TokenFault.KEY


def test_a_token_ends_at_its_exp_and_the_leeway(clock: FakeClock) -> None:
    subject = verifier(clock)
    clock.advance(600 + 29.9)
    assert subject.verify(GOOD).expires_at == NOW + 600
    clock.advance(0.2)
    assert refusal(subject, GOOD) == (ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED)


def test_that_a_token_is_over_is_told_only_to_who_has_one(clock: FakeClock) -> None:
    clock.advance(3600)
    assert refusal(verifier(clock), hs256(HEADER, CLAIMS, SECRET + b"x"))[0] is ErrorReason.TOKEN_INVALID


def test_a_token_of_exactly_a_day_and_64_permissions_is_good(clock: FakeClock) -> None:
    claims = CLAIMS | {"exp": NOW + 24 * 3600, "permissions": ["p"] * 64, "nbf": NOW + 30}
    assert len(verifier(clock).verify(hs256(HEADER, claims)).permissions) == 64


def test_each_issuer_speaks_for_its_own_tenants_with_its_own_key(clock: FakeClock) -> None:
    other_secret = SECRET[::-1]
    other = IssuerSettings("https://b.example", AUDIENCE, ("HS256",), hmac_key_set(other_secret), ("b1", "b2"))
    subject = UserTokenVerifier([dataclasses.replace(SETTINGS, tenants=("a1", "default")), other], clock)

    def verify(issuer: str, tenant: str, secret: bytes) -> str:
        return subject.verify(hs256(HEADER, CLAIMS | {"iss": issuer, "tid": tenant}, secret)).tenant_id

    assert verify(ISSUER, "a1", SECRET) == "a1"
    assert verify("https://b.example", "b2", other_secret) == "b2"
    assert subject.verify(GOOD).tenant_id == "default"
    for issuer, tenant, secret, fault in (
        (ISSUER, "b1", SECRET, TokenFault.TENANT),
        ("https://b.example", "default", other_secret, TokenFault.TENANT),
        ("https://b.example", "b1", SECRET, TokenFault.SIGNATURE),
    ):
        with pytest.raises(Unauthenticated) as caught:
            verify(issuer, tenant, secret)
        assert (caught.value.reason, caught.value.fault) == (ErrorReason.TOKEN_INVALID, fault)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ([{}, {}], "user_tokens.issuer"),
        ([{}, {"issuer": "b"}], "user_tokens.tenants"),
        ([{"tenants": ("t",)}, {"issuer": "b"}], "user_tokens.tenants"),
        ([{"tenants": ("t", "u")}, {"issuer": "b", "tenants": ("v", "u")}], "user_tokens.tenants"),
        ([{"issuer": ""}], "user_tokens"),
        ([{"audience": ""}], "user_tokens"),
        ([{"algorithms": ()}], "user_tokens.algorithms"),
        ([{"algorithms": ("HS256", "RS256")}], "user_tokens.algorithms"),
    ],
)
def test_issuers_that_contradict_each_other_are_refused(
    clock: FakeClock, changes: list[dict[str, Any]], setting: str
) -> None:
    with pytest.raises(SettingError) as caught:
        UserTokenVerifier([dataclasses.replace(SETTINGS, **change) for change in changes], clock)
    assert caught.value.setting == setting


def test_without_an_issuer_nobody_is_let_in(clock: FakeClock) -> None:
    assert refusal(UserTokenVerifier([], clock), GOOD)[1] is TokenFault.ISSUER


@pytest.fixture
def mint() -> Callable[..., str]:
    def minted(**changes: Any) -> str:
        arguments: dict[str, Any] = {
            "secret": SECRET,
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "subject": "alice",
            "tenant_id": None,
            "session_id": None,
            "ttl_s": 600,
            "now": NOW + 0.5,
        }
        return mint_user_token(**arguments | changes)

    return minted


def test_a_minted_token_is_good(clock: FakeClock, mint: Callable[..., str]) -> None:
    first, second = mint(), mint(tenant_id="acme", session_id="s1", permissions=("p",))
    user = verifier(clock).verify(second)
    assert user._replace(token_id="") == VerifiedUser("acme", "alice", "s1", ISSUER, "", ("p",), NOW + 600)
    assert read(first, 1).keys() == {"iss", "aud", "sub", "iat", "exp", "jti"}
    assert read(first, 1)["jti"] != user.token_id
    assert read(mint(key_id="k1"), 0) == {"alg": "HS256", "typ": "JWT", "kid": "k1"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subject": ""}, "sub"),
        ({"subject": "a b"}, "sub"),
        ({"tenant_id": "a/b"}, "tid"),
        ({"session_id": ""}, "sid"),
        ({"permissions": ("ok", "not ok")}, "permissions"),
        ({"permissions": ("p",) * 65}, "permissions"),
        ({"ttl_s": 0}, "ttl"),
        ({"ttl_s": 24 * 3600 + 1}, "ttl"),
        ({"secret": b"x" * 31}, "secret"),
    ],
)
def test_what_a_verifier_would_refuse_is_not_minted(
    mint: Callable[..., str], changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        mint(**changes)
    assert caught.value.violations[0][0] == field


def test_no_secret_is_shown(clock: FakeClock) -> None:
    subject = verifier(clock)
    assert SECRET.decode() not in repr(SETTINGS) + repr(subject) + repr(vars(subject))
