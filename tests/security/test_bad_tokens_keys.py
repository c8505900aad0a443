"""Bad user tokens of issuers with RSA and EC keys, in PEM files and in a JWK Set, and of issuers that speak for others.

Four issuers at one sidecar, each with its own kind of key and its own tenants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.security.conftest import public_pem
from tests.security.forge import ABSENT, Hand, decode_segment
from tests.security.token_cases import Case, claims, header, literal, text, with_signature
from tests.security.token_watch import Watch
from tests.support.running import AUDIENCE, ISSUER, RunningSidecar, running_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")

RSA_KEY, SET_RSA_KEY, OTHER_RSA_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(3))
SMALL_RSA_KEY = rsa.generate_private_key(65537, 1024)
EC_KEY, SET_EC_KEY, OTHER_EC_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
ED_KEY, OTHER_ED_KEY = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
RSA_PEM, EC_PEM = public_pem(RSA_KEY), public_pem(EC_KEY)
RSA_DER = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
JWKS = [
    {**RSAAlgorithm.to_jwk(SET_RSA_KEY.public_key(), as_dict=True), "kid": "r1", "use": "sig"},
    {**ECAlgorithm.to_jwk(SET_EC_KEY.public_key(), as_dict=True), "kid": "e1", "alg": "ES256"},
    {**OKPAlgorithm.to_jwk(ED_KEY.public_key(), as_dict=True), "kid": "o1", "key_ops": ["verify"]},
]
RSA_ISSUER, EC_ISSUER, SET_ISSUER = (f"https://{name}.test" for name in ("rsa", "ec", "set"))

HANDS = {
    "rsa": Hand.with_key(RSA_ISSUER, AUDIENCE, RSA_KEY, "RS256", kid="rsa-1", tid="rsa"),
    "ec": Hand.with_key(EC_ISSUER, AUDIENCE, EC_KEY, "ES256", tid="ec"),
    "set": Hand.with_key(SET_ISSUER, AUDIENCE, SET_RSA_KEY, "RS256", kid="r1", tid="set"),
    "set-ec": Hand.with_key(SET_ISSUER, AUDIENCE, SET_EC_KEY, "ES256", kid="e1", tid="set"),
    "set-ed": Hand.with_key(SET_ISSUER, AUDIENCE, ED_KEY, "EdDSA", kid="o1", tid="set"),
}


@dataclass(frozen=True)
class KeyCase:
    """A bad token of one of these issuers."""

    hand: str
    case: Case


def by(key: object, algorithm: str | None = None) -> Any:
    """The issuer's header and claims, signed with another key."""

    def make(hand: Hand) -> str:
        own = Hand.with_key(hand.issuer, hand.audience, key, algorithm or str(hand.header["alg"]))
        return own.token(hand.claims(), hand.head(**({} if algorithm is None else {"alg": algorithm})))

    return make


def by_secret(secret: bytes, algorithm: str = "HS256") -> Any:
    """The confusion of RFC 8725 §2.1: the public key's own text as an HMAC secret."""

    def make(hand: Hand) -> str:
        return Hand.with_secret(hand.issuer, hand.audience, secret).token(hand.claims(), hand.head(alg=algorithm))

    return make


def of_another(kid: str | None, key: object, algorithm: str) -> Any:
    """Another issuer's key and its name."""

    def make(hand: Hand) -> str:
        return Hand.with_key(hand.issuer, hand.audience, key, algorithm, kid=kid).token(hand.claims())

    return make


def offering(key: rsa.RSAPrivateKey) -> Any:
    """A header that brings its own key, in each way that RFC 7515 §4.1 has."""

    def make(hand: Hand) -> str:
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        header = hand.head(jwk=jwk, jku="https://evil.test/jwks.json", x5u="https://evil.test/x5u", x5c=["AAAA"])
        return Hand.with_key(hand.issuer, hand.audience, key, "RS256").token(hand.claims(), header)

    return make


