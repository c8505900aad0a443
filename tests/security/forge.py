"""Hand-made tokens: any header, any claims, signed however a test says, without the code under test; and a clock."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

from sidecar.core.identity import ContextBindings, UserExecutionContext, derive_isolation_key
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


def read(token: str, index: int) -> dict[str, object]:
    """One of a token's two objects: 0 is the header, 1 the claims."""
    text = token.split(".")[index]
    value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
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
