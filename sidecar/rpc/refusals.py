"""Counts and records each refusal that is a security event, once, wherever in the edge it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.errors import (
    ErrorReason,
    IsolationViolation,
    ManagerGone,
    PermissionDenied,
    ResourceExhausted,
    SidecarError,
    Unauthenticated,
)
from sidecar.core.ports import AuditEvent

if TYPE_CHECKING:
    from sidecar.core.ports import AuditTrail
    from sidecar.core.statistics import SecurityCounters
    from sidecar.security.context_tokens import ContextGrant
    from sidecar.security.refusals import Refusals


class RefusalRecorder:
    """What the operator is told of a refused call; the caller is told the reason and no more.

    Counted as unauthorized_access_attempts: every UNAUTHENTICATED, SCOPE_MISSING and SERVICE_DENIED. Counted as
    context_validation_failures: a context token that is not good, or whose context has ended.
    """

    def __init__(self, audit: AuditTrail, floods: Refusals, counters: SecurityCounters) -> None:
        self._audit = audit
        self._floods = floods
        self._counters = counters

    def note(self, error: SidecarError, method: str, peer: str, grant: ContextGrant | None = None) -> None:
        """Record one refusal of `method`; `grant` is the verified context token, where it came so far."""
        if isinstance(error, Unauthenticated):
            self._note_token(error, method, peer)
        elif isinstance(error, PermissionDenied):
            self._note_denied(error, method, peer, grant)
        elif isinstance(error, ManagerGone) and grant is not None:  # else an operator's, in the record of its call
            self._counters.context_validation_failures += 1
            self._record(AuditEvent.TOKEN_DENIED, error, method, peer, grant)
        elif isinstance(error, ResourceExhausted) and error.reason is ErrorReason.USER_LIMIT:
            self._counters.resource_limit_enforcements += 1
            self._record(AuditEvent.LIMIT_ENFORCED, error, method, peer, grant)

    def _note_token(self, error: Unauthenticated, method: str, peer: str) -> None:
        self._counters.unauthorized_access_attempts += 1
        if method not in SERVICE_METHODS:
            self._counters.context_validation_failures += 1
        # Anybody can cause these at no cost, so that a flood of them is counted rather than recorded one by one.
        self._floods.refused(
            peer, error.reason.value, event=AuditEvent.TOKEN_DENIED, method=method, fault=error.fault.value
        )

    def _note_denied(self, error: PermissionDenied, method: str, peer: str, grant: ContextGrant | None) -> None:
        if isinstance(error, IsolationViolation):
            self._counters.isolation_violations_detected += 1
            self._record(AuditEvent.ISOLATION_VIOLATION, error, method, peer, grant)
            return
        self._counters.unauthorized_access_attempts += 1
        scope = error.reason is ErrorReason.SCOPE_MISSING
        event = AuditEvent.SCOPE_DENIED if scope else AuditEvent.SERVICE_DENIED
        self._record(event, error, method, peer, grant)

    def _record(
        self, event: AuditEvent, error: SidecarError, method: str, peer: str, grant: ContextGrant | None
    ) -> None:
        if grant is None:
            self._audit.record(event, reason=error.reason.value, method=method, address=peer)
            return
        self._audit.record(
            event,
            reason=error.reason.value,
            method=method,
            address=peer,
            tenant_id=grant.tenant_id,
            user_id=grant.user_id,
            session_id=grant.session_id,
            connection_id=grant.connection_id,
            token_id=grant.token_id,
        )


SERVICE_METHODS = frozenset(
    {
        "ExchangeContextToken",
        "Attach",
        "GetFactoryStats",
        "GetSecurityStats",
        "ListManagers",
        "CleanupManager",
        "EnforceResourceLimits",
        "DisconnectUser",
        "RevokeUser",
        "Drain",
        "TailAuditLog",
    }
)
"""The methods whose caller proves itself with a service token; the others carry a context token."""
