"""ContextService: what a context token is, its refresh, its revocation, and the exchange of a user token for one."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from sidecar.api.v1 import context_service_pb2 as pb
from sidecar.core.errors import (
    BadRequest,
    ErrorReason,
    IsolationViolation,
    ManagerGone,
    PermissionDenied,
    ResourceExhausted,
)
from sidecar.core.identity import Scope
from sidecar.core.ports import AuditEvent
from sidecar.rpc.refusals import Claimant
from sidecar.rpc.translate import timestamp, user_context
from sidecar.security.audit_record import AuditRecord
from sidecar.security.service_auth import DEFAULT_SCOPES, Permission

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.identity import UserExecutionContext, VerifiedUser
    from sidecar.rpc.boundary import CallFacts
    from sidecar.rpc.callers import Callers
    from sidecar.security.audit import JsonLinesAuditTrail
    from sidecar.security.context_tokens import ContextGrant, ContextTokenAuthority
    from sidecar.security.service_auth import ServiceIdentity
    from sidecar.security.user_tokens import UserTokenVerifier


MAX_REVOKED_FAMILIES: Final = 256
"""Of one context."""


class ContextMethods:
    """The methods of ContextService."""

    def __init__(
        self,
        callers: Callers,
        factory: WebSocketManagerFactory,
        tokens: ContextTokenAuthority,
        users: UserTokenVerifier,
        audit: JsonLinesAuditTrail,
    ) -> None:
        self._callers = callers
        self._factory = factory
        self._tokens = tokens
        self._users = users
        self._audit = audit

    async def get_context(self, request: pb.GetContextRequest, facts: CallFacts) -> pb.GetContextResponse:
        """What the presented token opens."""
        grant = self._callers.grant(facts)
        context = self._callers.manager_of(grant).context
        return pb.GetContextResponse(
            isolation_key=grant.isolation_key,
            context=user_context(context),
            scopes=sorted(grant.scopes),
            expire_time=timestamp(grant.expires_at),
        )

    async def refresh_context_token(
        self, request: pb.RefreshContextTokenRequest, facts: CallFacts
    ) -> pb.RefreshContextTokenResponse:
        """A new token of the same scopes and family, while the manager lives; the old one lives on."""
        grant = self._callers.grant(facts)
        context = self._callers.manager_of(grant).context
        token = self._tokens.refresh(grant, context)
        fields = {"token_id": token.token_id, "former_token_id": grant.token_id}
        await self._audit.grant(AuditRecord(AuditEvent.TOKEN_REFRESHED, context, fields))
        return pb.RefreshContextTokenResponse(context_token=token.text, expire_time=timestamp(token.expires_at))

    async def revoke_context_token(
        self, request: pb.RevokeContextTokenRequest, facts: CallFacts
    ) -> pb.RevokeContextTokenResponse:
        """End the presented token, what it was refreshed from and what was refreshed from it; at once."""
        grant = self._callers.grant(facts)
        self._revoke(grant)
        self._audit.record(
            AuditEvent.TOKEN_REVOKED,
            token_id=grant.token_id,
            tenant_id=grant.tenant_id,
            user_id=grant.user_id,
            connection_id=grant.connection_id,
        )
        await asyncio.to_thread(self._tokens.revocations.flush)
        return pb.RevokeContextTokenResponse()

    async def exchange_context_token(
        self, request: pb.ExchangeContextTokenRequest, facts: CallFacts
    ) -> pb.ExchangeContextTokenResponse:
        """A context token for a service that holds the user's own token and the connection_id."""
        service = self._callers.service(facts, Permission.EXCHANGE)
        user = self._users.verify(request.user_token)
        facts.grant = Claimant(service.name, user.tenant_id, user.user_id)
        # Before any look-up: what a service may have nothing to do with, it is told nothing of.
        if not service.allows_tenant(user.tenant_id):
            raise PermissionDenied(ErrorReason.SERVICE_DENIED)
        context = self._context_of(user, request.connection_id)
        scopes = requested_scopes(service, request.scopes)
        token = self._tokens.mint(context, scopes)
        fields = {"token_id": token.token_id, "service": service.name, "scopes": " ".join(sorted(scopes))}
        await self._audit.grant(AuditRecord(AuditEvent.TOKEN_EXCHANGED, context, fields))
        return pb.ExchangeContextTokenResponse(
            isolation_key=context.get_isolation_key(),
            context_token=token.text,
            expire_time=timestamp(token.expires_at),
            context=user_context(context),
        )

    def _revoke(self, grant: ContextGrant) -> None:
        """Revoke for as long as the context lives, so many at most: no context can fill the table for the others."""
        try:
            manager, family = self._callers.manager_of(grant), grant.family
        except ManagerGone:
            return  # the token opens nothing any more
        if len(manager.revoked_families) >= MAX_REVOKED_FAMILIES:
            raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=60.0)
        self._tokens.revoke_family(family)
        manager.revoked_families |= {family}
        manager.end_watchers.add(partial(self._tokens.revocations.discard, family))

    def _context_of(self, user: VerifiedUser, connection_id: str) -> UserExecutionContext:
        """The user's own live context of that id; unknown and foreign ids get one answer."""
        if not connection_id:
            raise BadRequest("connection_id", "required")
        manager = self._factory.find_by_connection_id(connection_id)
        if manager is None or manager.context.issuer != user.issuer:
            raise IsolationViolation
        manager.context.validate_user_access(user.tenant_id, user.user_id)
        return manager.context


def requested_scopes(service: ServiceIdentity, names: Iterable[str]) -> frozenset[Scope]:
    """The scopes asked for, each allowed to the service; none asked for is its share of send, emit and stats."""
    try:
        asked = frozenset(Scope(name) for name in names)
    except ValueError:
        raise BadRequest("scopes", "unknown scope") from None
    if not asked <= service.scopes:
        raise PermissionDenied(ErrorReason.SERVICE_DENIED)
    return asked or (DEFAULT_SCOPES & service.scopes)
