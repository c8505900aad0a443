"""Turns a verified user token and a handshake into a `UserExecutionContext`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.identity import IDENTIFIER, ContextBindings, UserExecutionContext, VerifiedUser, derive_isolation_key

if TYPE_CHECKING:
    from sidecar.core.message import Instant
    from sidecar.core.ports import AuditTrail, Randomness
    from sidecar.core.stored import StoredContext


class Handshake(NamedTuple):
    """What the client's request said beside its token; `request_id` is None where it said none that is usable."""

    request_id: str | None
    metadata: Mapping[str, str]


class ConnectionContextFactoryManager:
    """Makes contexts: a fresh connection_id of 128 random bits each, and the isolation key that goes with it."""

    def __init__(self, isolation_secret: bytes, audit: AuditTrail, randomness: Randomness) -> None:
        self._secret = isolation_secret
        self._audit = audit
        self._randomness = randomness

    def create_context(self, user: VerifiedUser, handshake: Handshake, at: Instant) -> UserExecutionContext:
        """The context of one new connection of that user."""
        connection_id = f"c-{self._randomness(16)}"
        request_id = handshake.request_id
        if request_id is None or not IDENTIFIER.fullmatch(request_id):
            request_id = f"r-{self._randomness(8)}"
        return UserExecutionContext(
            tenant_id=user.tenant_id,
            user_id=user.user_id,
            session_id=user.session_id or f"s-{self._randomness(16)}",
            connection_id=connection_id,
            request_id=request_id,
            created_at=at.unix,
            permissions=user.permissions,
            metadata=MappingProxyType(dict(handshake.metadata)),
            issuer=user.issuer,
            isolation_key=derive_isolation_key(self._secret, user.tenant_id, user.user_id, connection_id, at.unix),
            bindings=ContextBindings(self._audit),
        )

    def restore_context(self, kept: StoredContext) -> UserExecutionContext:
        """A context that a store kept, as it was made."""
        return UserExecutionContext(
            tenant_id=kept.tenant_id,
            user_id=kept.user_id,
            session_id=kept.session_id,
            connection_id=kept.connection_id,
            request_id=kept.request_id,
            created_at=kept.created_at,
            permissions=kept.permissions,
            metadata=MappingProxyType(dict(kept.metadata)),
            issuer=kept.issuer,
            isolation_key=kept.isolation_key,
            bindings=ContextBindings(self._audit),
        )
