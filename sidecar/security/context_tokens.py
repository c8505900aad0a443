"""Context tokens: the short-lived JWTs that the sidecar mints for one isolation key and verifies on every call.

A verified token is remembered by its text as a `ContextGrant`; expiry and revocation reach into what is remembered, and
into grants that a lane still holds. Belongs to one thread (the loop's); does no I/O.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from sidecar.core.errors import IsolationViolation, TokenFault
from sidecar.core.identity import ContextToken, Scope, UserExecutionContext
from sidecar.core.ports import Clock
from sidecar.security.context_keys import CONTEXT_TOKEN_TYPE, ContextTokenKeys
from sidecar.security.files import SettingError
from sidecar.security.jose import (
    MAX_TOKEN_CHARS,
    check_dates,
    check_header,
    claim_identifier,
    claim_integer,
    expired,
    fail_closed,
    invalid,
    missing,
    parse_compact,
    revoked,
    sign,
    verify_signature,
)
from sidecar.security.revocations import RevocationList

__all__ = ["ContextGrant", "ContextTokenAuthority", "ContextTokenKeys", "TokenFamily"]

AUDIENCE: Final = "sidecar"
DEFAULT_TTL_S: Final = 900
MAX_TTL_S: Final = 3600
LEEWAY_S: Final = 5
CACHE_SIZE: Final = 10_000
KEEP_REVOKED_S: Final = MAX_TTL_S + 900
"""How long a revocation is kept: the longest life of a token, and room for a clock that is set forward and back."""

_ALGORITHMS: Final = frozenset({"HS256"})
_ISOLATION_KEY: Final = re.compile(r"[0-9a-f]{64}")
_SCOPES: Final = {scope.value: scope for scope in Scope}


class TokenFamily:
    """A token and all that were refreshed from it; every live grant of theirs shares this one object."""

    __slots__ = ("__weakref__", "name", "revoked")

    def __init__(self, name: str) -> None:
        self.name = name
        self.revoked = False


@dataclass(frozen=True, slots=True, eq=False)
class ContextGrant:
    """What a verified context token opens.

    `expires_at` is Unix seconds; `expires_monotonic` is the same moment and the leeway on the monotonic clock, fixed at
    verification, so that a step of the wall clock changes nothing. Who keeps a grant asks `revoked` and that time.
    """

    isolation_key: str = field(repr=False)
    tenant_id: str
    user_id: str
    session_id: str
    connection_id: str
    scopes: frozenset[Scope]
    token_id: str
    expires_at: int
    expires_monotonic: float
    shared: TokenFamily = field(repr=False)

    @property
    def family(self) -> str:
        """The name of the family: kept by refresh, ended by revocation."""
        return self.shared.name

    @property
    def revoked(self) -> bool:
        """True from the moment of the family's revocation."""
        return self.shared.revoked


