"""The keys that user tokens are verified with, read from a `key_file` and pinned: an HMAC secret, a PEM public key or a
JWK Set (RFC 7517).

Which key a token means is decided by two rules, and no third. A token that names a `kid` is verified by the key of
exactly that name or not at all; a key without a name (a PEM or HMAC file without `key_id`) is never meant by a token
that names one. A token that names none is verified only where there is a single key to mean.

What is refused is a SettingError: its text names the setting and the rule, never a key, a path or a member's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from sidecar.security.files import SettingError, read_file
from sidecar.security.jose import ASYMMETRIC_ALGORITHMS, HMAC_ALGORITHMS, RSA_ALGORITHMS
from sidecar.security.strict_json import parse_object

MIN_HMAC_BYTES: Final = 32
MIN_RSA_BITS: Final = 2048
MAX_KEYS: Final = 100
MAX_KEY_ID_CHARS: Final = 256

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_JWK_READERS: Final[dict[tuple[str, str | None], Callable[[dict[str, object]], object]]] = {
    ("RSA", None): RSAAlgorithm.from_jwk,
    ("EC", "P-256"): ECAlgorithm.from_jwk,
    ("EC", "P-384"): ECAlgorithm.from_jwk,
    ("EC", "P-521"): ECAlgorithm.from_jwk,
    ("OKP", "Ed25519"): OKPAlgorithm.from_jwk,
}


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """One key, the name a token may call it by, and the algorithms it may be used with."""

    kid: str | None
    algorithms: frozenset[str]
    material: object = field(repr=False)


class KeySet:
    """An issuer's keys, at least one. Immutable."""

    __slots__ = ("_by_kid", "_keys")

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self._keys = tuple(keys)
        self._by_kid = {key.kid: key for key in self._keys if key.kid is not None}

    def __repr__(self) -> str:
        return f"KeySet(kids={[key.kid for key in self._keys]!r})"

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        """The key that a token with this `kid` and algorithm means, if any."""
        key = self._by_kid.get(kid) if kid is not None else self._only()
        return key if key is not None and algorithm in key.algorithms else None

    def _only(self) -> VerificationKey | None:
        return self._keys[0] if len(self._keys) == 1 else None


def check_algorithms(algorithms: Sequence[str], setting: str = "user_tokens.algorithms") -> None:
    """Refuse a list that is empty, holds what is not supported (`none` is not), or mixes HMAC and asymmetric."""
    names = set(algorithms)
    if not names:
        raise SettingError(setting, "must name at least one algorithm")
    if any(name.lower() == "none" for name in names):
        raise SettingError(setting, "must not allow unsigned tokens (none)")
    if not names <= HMAC_ALGORITHMS | ASYMMETRIC_ALGORITHMS:
        supported = " ".join(sorted(HMAC_ALGORITHMS | ASYMMETRIC_ALGORITHMS))
        raise SettingError(setting, f"must name only supported algorithms ({supported})")
    if names & HMAC_ALGORITHMS and names & ASYMMETRIC_ALGORITHMS:
        raise SettingError(setting, "must not mix HMAC and asymmetric algorithms")


def load_key_set(
    path: Path, algorithms: Sequence[str], *, key_id: str | None = None, setting: str = "user_tokens.key_file"
) -> KeySet:
    """Read an issuer's keys. Blocking.

    `algorithms` has passed `check_algorithms` and decides what the file is: for HMAC the secret's own bytes, mode 0600;
    else a PEM public key or a JWK Set, which anybody may read. `key_id` names the key of an HMAC or PEM file; a JWK Set
    has names of its own. Raises SettingError.
    """
    if HMAC_ALGORITHMS.issuperset(algorithms):
        return hmac_key_set(load_hmac_secret(path, setting=setting), algorithms, key_id=key_id, setting=setting)
    data, _ = read_file(path, setting, private=False)
    if data.lstrip().startswith(b"{"):
        return parse_jwk_set(data, algorithms, setting=setting)
    key = _pem_key(data, setting)
    usable = _algorithms_of(key, setting).intersection(algorithms)
    if not usable:
        raise SettingError(setting, "the key must fit an algorithm of the list")
    return KeySet([VerificationKey(key_id, usable, key)])


def load_hmac_secret(path: Path, *, setting: str = "user_tokens.key_file") -> bytes:
    """The bytes of an HMAC secret's file, without one newline at the end. Blocking. Raises SettingError."""
    data, _ = read_file(path, setting, private=True)
    ending = b"\r\n" if data.endswith(b"\r\n") else b"\n"
    return check_hmac_secret(data.removesuffix(ending), setting=setting)


def check_hmac_secret(secret: bytes, *, setting: str = "user_tokens.key_file") -> bytes:
    """Refuse a secret that is short, or that is the text of a key of another kind (then everybody may know it)."""
    if len(secret) < MIN_HMAC_BYTES:
        raise SettingError(setting, f"an HMAC secret must have at least {MIN_HMAC_BYTES} bytes")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:
        raise SettingError(setting, "an HMAC secret must not be a public key, a certificate or a JWK") from None


