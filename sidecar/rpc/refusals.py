"""Counts and records each refusal that is a security event, once, wherever in the edge it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    from sidecar.core.ports import AuditTrail, AuditValue
    from sidecar.core.statistics import SecurityCounters
    from sidecar.security.context_tokens import ContextGrant
    from sidecar.security.refusals import Refusals


class Claimant(NamedTuple):
    """Who asks for an exchange: a service, with the user's own token."""

    service: str
    tenant_id: str
    user_id: str


if TYPE_CHECKING:
    Caller = ContextGrant | Claimant | None


class RefusalRecorder:
    """What the operator is told of a refused call; the caller is told the reason and no more.

    Counted as unauthorized_access_attempts: every UNAUTHENTICATED, SCOPE_MISSING and SERVICE_DENIED. Counted as
    context_validation_failures: a context token that is not good, or whose context has ended.
    """

    def __init__(self, audit: AuditTrail, floods: Refusals, counters: SecurityCounters) -> None:
        self._audit = audit
        self._floods = floods
        self._counters = counters

    def note(self, error: SidecarError, method: str, peer: str, caller: Caller = None) -> None:
        """Record one refusal of `method`; `caller` is who it was, where it came so far."""
        if isinstance(error, Unauthenticated):
            self._note_token(error, method, peer)
        elif isinstance(error, PermissionDenied):
            self._note_denied(error, method, peer, caller)
        elif isinstance(error, ManagerGone) and caller is not None:  # else an operator's, in the record of its call
            self._counters.context_validation_failures += 1
            self._record(AuditEvent.TOKEN_DENIED, error, method, peer, caller)
        elif isinstance(error, ResourceExhausted) and error.reason is ErrorReason.USER_LIMIT:
            self._counters.resource_limit_enforcements += 1
            self._count(AuditEvent.LIMIT_ENFORCED, error, method, peer, caller)

    def _note_token(self, error: Unauthenticated, method: str, peer: str) -> None:
        self._counters.unauthorized_access_attempts += 1
        if method not in SERVICE_METHODS:
            self._counters.context_validation_failures += 1
        # Anybody can cause these at no cost, so that a flood of them is counted rather than recorded one by one.
        self._floods.refused(
            peer, error.reason.value, event=AuditEvent.TOKEN_DENIED, method=method, fault=error.fault.value
        )

    def _note_denied(self, error: PermissionDenied, method: str, peer: str, caller: Caller) -> None:
        if isinstance(error, IsolationViolation):
            self._counters.isolation_violations_detected += 1
            self._record(AuditEvent.ISOLATION_VIOLATION, error, method, peer, caller)
            return
        self._counters.unauthorized_access_attempts += 1
        if error.reason is ErrorReason.SCOPE_MISSING:
            self._count(AuditEvent.SCOPE_DENIED, error, method, peer, caller)
        else:
            self._record(AuditEvent.SERVICE_DENIED, error, method, peer, caller)

    def _count(self, event: AuditEvent, error: SidecarError, method: str, peer: str, caller: Caller) -> None:
        """Record singly, up to ten a second of one context: a frame of few bytes can be refused a thousand times."""
        fields = _named(caller)
        connection_id = str(fields.pop("connection_id", ""))
        reason = error.reason.value
        self._floods.refused(peer, reason, event=event, connection_id=connection_id, method=method, **fields)

    def _record(self, event: AuditEvent, error: SidecarError, method: str, peer: str, caller: Caller) -> None:
        self._audit.record(event, reason=error.reason.value, method=method, address=peer, **_named(caller))


def _named(caller: Caller) -> dict[str, AuditValue]:
    if caller is None:
        return {}
    if isinstance(caller, Claimant):
        return dict(caller._asdict())
    return {
        "tenant_id": caller.tenant_id,
        "user_id": caller.user_id,
        "session_id": caller.session_id,
        "connection_id": caller.connection_id,
        "token_id": caller.token_id,
    }


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