def der(token: str) -> str:
    """The signature in the form that ECDSA has everywhere but in JWS (RFC 7518 §3.4)."""
    raw = decode_segment(token.rpartition(".")[2])
    return with_signature(token, encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")))


def swapped(token: str) -> str:
    """r and s in each other's place."""
    raw = decode_segment(token.rpartition(".")[2])
    return with_signature(token, raw[32:] + raw[:32])


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

RSA = [
    Case("HS256 with the PEM's text", "algorithm", by_secret(RSA_PEM)),
    Case("HS256 with the PEM's text but its newline", "algorithm", by_secret(RSA_PEM.rstrip())),
    Case("HS256 with the key's DER", "algorithm", by_secret(RSA_DER)),
    Case("HS512 said, HS256 done", "algorithm", by_secret(RSA_PEM, "HS512")),
    Case("alg none", "algorithm", by_secret(b"", "none")),
    Case("alg nOnE", "algorithm", by_secret(b"", "nOnE")),
    Case("PS256 with the good key", "algorithm", by(RSA_KEY, "PS256")),
    Case("RS512 with the good key", "algorithm", by(RSA_KEY, "RS512")),
    Case("signed by another", "signature", by(OTHER_RSA_KEY)),
    Case("signed by a small key", "signature", by(SMALL_RSA_KEY)),
    Case("a key of its own in the header", "signature", offering(OTHER_RSA_KEY)),
    Case("another issuer's key by its name", "key", of_another("r1", SET_RSA_KEY, "RS256")),
    Case("another issuer's key without a name", "signature", of_another(None, SET_RSA_KEY, "RS256")),
    Case("another issuer's key of another kind", "algorithm", of_another("rsa-1", EC_KEY, "ES256")),
    header("kid in other letters", "key", kid="RSA-1"),
    header("kid with a space", "key", kid="rsa-1 "),
    header("kid traversal", "key", kid="../rsa.pem"),
    header("kid the path of the key", "key", kid="/proc/self/environ"),
    header("crit", "header", crit=["exp"]),
    header("b64=false", "header", b64=False, crit=["b64"]),
    text("signature of zeros", lambda token: with_signature(token, bytes(256)), fault="signature"),
    text("signature of one", lambda token: with_signature(token, bytes(255) + b"\1"), fault="signature"),
    text("signature of an HMAC's length", lambda token: with_signature(token, bytes(32)), fault="signature"),
    literal("sub repeated", "malformed", sub='"mallory","sub":"alice"'),
    claims("a tenant of another issuer", "tenant", tid="ec"),
    claims("the default tenant, which is another's", "tenant", tid=ABSENT),
    claims("a tenant's prefix", "tenant", tid="rs"),
    claims("a tenant in capitals", "tenant", tid="RSA"),
    claims("another issuer", "algorithm", iss=ISSUER),
    claims("another issuer of the same kind of key", "key", iss=SET_ISSUER),
]
EC = [
    Case("HS256 with the PEM's text", "algorithm", by_secret(EC_PEM)),
    Case("alg none", "algorithm", by_secret(b"", "none")),
    text("signature of zeros", lambda token: with_signature(token, bytes(64)), fault="signature"),
    text("r zero", lambda token: with_signature(token, bytes(63) + b"\1"), fault="signature"),
    text("s zero", lambda token: with_signature(token, bytes(31) + b"\1" + bytes(32)), fault="signature"),
    text("r and s the order", lambda token: with_signature(token, ORDER.to_bytes(32, "big") * 2), fault="signature"),
    text("signature in DER", der, fault="signature"),
    text("r and s swapped", swapped, fault="signature"),
    text("signature a byte short", lambda token: with_signature(token, bytes(63)), fault="signature"),
    text("signature a byte long", lambda token: with_signature(token, bytes(65)), fault="signature"),
    Case("signed by another", "signature", by(OTHER_EC_KEY)),
    Case("a name for the nameless key", "key", of_another("ec", EC_KEY, "ES256")),
    Case("an RSA key", "algorithm", of_another(None, RSA_KEY, "RS256")),
    Case("EdDSA", "algorithm", of_another(None, ED_KEY, "EdDSA")),
    header("ES384 said", "algorithm", alg="ES384"),
    claims("a tenant of another issuer", "tenant", tid="set"),
    claims("another issuer", "key", iss=SET_ISSUER),
]
SET = [
    Case("HS256 with the JWK's text", "algorithm", by_secret(json.dumps(JWKS[0]).encode())),
    Case("HS256 with the modulus", "algorithm", by_secret(str(JWKS[0]["n"]).encode())),
    Case("no kid", "key", of_another(None, SET_RSA_KEY, "RS256")),
    header("kid of no key", "key", kid="r2"),
    header("kid of an EC key", "key", kid="e1"),
    header("kid empty", "key", kid=""),
    header("kid a number", "header", kid=1),
    Case("the RSA key's name for an EC signature", "key", of_another("r1", SET_EC_KEY, "ES256")),
    Case("another key under a good name", "signature", of_another("r1", OTHER_RSA_KEY, "RS256")),
    Case("another EC key under a good name", "signature", of_another("e1", OTHER_EC_KEY, "ES256")),
    Case("another Ed25519 key under a good name", "signature", of_another("o1", OTHER_ED_KEY, "EdDSA")),
    Case("another issuer's key under its own name", "key", of_another("rsa-1", RSA_KEY, "RS256")),
    Case("PS256, not of the list", "algorithm", by(SET_RSA_KEY, "PS256")),
    claims("a tenant of another issuer", "tenant", tid="rsa"),
]
SET_ED = [
    text("signature of zeros", lambda token: with_signature(token, bytes(64)), fault="signature"),
    text("signature cut", lambda token: with_signature(token, b"x" * 63), fault="signature"),
]
CASES = [
    KeyCase(name, case)
    for name, cases in (("rsa", RSA), ("ec", EC), ("set", SET), ("set-ed", SET_ED))
    for case in cases
]


def settings(folder: Path, secret_file: Path) -> str:
    """Four issuers, as the environment can give them: one JSON list."""
    files = {"rsa.pem": RSA_PEM, "ec.pem": EC_PEM, "set.json": json.dumps({"keys": JWKS}).encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    issuers: list[dict[str, object]] = [
        {"issuer": ISSUER, "tenants": ["default", "acme"], "key_file": str(secret_file)},
        {"issuer": RSA_ISSUER, "tenants": ["rsa"], "key_file": f"{folder}/rsa.pem", "algorithms": ["RS256"]},
        {"issuer": EC_ISSUER, "tenants": ["ec"], "key_file": f"{folder}/ec.pem", "algorithms": ["ES256"]},
        {"issuer": SET_ISSUER, "tenants": ["set"], "key_file": f"{folder}/set.json"},
    ]
    issuers[1]["key_id"] = "rsa-1"
    issuers[3]["algorithms"] = ["RS256", "ES256", "EdDSA"]
    return json.dumps([issuer | {"audience": AUDIENCE} for issuer in issuers])


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    folder = tmp_path_factory.mktemp("keys")
    environment = {"SIDECAR_USER_TOKENS": settings(folder, folder / "user.key")}
    with running_sidecar(folder, SIDECAR_OUTBOX__RESUME_WINDOW_S="3600", **environment) as running:
        yield running


@pytest.mark.parametrize("name", HANDS)
async def test_a_good_token_of_each_kind_of_key_opens_every_door(watch: Watch, name: str) -> None:
    await watch.let_in_everywhere(HANDS[name].token(), "alice", str(HANDS[name].claims()["tid"]))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.hand}-{case.case.name}" for case in CASES])
async def test_a_bad_token_gets_the_one_answer_everywhere(watch: Watch, case: KeyCase) -> None:
    hand, bad = HANDS[case.hand], case.case
    good = hand.token(hand.claims(sub=f"user-{CASES.index(case)}"))
    await watch.refused_everywhere(bad.make(hand), bad.fault, bad.reason, bad.through, good)
