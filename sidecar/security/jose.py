"""The strict reading of a compact JWS (RFC 7515 §7.1) that both token kinds go through, and the checks they share.

A token is parsed once, here; PyJWT's algorithms see only the signing input, the key and the signature. Whatever goes
wrong ends as Unauthenticated with a TokenFault, and never with an exception's own text.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from jwt.algorithms import Algorithm, get_default_algorithms

from sidecar.core.errors import ErrorReason, TokenFault, Unauthenticated
from sidecar.core.identity import IDENTIFIER
from sidecar.security.strict_json import parse_object

MAX_TOKEN_CHARS: Final = 4096
MAX_INTEGER: Final = 2**53 - 1

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ASYMMETRIC_ALGORITHMS: Final = RSA_ALGORITHMS | {"ES256", "ES384", "ES512", "EdDSA"}

_SEGMENTS: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_ALGORITHMS: Final[dict[str, Algorithm]] = {
    name: algorithm
    for name, algorithm in get_default_algorithms().items()
    if name in HMAC_ALGORITHMS | ASYMMETRIC_ALGORITHMS
}

P = ParamSpec("P")
T = TypeVar("T")


class CompactToken(NamedTuple):
    """A token taken apart; nothing in it is to be believed before `verify_signature`."""

    header: dict[str, object]
    claims: dict[str, object]
    signing_input: bytes
    signature: bytes


def missing() -> Unauthenticated:
    """No token was presented."""
    return Unauthenticated(ErrorReason.TOKEN_MISSING, TokenFault.MISSING)


def invalid(fault: TokenFault) -> Unauthenticated:
    """The one answer outside to every bad token; `fault` is for the audit trail."""
    return Unauthenticated(ErrorReason.TOKEN_INVALID, fault)


def expired() -> Unauthenticated:
    """A good token whose time is over."""
    return Unauthenticated(ErrorReason.TOKEN_EXPIRED, TokenFault.EXPIRED)


def revoked() -> Unauthenticated:
    """A good token that was taken back."""
    return Unauthenticated(ErrorReason.TOKEN_REVOKED, TokenFault.REVOKED)


def fail_closed(check: Callable[P, T]) -> Callable[P, T]:
    """Make every exception of `check` that is not an Unauthenticated one: a token nobody understands is refused."""

    @functools.wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return check(*args, **kwargs)
        except Unauthenticated:
            raise
        except Exception:  # noqa: BLE001 - the libraries raise outside their own trees, and a token must not pass so
            raise invalid(TokenFault.MALFORMED) from None

    return checked


@fail_closed
def parse_compact(token: str) -> CompactToken:
    """Take a token apart: three canonical base64url segments, two of them JSON objects without repeated members."""
    if len(token) > MAX_TOKEN_CHARS:
        raise invalid(TokenFault.TOO_LONG)
    match = _SEGMENTS.fullmatch(token)
    if match is None:
        raise invalid(TokenFault.MALFORMED)
    header, claims, signature = map(decode_segment, match.groups())
    signing_input = token[: match.end(2)].encode("ascii")
    return CompactToken(parse_object(header), parse_object(claims), signing_input, signature)


def encode_segment(data: bytes) -> str:
    """base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_segment(text: str) -> bytes:
    """The bytes of one segment; ValueError unless it is the only way to write them (no stray bits, no padding)."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_segment(data) != text:
        raise ValueError("not canonical base64url")
    return data


def encode_json(value: Mapping[str, object]) -> str:
    """An object as a segment."""
    return encode_segment(_ENCODER.encode(value).encode("ascii"))


def check_header(header: Mapping[str, object], algorithms: Container[str]) -> tuple[str, str | None]:
    """The algorithm and the key id that a header names.

    `crit` and `b64` are refused whatever they say; `jku`, `x5u`, `jwk` and `x5c` are never looked at: keys are pinned.
    """
    if "crit" in header or "b64" in header:
        raise invalid(TokenFault.HEADER)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise invalid(TokenFault.ALGORITHM)
    if "kid" not in header:
        return algorithm, None
    kid = header["kid"]
    if not isinstance(kid, str):
        raise invalid(TokenFault.HEADER)
    return algorithm, kid


def verify_signature(token: CompactToken, algorithm: str, key: object) -> None:
    """Refuse the token unless `key` signed it with `algorithm`, which the caller has matched with the key."""
    if _ALGORITHMS[algorithm].verify(token.signing_input, key, token.signature) is not True:
        raise invalid(TokenFault.SIGNATURE)


def sign(header_segment: str, claims: Mapping[str, object], secret: bytes) -> str:
    """A compact JWS by HS256; `header_segment` is the encoded header and says so."""
    signing_input = f"{header_segment}.{encode_json(claims)}"
    signature: bytes = _HS256.sign(signing_input.encode("ascii"), secret)
    return f"{signing_input}.{encode_segment(signature)}"


def claim_identifier(claims: Mapping[str, object], name: str) -> str:
    """A required claim that is an identifier."""
    value = claims.get(name)
    if not isinstance(value, str) or IDENTIFIER.fullmatch(value) is None:
        raise invalid(TokenFault.CLAIMS)
    return value


def claim_integer(claims: Mapping[str, object], name: str) -> int:
    """A required claim that is an integer of 0 to 2^53 - 1; True and 1.0 are none."""
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise invalid(TokenFault.CLAIMS)
    return value


def check_dates(claims: Mapping[str, object], now: float, *, leeway_s: int, max_lifetime_s: int) -> int:
    """Check `exp`, `iat` and, when there is one, `nbf` against `now` (Unix seconds); returns `exp`."""
    expires_at, issued_at = claim_integer(claims, "exp"), claim_integer(claims, "iat")
    not_before = claim_integer(claims, "nbf") if "nbf" in claims else issued_at
    if now >= expires_at + leeway_s:
        raise expired()
    if max(issued_at, not_before) > now + leeway_s:
        raise invalid(TokenFault.NOT_YET_VALID)
    if not 0 < expires_at - issued_at <= max_lifetime_s:
        raise invalid(TokenFault.LIFETIME)
    return expires_at


_HS256: Final[Any] = _ALGORITHMS["HS256"]
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
