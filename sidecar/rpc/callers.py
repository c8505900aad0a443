"""Who calls: the context token that opens one context, the service token that names a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.errors import BadRequest, ErrorReason, IsolationViolation, PermissionDenied
from sidecar.rpc.boundary import CONTEXT_TOKEN_KEY, SERVICE_TOKEN_KEY, CallFacts

if TYPE_CHECKING:
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.identity import Scope
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.security.context_tokens import ContextGrant, ContextTokenAuthority
    from sidecar.security.service_auth import Permission, ServiceAuthenticator, ServiceIdentity


class Callers:
    """Authenticates and resolves callers; every check of promise 1 on this edge is in this class."""

    def __init__(
        self, tokens: ContextTokenAuthority, services: ServiceAuthenticator, factory: WebSocketManagerFactory
    ) -> None:
        self._tokens = tokens
        self._services = services
        self._factory = factory

    def grant(self, facts: CallFacts) -> ContextGrant:
        """The verified context token of a unary call."""
        if facts.grant is None:
            facts.grant = self._tokens.verify(facts.token(CONTEXT_TOKEN_KEY))
        grant: ContextGrant = facts.grant
        return grant

    def verify(self, token: str) -> ContextGrant:
        """The verified context token of a batch item or a lane."""
        return self._tokens.verify(token)

    def opened(
        self, facts: CallFacts, isolation_key: str, expected_user_id: str, scope: Scope
    ) -> IsolatedWebSocketManager:
        """The manager that a unary call's token opens for this key, this user and this scope."""
        return self.open(self.grant(facts), isolation_key, expected_user_id, scope)

    def open(
        self, grant: ContextGrant, isolation_key: str, expected_user_id: str, scope: Scope | None
    ) -> IsolatedWebSocketManager:
        """The live manager, after every check. The key is compared before anything is looked up: no oracle."""
        if isolation_key != grant.isolation_key:
            if not isolation_key:
                raise BadRequest("isolation_key", "required")
            raise IsolationViolation
        if expected_user_id and expected_user_id != grant.user_id:
            raise IsolationViolation
        if scope is not None and scope not in grant.scopes:
            raise PermissionDenied(ErrorReason.SCOPE_MISSING)
        return self.manager_of(grant)

    def manager_of(self, grant: ContextGrant) -> IsolatedWebSocketManager:
        """The live manager of a verified token, checked to be this user's as well. Raises MANAGER_GONE."""
        manager = self._factory.get_manager(grant.isolation_key)
        manager.context.validate_user_access(grant.tenant_id, grant.user_id)
        return manager

    def authenticate(self, service_token: str | None) -> ServiceIdentity:
        """Whose that service token is, as of now."""
        return self._services.authenticate(service_token)

    def service(self, facts: CallFacts, permission: Permission) -> ServiceIdentity:
        """The service that calls, allowed to do that."""
        if facts.service is None:
            facts.service = self._services.authenticate(facts.token(SERVICE_TOKEN_KEY))
        identity: ServiceIdentity = facts.service
        identity.require(permission)
        return identity