class ContextTokenAuthority:
    """Mints, verifies, refreshes and revokes context tokens."""

    def __init__(
        self,
        keys: ContextTokenKeys,
        clock: Clock,
        *,
        issuer: str = "ws-sidecar",
        ttl_s: int = DEFAULT_TTL_S,
        cache_size: int = CACHE_SIZE,
        revocations: RevocationList | None = None,
    ) -> None:
        """`ttl_s` is at most an hour (SettingError); `cache_size` is how many verified tokens are remembered."""
        if not 0 < ttl_s <= MAX_TTL_S:
            raise SettingError("context_tokens.ttl_s", f"must be 1 to {MAX_TTL_S} seconds")
        self._keys = keys
        self._clock = clock
        self._monotonic = clock.monotonic
        self._issuer = issuer
        self._ttl_s = ttl_s
        self._cache_size = cache_size
        self._cache: OrderedDict[str, ContextGrant] = OrderedDict()
        self._families: WeakValueDictionary[str, TokenFamily] = WeakValueDictionary()
        self.revocations = revocations if revocations is not None else RevocationList()

    @property
    def ttl_s(self) -> int:
        """Seconds that a token lives."""
        return self._ttl_s

    def mint(self, context: UserExecutionContext, scopes: Iterable[Scope], family: str | None = None) -> ContextToken:
        """A new token for this context; `family` continues one, None begins one."""
        issued_at = int(self._clock.time())
        token_id, family = secrets.token_hex(16), family or secrets.token_hex(16)
        claims = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": context.user_id,
            "tid": context.tenant_id,
            "sid": context.session_id,
            "cid": context.connection_id,
            "ik": context.isolation_key,
            "scope": " ".join(sorted(set(scopes))),
            "fam": family,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + self._ttl_s,
            "jti": token_id,
        }
        key = self._keys.ring.keys[-1]
        return ContextToken(sign(key.header, claims, key.secret), issued_at + self._ttl_s, token_id, family)

    def verify(self, token: str | None) -> ContextGrant:
        """What the token opens. Raises Unauthenticated: TOKEN_MISSING, _INVALID, _EXPIRED or _REVOKED.

        On the path of every message: a token met before costs one look-up and one look at the clock. The length comes
        first, since the look-up hashes all of it.
        """
        if not token:
            raise missing()
        if len(token) > MAX_TOKEN_CHARS:
            raise invalid(TokenFault.TOO_LONG)
        grant = self._cache.get(token)
        if grant is None:
            grant = self._verify(token)
            self._remember(token, grant)
            return grant
        if grant.shared.revoked:
            raise revoked()
        if self._monotonic() >= grant.expires_monotonic:
            del self._cache[token]
            raise expired()
        return grant

    def refresh(self, grant: ContextGrant, context: UserExecutionContext) -> ContextToken:
        """A new token of the same context, scopes and family; the old one lives on."""
        if grant.isolation_key != context.isolation_key:
            raise IsolationViolation
        if grant.revoked:
            raise revoked()
        return self.mint(context, grant.scopes, grant.family)

    def revoke_family(self, family: str, until: int | None = None) -> None:
        """End every token of a family, at once; `revocations.flush()` makes it last. Idempotent.

        `until` (Unix seconds) is when its last token has surely ended; None works it out. Raises ResourceExhausted
        when too many are revoked already; then nothing was changed.
        """
        self.revocations.add(family, int(self._clock.time()) + KEEP_REVOKED_S if until is None else until)
        shared = self._families.get(family)
        if shared is not None:
            shared.revoked = True

    def prune(self) -> None:
        """Forget verified tokens and revocations whose time is over. To be called now and then."""
        now = self._monotonic()
        for token in [token for token, grant in self._cache.items() if now >= grant.expires_monotonic]:
            del self._cache[token]
        self.revocations.prune(self._clock.time())

    @property
    def cached(self) -> int:
        """How many verified tokens are remembered."""
        return len(self._cache)

    def _remember(self, token: str, grant: ContextGrant) -> None:
        if len(self._cache) >= self._cache_size:
            self._cache.popitem(last=False)
        self._cache[token] = grant

    @fail_closed
    def _verify(self, token: str) -> ContextGrant:
        parts = parse_compact(token)
        if parts.header.get("typ") != CONTEXT_TOKEN_TYPE:
            raise invalid(TokenFault.TYPE)
        algorithm, kid = check_header(parts.header, _ALGORITHMS)
        key = self._keys.ring.find(kid)
        if key is None:
            raise invalid(TokenFault.KEY)
        verify_signature(parts, algorithm, key.secret)
        return self._grant(parts.claims)

    def _grant(self, claims: Mapping[str, object]) -> ContextGrant:
        self._check_parties(claims)
        now = self._clock.time()
        expires_at = check_dates(claims, now, leeway_s=LEEWAY_S, max_lifetime_s=MAX_TTL_S)
        grant = ContextGrant(
            isolation_key=_isolation_key(claims),
            tenant_id=claim_identifier(claims, "tid"),
            user_id=claim_identifier(claims, "sub"),
            session_id=claim_identifier(claims, "sid"),
            connection_id=claim_identifier(claims, "cid"),
            scopes=_scopes(claims),
            token_id=claim_identifier(claims, "jti"),
            expires_at=expires_at,
            expires_monotonic=self._monotonic() + (expires_at + LEEWAY_S - now),
            shared=self._family(claim_identifier(claims, "fam")),
        )
        if grant.family in self.revocations:
            raise revoked()
        return grant

    def _check_parties(self, claims: Mapping[str, object]) -> None:
        if claims.get("iss") != self._issuer:
            raise invalid(TokenFault.ISSUER)
        if claims.get("aud") != AUDIENCE:
            raise invalid(TokenFault.AUDIENCE)
        claim_integer(claims, "nbf")

    def _family(self, name: str) -> TokenFamily:
        shared = self._families.get(name)
        if shared is None:
            shared = self._families[name] = TokenFamily(name)
        return shared


def _isolation_key(claims: Mapping[str, object]) -> str:
    value = claims.get("ik")
    if not isinstance(value, str) or _ISOLATION_KEY.fullmatch(value) is None:
        raise invalid(TokenFault.CLAIMS)
    return value


def _scopes(claims: Mapping[str, object]) -> frozenset[Scope]:
    """Space-separated (RFC 8693 §4.2); empty is no scope, and an unknown one refuses the token."""
    value = claims.get("scope")
    if not isinstance(value, str):
        raise invalid(TokenFault.CLAIMS)
    names = value.split(" ") if value else []
    if not _SCOPES.keys() >= set(names):
        raise invalid(TokenFault.CLAIMS)
    return frozenset(_SCOPES[name] for name in names)
