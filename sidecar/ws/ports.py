"""What the parts of the edge share: the collaborators that the composition root hands in, and the edge's own tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sidecar.core.ports import AuditTrail

if TYPE_CHECKING:
    from sidecar.core.context_factory import ConnectionContextFactoryManager
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.ports import Clock, Randomness
    from sidecar.core.statistics import SecurityCounters
    from sidecar.security.audit_record import AuditRecord
    from sidecar.security.context_tokens import ContextTokenAuthority
    from sidecar.security.refusals import Refusals
    from sidecar.security.user_tokens import UserTokenVerifier
    from sidecar.ws.addresses import AddressLimiter, ClientAddresses
    from sidecar.ws.settings import WebSocketSettings


class GrantingAuditTrail(AuditTrail, Protocol):
    """The audit trail as an edge needs it."""

    async def grant(self, *records: AuditRecord) -> None:
        """Return once all records are written. Raises Unavailable (AUDIT_UNAVAILABLE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePorts:
    """See the module."""

    settings: WebSocketSettings
    users: UserTokenVerifier
    contexts: ConnectionContextFactoryManager
    factory: WebSocketManagerFactory
    tokens: ContextTokenAuthority
    audit: GrantingAuditTrail
    refusals: Refusals
    counters: SecurityCounters
    clock: Clock
    randomness: Randomness
    addresses: ClientAddresses
    limiter: AddressLimiter
