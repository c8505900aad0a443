"""Who is let in: the handshake's checks in their order, the context of a raw client, and the record of each refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog
from websockets.typing import Subprotocol

from sidecar.core.errors import ErrorReason, ResourceExhausted, SidecarError, Unauthenticated, Unavailable
from sidecar.core.ports import AuditEvent
from sidecar.ws.frames import RawEncoder
from sidecar.ws.handshake import PATH, Offer, Refusal, Refused, check_path, read_offer
from sidecar.ws.opening import kept, open_context, opened_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.http11 import Request, Response

    from sidecar.core.identity import VerifiedUser
    from sidecar.ws.connection import EdgeConnection
    from sidecar.ws.ports import EdgePorts


_logger = structlog.get_logger("sidecar.ws")


class Admission(NamedTuple):
    """What a connection was let in with; the token itself is no longer in `offer`. `user` None: to come in hello."""

    offer: Offer
    user: VerifiedUser | None
    address: str


class Doorkeeper:
    """Answers handshakes. In this order: 429 (address), 404, the library's checks, 400, 403, 401, 503, 429 (user)."""

    def __init__(self, ports: EdgePorts, is_full: Callable[[], bool]) -> None:
        self._ports = ports
        self._is_full = is_full
        self._raw_encoder = RawEncoder()

    def process_request(self, connection: EdgeConnection, request: Request) -> Response | None:
        """What is checked before the library looks at the request."""
        ports = self._ports
        forwarded = request.headers.get_all("X-Forwarded-For")
        connection.address = ports.addresses.of(connection.peer, forwarded)
        try:
            if not ports.limiter.admit(connection.address, ports.clock.monotonic()):
                raise Refused(Refusal.ADDRESS_LIMIT)
            check_path(request)
        except Refused as refused:
            return connection.refuse(refused.refusal)
        return None

    async def process_response(
        self, connection: EdgeConnection, request: Request, response: Response
    ) -> Response | None:
        """What is checked once the library would answer 101; returns the answer of a refusal, None to let in.

        Whatever the outcome, the request forgets its headers: some of them are secret.
        """
        try:
            if response.status_code == 101:
                await self._admit(connection, request, response)
        except Refused as refused:
            connection.fault = refused.fault
            return connection.refuse(refused.refusal)
        except Exception as error:  # noqa: BLE001 - the library would log its text
            _logger.error("handshake failed", error=type(error).__name__)
            return connection.refuse(Refusal.INTERNAL)
        finally:
            request.headers.clear()
            request.path = PATH
        return None

    def refused(self, connection: EdgeConnection, refusal: Refusal) -> None:
        """Count and record a refused handshake, once."""
        counters = self._ports.counters
        if refusal in {Refusal.TOKEN_REFUSED, Refusal.ORIGIN}:
            counters.unauthorized_access_attempts += 1
        if refusal in {Refusal.ADDRESS_LIMIT, Refusal.FULL}:
            counters.resource_limit_enforcements += 1
        if refusal is Refusal.TOKEN_REFUSED:
            self._ports.limiter.failed(connection.address, self._ports.clock.monotonic())
        user = None if connection.admission is None else connection.admission.user
        if user is not None:
            record_refused_user(self._ports, connection.address, user, refusal.reason)
            return
        record_refused_stranger(self._ports, self._address(connection), refusal.reason, connection.fault)

    def _address(self, connection: EdgeConnection) -> str:
        """A request that could not be read has no forwarded address: it is the peer's."""
        return connection.address or self._ports.addresses.of(connection.peer, ())

    async def _admit(self, connection: EdgeConnection, request: Request, response: Response) -> None:
        offer = read_offer(request, self._ports.settings.allowed_origins)
        user = self._verify(offer)
        connection.admission = Admission(offer._replace(token=None), user, connection.address)
        if self._ports.factory.draining:
            raise Refused(Refusal.DRAINING)
        if self._is_full():
            raise Refused(Refusal.FULL)
        if offer.raw and user is not None:
            connection_id = await self._open_raw(connection, connection.admission, user)
            response.headers["Sidecar-Connection-Id"] = connection_id
        if offer.answer is not None:
            connection.protocol.subprotocol = Subprotocol(offer.answer)
            response.headers["Sec-WebSocket-Protocol"] = offer.answer

    def _verify(self, offer: Offer) -> VerifiedUser | None:
        if offer.token is None and not offer.raw:
            return None
        try:
            return self._ports.users.verify(offer.token)
        except Unauthenticated as error:
            raise Refused(Refusal.TOKEN_REFUSED, error.fault.value) from None

    async def _open_raw(self, connection: EdgeConnection, admission: Admission, user: VerifiedUser) -> str:
        """Make the context of a raw client and have it recorded. Returns its connection_id.

        Should the connection end before it is upgraded, `EdgeConnection` tells the edge, which ends the context.
        """
        ports, socket = self._ports, connection.socket
        assert socket is not None
        try:
            manager = open_context(ports, socket, admission, user, self._raw_encoder)
            await ports.audit.grant(opened_record(manager, socket, admission))
            await kept(manager)
        except SidecarError as error:
            if socket.manager is not None:
                socket.manager.end(error.reason.value.lower(), None, ports.clock.now())
            raise Refused(_refusal_of(error)) from None
        if socket.gone or manager.ended:
            raise Refused(Refusal.CONTEXT_ENDED)
        return manager.context.connection_id


def record_refused_user(ports: EdgePorts, address: str, user: VerifiedUser, reason: str) -> None:
    """A connection was refused after it was known whose it is."""
    ports.audit.record(
        AuditEvent.CONNECT_REFUSED, address=address, reason=reason, tenant_id=user.tenant_id, user_id=user.user_id
    )


def record_refused_stranger(ports: EdgePorts, address: str, reason: str, fault: str | None) -> None:
    """A connection was refused before that was known; floods are counted. `fault`: what was wrong with the token."""
    if fault is None:
        ports.refusals.refused(address, reason)
    else:
        ports.refusals.refused(address, reason, fault=fault)


_UNAVAILABLE = {
    ErrorReason.DRAINING: Refusal.DRAINING,
    ErrorReason.STORAGE_UNAVAILABLE: Refusal.STORAGE_UNAVAILABLE,
    ErrorReason.OUTCOME_UNKNOWN: Refusal.STORAGE_UNAVAILABLE,
}


def _refusal_of(error: SidecarError) -> Refusal:
    if isinstance(error, ResourceExhausted):
        return Refusal.USER_LIMIT if error.reason is ErrorReason.USER_LIMIT else Refusal.FULL
    if isinstance(error, Unavailable):
        return _UNAVAILABLE.get(error.reason, Refusal.AUDIT_UNAVAILABLE)
    return Refusal.INTERNAL
