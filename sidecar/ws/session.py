"""`sidecar.v1.json`: hello, welcome, then what the client says, frame by frame, in one task a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import ErrorReason, ResourceExhausted, SidecarError, Unauthenticated, Unavailable
from sidecar.core.events import ContextTokenDue, Draining, SocketEvent, TokenExpiring
from sidecar.core.ports import AuditEvent
from sidecar.security.audit_record import AuditRecord
from sidecar.ws import frames, inbound
from sidecar.ws.admission import record_refused_stranger, record_refused_user
from sidecar.ws.inbound import Acknowledge, BadFrame, Cancel, ClientFrame, ClientMessage, Hello, Refresh
from sidecar.ws.opening import joined_record, minted_record, open_context, opened_record
from sidecar.ws.resume_tokens import belongs_to

if TYPE_CHECKING:
    from sidecar.core.identity import ContextToken, VerifiedUser
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import AuditValue
    from sidecar.ws.admission import Admission
    from sidecar.ws.connection import EdgeConnection
    from sidecar.ws.ports import EdgePorts
    from sidecar.ws.socket import ClientSocket

_ENCODER: Final = frames.JsonEncoder()


class _Refused(Exception):
    """The connection ends with this code. `reason` and `fault` are the audit trail's; `user` None: not known whose."""

    def __init__(
        self, code: CloseCode, reason: str, user: VerifiedUser | None = None, fault: str | None = None
    ) -> None:
        self.code = code
        self.reason = reason
        self.user = user
        self.fault = fault
        super().__init__(reason)


