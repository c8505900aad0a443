"""AdminService: what operators read, and what they take away. Reads need their audit record first."""

from __future__ import annotations

import base64
from heapq import nsmallest
from typing import TYPE_CHECKING

from sidecar.api.v1 import admin_service_pb2 as pb
from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import BadRequest, ErrorReason, ManagerGone, PermissionDenied
from sidecar.core.identity import IDENTIFIER, UserIdentity
from sidecar.core.ports import AuditEvent
from sidecar.rpc.acceptance import ended_for_good
from sidecar.rpc.translate import timestamp, unix_of, user_context
from sidecar.security.audit_record import AuditRecord
from sidecar.security.service_auth import Permission
from sidecar.security.user_tokens import DEFAULT_TENANT

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.duration_pb2 import Duration

    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import AuditValue, Clock
    from sidecar.core.statistics import SecurityCounters
    from sidecar.rpc.boundary import CallFacts
    from sidecar.rpc.callers import Callers
    from sidecar.security.audit import JsonLinesAuditTrail
    from sidecar.security.service_auth import ServiceIdentity

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
MAX_REASON_CHARACTERS = 123
MAX_DRAIN_WINDOW_S = 3600.0


class AdminMethods:
    """The methods of AdminService that this version serves."""

    def __init__(
        self,
        callers: Callers,
        factory: WebSocketManagerFactory,
        counters: SecurityCounters,
        audit: JsonLinesAuditTrail,
        clock: Clock,
        drain: Callable[[float | None], int],
    ) -> None:
        self._callers = callers
        self._factory = factory
        self._counters = counters
        self._audit = audit
        self._clock = clock
        self._drain = drain

    async def get_factory_stats(
        self, request: pb.GetFactoryStatsRequest, facts: CallFacts
    ) -> pb.GetFactoryStatsResponse:
        """Counters of the factory since the start."""
        await self._reading(self._callers.service(facts, Permission.ADMIN), facts)
        return pb.GetFactoryStatsResponse(**self._factory.get_factory_stats()._asdict())

    async def get_security_stats(
        self, request: pb.GetSecurityStatsRequest, facts: CallFacts
    ) -> pb.GetSecurityStatsResponse:
        """Counters of what was refused and recorded since the start."""
        await self._reading(self._callers.service(facts, Permission.ADMIN), facts)
        counters = self._counters
        return pb.GetSecurityStatsResponse(
            isolation_violations_detected=counters.isolation_violations_detected,
            unauthorized_access_attempts=counters.unauthorized_access_attempts,
            context_validation_failures=counters.context_validation_failures,
            resource_limit_enforcements=counters.resource_limit_enforcements,
            audit_events_logged=self._audit.records_logged,
        )

    async def list_managers(self, request: pb.ListManagersRequest, facts: CallFacts) -> pb.ListManagersResponse:
        """Live managers in the order of their connection_ids, as far as the service's tenants go."""
        service = self._callers.service(facts, Permission.ADMIN)
        _check_filter(request.tenant_id, request.user_id)
        if request.tenant_id and not service.allows_tenant(request.tenant_id):
            raise PermissionDenied(ErrorReason.SERVICE_DENIED)
        if request.page_size < 0:
            raise BadRequest("page_size", "not negative")
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = _decode_page_token(request.page_token)
        await self._reading(service, facts, tenant_id=request.tenant_id or None, user_id=request.user_id or None)
        found = nsmallest(
            size + 1,
            (
                manager
                for manager in self._factory
                if manager.context.connection_id > after and _matches(manager, request, service)
            ),
            key=lambda manager: manager.context.connection_id,
        )
        response = pb.ListManagersResponse(managers=[self._summary(manager) for manager in found[:size]])
        if len(found) > size:
            response.next_page_token = _encode_page_token(found[size - 1].context.connection_id)
        return response

    async def cleanup_manager(self, request: pb.CleanupManagerRequest, facts: CallFacts) -> pb.CleanupManagerResponse:
        """End one context. A key of a foreign tenant is answered as one that does not exist."""
        service = self._callers.service(facts, Permission.ADMIN)
        if not request.isolation_key:
            raise BadRequest("isolation_key", "required")
        try:
            context = self._factory.get_manager(request.isolation_key).context
        except ManagerGone:
            self._taking(service, facts, None, None, request.reason, found=False)
            raise
        allowed = service.allows_tenant(context.tenant_id)
        self._taking(service, facts, context.tenant_id, context.user_id, request.reason, found=allowed)
        if not allowed:
            raise ManagerGone
        close = catalogued(CloseCode.CLOSED_BY_SERVICE)
        count = self._factory.cleanup_manager(request.isolation_key, close, "cleaned_up", self._clock.now())
        await ended_for_good(self._factory)
        return pb.CleanupManagerResponse(connections=count)

    async def enforce_resource_limits(
        self, request: pb.EnforceResourceLimitsRequest, facts: CallFacts
    ) -> pb.EnforceResourceLimitsResponse:
        """End what one user holds over the limits or past its time."""
        service = self._callers.service(facts, Permission.ADMIN)
        identity = self._user(service, request.tenant_id, request.user_id)
        self._taking(service, facts, identity.tenant_id, identity.user_id, "")
        managers, connections = self._factory.enforce_resource_limits(identity, self._clock.now())
        await ended_for_good(self._factory)
        return pb.EnforceResourceLimitsResponse(managers=managers, connections=connections)

    async def disconnect_user(self, request: pb.DisconnectUserRequest, facts: CallFacts) -> pb.DisconnectUserResponse:
        """End every context of one user."""
        service = self._callers.service(facts, Permission.ADMIN)
        identity = self._user(service, request.tenant_id, request.user_id)
        self._taking(service, facts, identity.tenant_id, identity.user_id, request.reason)
        response = pb.DisconnectUserResponse()
        close, at = catalogued(CloseCode.CLOSED_BY_SERVICE), self._clock.now()
        for manager in self._factory.managers_of_user(identity):
            response.managers += 1
            response.connections += self._factory.cleanup_manager(manager.isolation_key, close, "disconnected", at)
        await ended_for_good(self._factory)
        return response

    async def drain(self, request: pb.DrainRequest, facts: CallFacts) -> pb.DrainResponse:
        """Begin to drain, and then to stop, as on SIGTERM. A second call changes nothing."""
        service = self._callers.service(facts, Permission.ADMIN)
        if service.tenants is not None:  # it would end other tenants' sockets
            raise PermissionDenied(ErrorReason.SERVICE_DENIED)
        window_s = _window_s(request.window) if request.HasField("window") else None
        self._taking(service, facts, None, None, "")
        return pb.DrainResponse(connections=self._drain(window_s))

    def authorize(self, facts: CallFacts) -> ServiceIdentity:
        """The operator's service identity, for methods that do no more yet."""
        return self._callers.service(facts, Permission.ADMIN)

    def _user(self, service: ServiceIdentity, tenant_id: str, user_id: str) -> UserIdentity:
        tenant_id = tenant_id or DEFAULT_TENANT
        if not user_id:
            raise BadRequest("user_id", "required")
        _check_filter(tenant_id, user_id)
        if not service.allows_tenant(tenant_id):
            raise PermissionDenied(ErrorReason.SERVICE_DENIED)
        return UserIdentity(tenant_id, user_id)

    async def _reading(self, service: ServiceIdentity, facts: CallFacts, **fields: AuditValue) -> None:
        record = {"service": service.name, "method": facts.method, **fields}
        await self._audit.grant(AuditRecord(AuditEvent.ADMIN_CALL, None, record))

    def _taking(
        self,
        service: ServiceIdentity,
        facts: CallFacts,
        tenant_id: str | None,
        user_id: str | None,
        reason: str,
        **fields: AuditValue,
    ) -> None:
        self._audit.record(
            AuditEvent.ADMIN_CALL,
            service=service.name,
            method=facts.method,
            tenant_id=tenant_id,
            user_id=user_id,
            reason=reason[:MAX_REASON_CHARACTERS],
            **fields,
        )

    def _summary(self, manager: IsolatedWebSocketManager) -> pb.ManagerSummary:
        at = self._clock.now()
        return pb.ManagerSummary(
            isolation_key=manager.isolation_key,
            context=user_context(manager.context),
            connections_managed=len(manager.connections),
            attached=manager.primary is not None,
            created_time=timestamp(unix_of(at, manager.created.monotonic)),
            last_activity_time=timestamp(unix_of(at, manager.last_activity.monotonic)),
            outbox_messages=len(manager.outbox.entries),
            outbox_bytes=manager.outbox.queued_bytes,
        )


def _matches(manager: IsolatedWebSocketManager, request: pb.ListManagersRequest, service: ServiceIdentity) -> bool:
    context = manager.context
    return (
        service.allows_tenant(context.tenant_id)
        and request.tenant_id in ("", context.tenant_id)
        and request.user_id in ("", context.user_id)
    )


def _check_filter(tenant_id: str, user_id: str) -> None:
    for field, value in (("tenant_id", tenant_id), ("user_id", user_id)):
        if value and not IDENTIFIER.fullmatch(value):
            raise BadRequest(field, "1 to 128 of A-Z a-z 0-9 _ . : @ | -")


def _window_s(window: Duration) -> float:
    window_s = float(window.seconds + window.nanos / 1e9)
    # google.protobuf.Duration: less than a second of nanoseconds, and both of one sign.
    if window.seconds < 0 or not 0 <= window.nanos <= 999_999_999 or window_s > MAX_DRAIN_WINDOW_S:
        raise BadRequest("window", "0 to 3,600 seconds")
    return window_s


def _encode_page_token(connection_id: str) -> str:
    return base64.urlsafe_b64encode(connection_id.encode()).decode()


def _decode_page_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except ValueError:
        raise BadRequest("page_token", "not one that this method returned") from None
