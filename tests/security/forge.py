"""Hand-made tokens: any header, any claims, signed however a test says, without the code under test; and a clock."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jwt.algorithms import get_default_algorithms

from sidecar.core.identity import ContextBindings, UserExecutionContext, derive_isolation_key
from sidecar.core.message import Instant
from sidecar.core.ports import AuditEvent, AuditValue

NOW = 1_800_000_000
SECRET = b"a secret of at least thirty-two bytes"
DATES = {"iat": NOW, "exp": NOW + 600}


class FakeClock:
    """Time that moves when it is told to; the wall clock may be stepped alone."""

    def __init__(self, now: float = NOW) -> None:
        self.wall = now
        self.ticks = 1000.0

    def monotonic(self) -> float:
        return self.ticks

    def time(self) -> float:
        return self.wall

    def now(self) -> Instant:
        return Instant(self.ticks, self.wall)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds

    def step(self, seconds: float) -> None:
        self.wall += seconds


class SilentTrail:
    """An audit trail that keeps nothing."""

    def record(self, event: AuditEvent, context: UserExecutionContext | None = None, /, **fields: AuditValue) -> None:
        """Nothing here is looked at."""


def segment(value: bytes | str | Mapping[str, object]) -> str:
    """A segment of these bytes, this text, or this object as JSON."""
    if isinstance(value, Mapping):
        value = json.dumps(value)
    data = value.encode() if isinstance(value, str) else value
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(header: str | Mapping[str, object], claims: bytes | str | Mapping[str, object]) -> str:
    """The signing input."""
    return f"{segment(header)}.{segment(claims)}"


def hs256(
    header: str | Mapping[str, object], claims: bytes | str | Mapping[str, object], secret: bytes = SECRET
) -> str:
    """A token signed by HMAC-SHA256, whatever its header says."""
    signing_input = unsigned(header, claims)
    return f"{signing_input}.{segment(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"


def decode_segment(text: str) -> bytes:
    """The bytes of a segment."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def read(token: str, index: int) -> dict[str, object]:
    """One of a token's two objects: 0 is the header, 1 the claims."""
    value = json.loads(decode_segment(token.split(".")[index]))
    assert isinstance(value, dict)
    return value


def context(
    *, tenant_id: str = "acme", user_id: str = "alice", session_id: str = "s1", connection_id: str = "c1"
) -> UserExecutionContext:
    """A connection context with a real isolation key."""
    return UserExecutionContext(
        tenant_id=tenant_id,
        user_id=user_id,
        session_id=session_id,
        connection_id=connection_id,
        request_id="r1",
        created_at=float(NOW),
        permissions=(),
        metadata={},
        issuer="https://idp.example",
        isolation_key=derive_isolation_key(SECRET, tenant_id, user_id, connection_id, float(NOW)),
        bindings=ContextBindings(SilentTrail()),
    )


ABSENT = object()
"""A claim or a header member that is left out."""


@dataclass(frozen=True)
class Hand:
    """Somebody who writes tokens as an issuer does, but for what a test changes. Its clock is this machine's."""

    issuer: str
    audience: str
    header: Mapping[str, object]
    sign: Callable[[bytes], bytes] = field(repr=False)
    own_claims: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def with_secret(cls, issuer: str, audience: str, secret: bytes, **header: object) -> Hand:
        """An issuer that signs by HMAC-SHA256; `header` is what its headers say beside."""
        members = {"alg": "HS256", "typ": "JWT"} | header
        return cls(issuer, audience, members, lambda data: hmac.digest(secret, data, hashlib.sha256))

    @classmethod
    def with_key(
        cls, issuer: str, audience: str, key: object, algorithm: str, *, kid: str | None = None, **claims: object
    ) -> Hand:
        """An issuer that signs with a private key; `claims` are what its tokens say beside."""
        signer: Any = get_default_algorithms()[algorithm]
        header = {"alg": algorithm, "typ": "JWT"} | ({} if kid is None else {"kid": kid})
        return cls(issuer, audience, header, lambda data: signer.sign(data, key), claims)

    def claims(self, **changes: object) -> dict[str, object]:
        """Good claims of now but for these."""
        now = int(time.time())
        good: dict[str, object] = {"iss": self.issuer, "aud": self.audience, "sub": "alice", "iat": now}
        claims = good | {"exp": now + 600} | dict(self.own_claims) | changes
        return {name: value for name, value in claims.items() if value is not ABSENT}

    def literal(self, **members: str) -> str:
        """Good claims, some of them written as these very characters."""
        texts = {name: json.dumps(value) for name, value in self.claims().items()} | members
        return "{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}"

    def head(self, **changes: object) -> dict[str, object]:
        """The usual header but for these."""
        header = dict(self.header) | changes
        return {name: value for name, value in header.items() if value is not ABSENT}

    def token(
        self,
        claims: bytes | str | Mapping[str, object] | None = None,
        header: str | Mapping[str, object] | None = None,
    ) -> str:
        """A token with a good signature, whatever it says."""
        signing_input = unsigned(self.head() if header is None else header, self.claims() if claims is None else claims)
        return f"{signing_input}.{segment(self.sign(signing_input.encode()))}"


def other_bits(text: str) -> str:
    """Another text of the same bytes, for a lenient decoder: the unused bits of the last character set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(text) % 4
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]