class JsonSession:
    """Runs one client of the JSON protocol. `run` ends when the connection does, by ConnectionClosed."""

    def __init__(self, connection: EdgeConnection, socket: ClientSocket, ports: EdgePorts) -> None:
        assert connection.admission is not None
        self._connection = connection
        self._admission: Admission = connection.admission
        self._socket = socket
        self._ports = ports
        self._welcomed = False
        self._renewal: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the connection ends."""
        self._socket.on_event = self._on_event
        try:
            try:
                await self._greet()
            except _Refused as refused:
                self._refuse(refused)
            while True:
                await self._read()
        finally:
            await self._end()

    # hello

    async def _greet(self) -> None:
        hello = await self._receive_hello()
        if hello is None:
            return
        user = self._authenticate(hello)
        if hello.mirror_token is not None:
            await self._join(user, hello.mirror_token)
        elif hello.resume is not None:
            self._deny(user, "resume", None)
            await self._open(user, "denied")
        else:
            await self._open(user, "new")

    async def _receive_hello(self) -> Hello | None:
        """The first frame; None when this side closed the socket while it waited."""
        try:
            async with asyncio.timeout(self._ports.settings.hello_timeout_s):
                text = await self._connection.recv()
        except TimeoutError:
            raise _Refused(CloseCode.HELLO_TIMEOUT, "hello_timeout") from None
        if self._socket.gone:
            return None
        if not isinstance(text, str):
            raise _Refused(CloseCode.UNSUPPORTED_DATA, "binary_frame")
        try:
            frame = inbound.parse(text)
        except BadFrame:
            raise _Refused(CloseCode.BAD_FRAME, "bad_frame") from None
        if not isinstance(frame, Hello):
            raise _Refused(CloseCode.BAD_FRAME, "no_hello")
        return frame

    def _authenticate(self, hello: Hello) -> VerifiedUser:
        user = self._admission.user
        if user is not None:
            if hello.token is not None:
                raise _Refused(CloseCode.BAD_FRAME, "two_tokens")
            return user
        try:
            return self._ports.users.verify(hello.token)
        except Unauthenticated as error:
            self._ports.counters.unauthorized_access_attempts += 1
            self._ports.limiter.failed(self._admission.address, self._ports.clock.monotonic())
            raise _Refused(CloseCode.TOKEN_INVALID, "token_refused", fault=error.fault.value) from None

    def _refuse(self, refused: _Refused) -> None:
        """Close a socket that was never welcomed, and record it once."""
        if self._socket.gone:
            return
        self._socket.close(catalogued(refused.code))
        address = self._admission.address
        if refused.user is not None:
            record_refused_user(self._ports, address, refused.user, refused.reason)
        else:
            record_refused_stranger(self._ports, address, refused.reason, refused.fault)

    # A context of one's own

    async def _open(self, user: VerifiedUser, recovery: str) -> None:
        ports, socket = self._ports, self._socket
        try:
            manager = open_context(ports, socket, self._admission, user, _ENCODER)
        except SidecarError as error:
            raise _Refused(_code_of(error), error.reason.value.lower(), user) from None
        token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(
                opened_record(manager, socket, self._admission), minted_record(ports, manager, socket, token)
            )
        except Unavailable as error:
            # Closed first, with the code that says why: ending the manager would say another.
            refused = _Refused(CloseCode.OVERLOADED, error.reason.value.lower(), user)
            self._refuse(refused)
            manager.end(refused.reason, catalogued(refused.code), ports.now())
            return
        if socket.gone or manager.ended:
            return
        resume_token = ports.resume_tokens.issue(manager)
        self._welcome(manager, user, token, recovery, sequence=manager.outbox.cursor, resume_token=resume_token)

    # A second screen

    async def _join(self, user: VerifiedUser, token: str) -> None:
        manager = self._ports.resume_tokens.find(token)
        if manager is None or not belongs_to(manager, user):
            self._deny(user, "mirror", manager)
            await self._open(user, "denied")
        elif not await self._mirror(manager, user):
            # The context ended while its record was written.
            self._deny(user, "mirror", None)
            await self._open(user, "denied")

    async def _mirror(self, manager: IsolatedWebSocketManager, user: VerifiedUser) -> bool:
        """Join that manager; False when it has ended. Joins after its record: a mirror has no outbox to wait in."""
        ports, socket = self._ports, self._socket
        if len(manager.connections) >= ports.factory.limits.connections_per_manager:
            self._refuse_mirror(user)
        context_token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(
                joined_record(manager, socket, self._admission), minted_record(ports, manager, socket, context_token)
            )
        except Unavailable as error:
            raise _Refused(CloseCode.OVERLOADED, error.reason.value.lower(), user) from None
        if socket.gone:
            return True
        if manager.ended:
            return False
        try:
            manager.add_connection(manager.context, socket, ports.now(), mirror=True)
        except ResourceExhausted:
            self._refuse_mirror(user)
        socket.manager = manager
        # What the store has confirmed is behind a mirror: the next message to be confirmed is its first.
        self._welcome(manager, user, context_token, "mirror", sequence=manager.outbox.confirmed, resume_token=None)
        return True

    def _refuse_mirror(self, user: VerifiedUser) -> None:
        self._ports.counters.resource_limit_enforcements += 1
        raise _Refused(CloseCode.LIMIT_REACHED, "connections_per_manager", user)

    def _deny(self, user: VerifiedUser, kind: str, foreign: IsolatedWebSocketManager | None) -> None:
        """A token that leads nowhere, or to somebody else's context; the client is not told which."""
        counters = self._ports.counters
        counters.context_validation_failures += 1
        if foreign is not None:
            counters.isolation_violations_detected += 1
        self._ports.audit.record(
            AuditEvent.RESUME_DENIED,
            kind=kind,
            reason="not_found" if foreign is None else "not_yours",
            address=self._admission.address,
            attach_id=self._socket.attach_id,
            tenant_id=user.tenant_id,
            user_id=user.user_id,
        )

    def _welcome(
        self,
        manager: IsolatedWebSocketManager,
        user: VerifiedUser,
        token: ContextToken,
        recovery: str,
        *,
        sequence: int,
        resume_token: str | None,
    ) -> None:
        """Synchronous with what decided it: nothing is written to the socket before the welcome."""
        socket, settings, at = self._socket, self._ports.settings, self._ports.now()
        limits = {
            "max_message_bytes": settings.max_message_bytes,
            "max_inbound_bytes": settings.max_inbound_bytes,
            "idle_timeout_s": _whole(settings.idle_timeout_s),
            "resume_window_s": _whole(settings.resume_window_s),
        }
        self._welcomed = True
        manager.lifecycle.register_connection(socket, user.expires_at, at)
        manager.lifecycle.context_token_minted(socket.attach_id, token.expires_at, at)
        socket.send(
            frames.welcome(
                manager.context,
                socket.attach_id,
                token,
                recovery=recovery,
                sequence=sequence,
                limits=limits,
                resume_token=resume_token,
            )
        )
        socket.open()

    # Frames

    async def _read(self) -> None:
        """Take one frame. What comes after this side began to close is read and does not count."""
        text = await self._connection.recv()
        manager = self._socket.manager
        if self._socket.gone or manager is None:
            return
        if not isinstance(text, str):
            self._close(manager, CloseCode.UNSUPPORTED_DATA)
            return
        try:
            frame = inbound.parse(text)
        except BadFrame:
            self._close(manager, CloseCode.BAD_FRAME)
            return
        await self._handle(manager, frame)

    async def _handle(self, manager: IsolatedWebSocketManager, frame: ClientFrame) -> None:
        match frame:
            case Acknowledge():
                if not manager.acknowledge(self._socket.attach_id, frame.sequence, self._ports.now()):
                    self._close(manager, CloseCode.BAD_FRAME)
            case ClientMessage():
                self._touch(manager)
                self._socket.send(frames.error(ErrorReason.NO_AGENT, frame.message_id))
            case Cancel():
                self._touch(manager)
            case Refresh():
                await self._refresh(manager, frame.token)
            case Hello():
                self._close(manager, CloseCode.BAD_FRAME)
            case _:
                self._socket.send(frames.error(ErrorReason.BAD_REQUEST, frame.message_id))

    def _touch(self, manager: IsolatedWebSocketManager) -> None:
        """Activity; a mirror's does not count."""
        if manager.primary is self._socket:
            manager.touch(self._ports.now())

    def _close(self, manager: IsolatedWebSocketManager, code: CloseCode) -> None:
        manager.close_connection(self._socket, catalogued(code), self._ports.now())

    # Tokens in band

    async def _refresh(self, manager: IsolatedWebSocketManager, token: str) -> None:
        ports, socket = self._ports, self._socket
        try:
            user = ports.users.verify(token)
        except Unauthenticated as error:
            self._refuse_token(manager, CloseCode.TOKEN_INVALID, error.reason, error.fault.value)
            return
        if not belongs_to(manager, user):
            self._refuse_token(manager, CloseCode.FORBIDDEN, ErrorReason.TOKEN_INVALID, "identity")
            return
        fields: dict[str, AuditValue] = {"attach_id": socket.attach_id, "expires_at": user.expires_at}
        try:
            await ports.audit.grant(AuditRecord(AuditEvent.USER_TOKEN_REFRESHED, manager.context, fields))
        except Unavailable as error:
            socket.send(frames.error(error.reason, None))  # the old token is still good; the client may ask again
            return
        if not socket.gone:
            self._touch(manager)
            manager.lifecycle.token_refreshed(socket.attach_id, user.expires_at, ports.now())
            socket.send(frames.refreshed(user.expires_at))

    def _refuse_token(
        self, manager: IsolatedWebSocketManager, code: CloseCode, reason: ErrorReason, fault: str
    ) -> None:
        self._ports.counters.unauthorized_access_attempts += 1
        manager.context.audit_log_action(
            AuditEvent.TOKEN_DENIED, attach_id=self._socket.attach_id, reason=reason.value, fault=fault
        )
        self._close(manager, code)

    def _on_event(self, event: SocketEvent) -> None:
        match event:
            case TokenExpiring():
                self._socket.send(frames.token_expiring(event.expires_at))
            case Draining():
                self._socket.send(frames.draining(event.reconnect_in_ms))
            case ContextTokenDue():
                if self._renewal is None or self._renewal.done():
                    self._renewal = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        """Give the client another context token. Asked again later should the record not be written."""
        ports, socket, manager = self._ports, self._socket, self._socket.manager
        assert manager is not None
        token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(minted_record(ports, manager, socket, token))
        except Unavailable:
            return
        if not socket.gone:
            manager.lifecycle.context_token_minted(socket.attach_id, token.expires_at, ports.now())
            socket.send(frames.context_token(token))

    async def _end(self) -> None:
        """Leave nothing behind: the renewal, and a context that its client never heard of."""
        manager = self._socket.manager
        if manager is not None and not self._welcomed:
            manager.end("lost_before_welcome", None, self._ports.now())
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)


def _code_of(error: SidecarError) -> CloseCode:
    if error.reason is ErrorReason.USER_LIMIT:
        return CloseCode.LIMIT_REACHED
    return CloseCode.RESTART if error.reason is ErrorReason.DRAINING else CloseCode.OVERLOADED


def _whole(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds
