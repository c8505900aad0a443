"""Who a connection context belongs to, and the unguessable key that stands for it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.errors import IsolationViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.ports import AuditEvent, AuditTrail, AuditValue, Socket

IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
"""What a tenant, user, session, message or stream id, or an event type, may look like. Use `fullmatch`."""


class UserIdentity(NamedTuple):
    """One person of one tenant: what limits count by."""

    tenant_id: str
    user_id: str


class VerifiedUser(NamedTuple):
    """What a user token says, after every check. `expires_at` is Unix seconds."""

    tenant_id: str
    user_id: str
    session_id: str | None
    issuer: str
    token_id: str | None
    permissions: tuple[str, ...]
    expires_at: int

    @property
    def identity(self) -> UserIdentity:
        return UserIdentity(self.tenant_id, self.user_id)


class Scope(StrEnum):
    """What a context token opens."""

    SEND = "send"
    EMIT = "emit"
    STATS = "stats"
    CLOSE = "close"
    BROADCAST_USER = "broadcast:user"
    BROADCAST_TENANT = "broadcast:tenant"


class ContextToken(NamedTuple):
    """A minted context token: the signed text, when it ends (Unix seconds), its id and its family."""

    text: str
    expires_at: int
    token_id: str
    family: str

    def __repr__(self) -> str:
        """Without the text: it opens what it names."""
        return f"ContextToken(token_id={self.token_id!r}, family={self.family!r}, expires_at={self.expires_at})"


def derive_isolation_key(secret: bytes, tenant_id: str, user_id: str, connection_id: str, created_at: float) -> str:
    """HMAC-SHA256 over the four parts, each length-prefixed so that no two different tuples encode alike.

    `secret` is at least 32 bytes. Returns 64 lower-case hexadecimal characters.
    """
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (tenant_id, user_id, connection_id, created_at.hex()):
        encoded = part.encode()
        mac.update(len(encoded).to_bytes(4, "big"))
        mac.update(encoded)
    return mac.hexdigest()


@dataclass(slots=True, eq=False)
class ContextBindings:
    """What a context reaches of the running system; filled in by the factory, emptied when the manager ends."""

    audit: AuditTrail
    connections: Callable[[], tuple[Socket, ...]] = tuple
    cleanup: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class UserExecutionContext:
    """The immutable identity of one connection context. Every operation requires one.

    `created_at` is Unix seconds; `permissions` (the security context) and `metadata` are what the user token and the
    handshake said. Two contexts are the same only when they are the same object.
    """

    tenant_id: str
    user_id: str
    session_id: str
    connection_id: str
    request_id: str
    created_at: float
    permissions: tuple[str, ...]
    metadata: Mapping[str, str]
    issuer: str
    isolation_key: str = field(repr=False)
    bindings: ContextBindings = field(repr=False)

    @property
    def identity(self) -> UserIdentity:
        return UserIdentity(self.tenant_id, self.user_id)

    @property
    def active_connections(self) -> tuple[Socket, ...]:
        """A view of the manager's sockets, primary first; empty before it is made and after it has ended."""
        return self.bindings.connections()

    def get_isolation_key(self) -> str:
        """The opaque key that opens this context and no other."""
        return self.isolation_key

    def validate_user_access(self, tenant_id: str, user_id: str) -> None:
        """Raise IsolationViolation unless this context belongs to that user of that tenant."""
        if tenant_id != self.tenant_id or user_id != self.user_id:
            raise IsolationViolation

    def audit_log_action(self, event: AuditEvent, **fields: AuditValue) -> None:
        """Record an event of this context, without waiting."""
        self.bindings.audit.record(event, self, **fields)

    def cleanup_resources(self, reason: str = "cleanup") -> None:
        """End the manager of this context and everything it holds. Idempotent."""
        if self.bindings.cleanup is not None:
            self.bindings.cleanup(reason)
