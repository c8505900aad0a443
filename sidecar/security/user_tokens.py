"""User tokens: the JWTs (RFC 7519) by which a customer's identity provider says who a client is.

Verified once a socket, so nothing is cached. Relies on jose for the reading and on keys for what may be trusted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.core.errors import BadRequest, TokenFault
from sidecar.core.identity import IDENTIFIER, VerifiedUser
from sidecar.core.ports import Clock
from sidecar.security.files import SettingError
from sidecar.security.jose import (
    CompactToken,
    check_dates,
    check_header,
    claim_identifier,
    encode_json,
    fail_closed,
    invalid,
    missing,
    parse_compact,
    sign,
    verify_signature,
)
from sidecar.security.keys import MIN_HMAC_BYTES, KeySet, check_algorithms

LEEWAY_S: Final = 30
MAX_LIFETIME_S: Final = 24 * 3600
MAX_PERMISSIONS: Final = 64
DEFAULT_TENANT: Final = "default"

_TYPES: Final = frozenset({"jwt", "application/jwt", "at+jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """One identity provider: whose tokens are believed, for whom, and about which tenants.

    `tenants` None is any tenant, and only for a single issuer: no tenant may have two.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    keys: KeySet
    tenants: tuple[str, ...] | None = None


class UserTokenVerifier:
    """Verifies user tokens of one or more issuers. Holds no state of any token; safe on every thread."""

    def __init__(self, issuers: Sequence[IssuerSettings], clock: Clock) -> None:
        """Raises SettingError for issuers that contradict each other."""
        check_issuers(issuers)
        self._issuers = {settings.issuer: settings for settings in issuers}
        self._clock = clock

    def verify(self, token: str | None) -> VerifiedUser:
        """Who the token says the user is. Raises Unauthenticated: TOKEN_MISSING, TOKEN_INVALID or TOKEN_EXPIRED."""
        if not token:
            raise missing()
        return self._verify(token)

    @fail_closed
    def _verify(self, token: str) -> VerifiedUser:
        parts = parse_compact(token)
        issuer = parts.claims.get("iss")
        settings = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if settings is None:
            raise invalid(TokenFault.ISSUER)
        _check_signature(parts, settings)
        if parts.claims.get("aud") != settings.audience:
            raise invalid(TokenFault.AUDIENCE)
        expires_at = check_dates(parts.claims, self._clock.time(), leeway_s=LEEWAY_S, max_lifetime_s=MAX_LIFETIME_S)
        return _user(parts.claims, settings, expires_at)


def check_issuers(issuers: Sequence[IssuerSettings]) -> None:
    """Refuse settings under which it would be open whose word counts. Raises SettingError."""
    if not all(settings.issuer and settings.audience for settings in issuers):
        raise SettingError("user_tokens", "every issuer must have an issuer and an audience")
    if len({settings.issuer for settings in issuers}) != len(issuers):
        raise SettingError("user_tokens.issuer", "an issuer must not be repeated")
    for settings in issuers:
        check_algorithms(settings.algorithms)
    if len(issuers) > 1 and any(settings.tenants is None for settings in issuers):
        raise SettingError("user_tokens.tenants", "each of several issuers must name its tenants")
    tenants = [tenant for settings in issuers for tenant in set(settings.tenants or ())]
    if len(set(tenants)) != len(tenants):
        raise SettingError("user_tokens.tenants", "a tenant must not have two issuers")


def mint_user_token(  # noqa: PLR0913 - one argument a claim
    secret: bytes,
    *,
    issuer: str,
    audience: str,
    subject: str,
    tenant_id: str | None,
    session_id: str | None,
    ttl_s: int,
    now: float,
    permissions: Sequence[str] = (),
    key_id: str | None = None,
) -> str:
    """A user token for development, by HS256; `now` is Unix seconds. None leaves the claim out.

    Raises BadRequest for what a verifier would refuse.
    """
    _check_mint(secret, subject, tenant_id, session_id, ttl_s, permissions)
    header = {"alg": "HS256", "typ": "JWT", "kid": key_id}
    issued_at = int(now)
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "tid": tenant_id,
        "sid": session_id,
        "iat": issued_at,
        "exp": issued_at + ttl_s,
        "jti": secrets.token_hex(16),
        "permissions": list(permissions) or None,
    }
    return sign(encode_json(_present(header)), _present(claims), secret)


def _check_signature(parts: CompactToken, settings: IssuerSettings) -> None:
    algorithm, kid = check_header(parts.header, settings.algorithms)
    _check_type(parts.header)
    key = settings.keys.find(kid, algorithm)
    if key is None:
        raise invalid(TokenFault.KEY)
    verify_signature(parts, algorithm, key.material)


def _check_type(header: Mapping[str, object]) -> None:
    """A token made for another purpose is not a user token, though the same key signed it (RFC 8725 §3.11)."""
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise invalid(TokenFault.TYPE)


def _user(claims: Mapping[str, object], settings: IssuerSettings, expires_at: int) -> VerifiedUser:
    tenant_id = _optional(claims, "tid") or DEFAULT_TENANT
    if settings.tenants is not None and tenant_id not in settings.tenants:
        raise invalid(TokenFault.TENANT)
    return VerifiedUser(
        tenant_id=tenant_id,
        user_id=claim_identifier(claims, "sub"),
        session_id=_optional(claims, "sid"),
        issuer=settings.issuer,
        token_id=_optional(claims, "jti"),
        permissions=_permissions(claims),
        expires_at=expires_at,
    )


def _optional(claims: Mapping[str, object], name: str) -> str | None:
    """None only when the claim is absent: null, empty and anything else that is no identifier is refused."""
    return claim_identifier(claims, name) if name in claims else None


def _permissions(claims: Mapping[str, object]) -> tuple[str, ...]:
    values = claims.get("permissions", [])
    if not isinstance(values, list) or len(values) > MAX_PERMISSIONS:
        raise invalid(TokenFault.CLAIMS)
    if not all(isinstance(value, str) and IDENTIFIER.fullmatch(value) for value in values):
        raise invalid(TokenFault.CLAIMS)
    return tuple(values)


def _check_mint(
    secret: bytes,
    subject: str,
    tenant_id: str | None,
    session_id: str | None,
    ttl_s: int,
    permissions: Sequence[str],
) -> None:
    if len(secret) < MIN_HMAC_BYTES:
        raise BadRequest("secret", f"must have at least {MIN_HMAC_BYTES} bytes")
    if not 0 < ttl_s <= MAX_LIFETIME_S:
        raise BadRequest("ttl", f"must be 1 to {MAX_LIFETIME_S} seconds")
    if len(permissions) > MAX_PERMISSIONS:
        raise BadRequest("permissions", f"must be at most {MAX_PERMISSIONS}")
    for name, value in [("sub", subject), ("tid", tenant_id), ("sid", session_id), *_named(permissions)]:
        if value is not None and IDENTIFIER.fullmatch(value) is None:
            raise BadRequest(name, f"must match {IDENTIFIER.pattern}")


def _named(permissions: Sequence[str]) -> list[tuple[str, str]]:
    return [("permissions", permission) for permission in permissions]


def _present(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}