def hmac_key_set(
    secret: bytes,
    algorithms: Iterable[str] = ("HS256",),
    *,
    key_id: str | None = None,
    setting: str = "user_tokens.key_file",
) -> KeySet:
    """The key set of one HMAC secret."""
    return KeySet([VerificationKey(key_id, frozenset(algorithms), check_hmac_secret(secret, setting=setting))])


def parse_jwk_set(data: bytes, algorithms: Sequence[str], *, setting: str = "user_tokens.key_file") -> KeySet:
    """The usable keys of a JWK Set. Raises SettingError.

    A key of an unknown type, or for another algorithm, is passed over (RFC 7517 §5). One that is symmetric, private,
    not for verifying signatures, weak or malformed refuses the whole set, and so does a repeated or missing `kid`.
    """
    jwks = _members(data, setting)
    _check_kids(jwks, setting)
    keys = [_jwk_key(jwk, algorithms, f"keys[{index}]", setting) for index, jwk in enumerate(jwks)]
    usable = [key for key in keys if key is not None]
    if not usable:
        raise SettingError(setting, "the JWK Set must hold a key that fits an algorithm of the list")
    return KeySet(usable)


def _pem_key(data: bytes, setting: str) -> object:
    if b"PRIVATE KEY" in data:
        raise SettingError(setting, "must hold the public key, never the private one")
    if data.count(b"-----BEGIN ") > 1:
        raise SettingError(setting, "must hold one PEM key; several make a JWK Set")
    try:
        return load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise SettingError(setting, "must be a PEM public key or a JWK Set") from None


def _algorithms_of(key: object, setting: str) -> frozenset[str]:
    """What a public key can verify; refuses weak keys and unknown kinds."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise SettingError(setting, f"an RSA key must have at least {MIN_RSA_BITS} bits")
        return RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return frozenset({_CURVES[key.curve.name]})
    if isinstance(key, Ed25519PublicKey):
        return frozenset({"EdDSA"})
    raise SettingError(setting, "the key must be RSA, EC (P-256, P-384, P-521) or Ed25519")


def _members(data: bytes, setting: str) -> list[dict[str, object]]:
    try:
        jwks = parse_object(data).get("keys")
    except ValueError:
        raise SettingError(setting, "a JWK Set must be one JSON object without repeated members") from None
    if not isinstance(jwks, list) or not all(isinstance(jwk, dict) for jwk in jwks):
        raise SettingError(setting, "a JWK Set must have a list of objects, keys")
    if len(jwks) > MAX_KEYS:
        raise SettingError(setting, f"a JWK Set must have at most {MAX_KEYS} keys")
    return jwks


def _check_kids(jwks: list[dict[str, object]], setting: str) -> None:
    if len(jwks) > 1 and not all("kid" in jwk for jwk in jwks):
        raise SettingError(setting, "every key of a set of several must have a kid")
    kids = [jwk["kid"] for jwk in jwks if "kid" in jwk]
    for kid in kids:
        if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KEY_ID_CHARS:
            raise SettingError(setting, f"a kid must be a string of 1 to {MAX_KEY_ID_CHARS} characters")
    if len(set(kids)) != len(kids):
        raise SettingError(setting, "a kid must not be repeated")


def _jwk_key(jwk: dict[str, object], algorithms: Sequence[str], place: str, setting: str) -> VerificationKey | None:
    _check_purpose(jwk, place, setting)
    kty, crv, alg = jwk.get("kty"), jwk.get("crv"), jwk.get("alg")
    if not isinstance(kty, str) or not isinstance(crv, str | None) or not isinstance(alg, str | None):
        raise SettingError(setting, f"{place} must be a valid JWK")
    read = _JWK_READERS.get((kty, crv))
    if read is None:
        return None
    try:
        key = read(jwk)
    except Exception:  # noqa: BLE001 - whatever the library makes of it, it is not a key
        raise SettingError(setting, f"{place} must be a valid JWK") from None
    usable = _algorithms_of(key, setting).intersection(algorithms if alg is None else {alg}.intersection(algorithms))
    kid = jwk.get("kid")
    return VerificationKey(kid if isinstance(kid, str) else None, usable, key) if usable else None


def _check_purpose(jwk: dict[str, object], place: str, setting: str) -> None:
    """What a key is for decides before what it is: a secret in a public set is a leak even where it is not used."""
    if jwk.get("kty") == "oct" or "k" in jwk:
        raise SettingError(setting, f"{place} must not be symmetric")
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise SettingError(setting, f"{place} must not be private")
    if jwk.get("use", "sig") != "sig":
        raise SettingError(setting, f"{place} must be for signatures (use sig)")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise SettingError(setting, f"{place} must be for verifying (key_ops verify)")
