"""`sidecar.v1.json`: after the welcome, what the client says, frame by frame, in one task a socket."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import orjson

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.deliveries import InboundMessage
from sidecar.core.errors import ErrorReason, SidecarError, Unauthenticated, Unavailable
from sidecar.core.events import ContextTokenDue, Draining, SocketEvent, TokenExpiring
from sidecar.core.message import ContentType
from sidecar.core.ports import AuditEvent
from sidecar.security.audit_record import AuditRecord
from sidecar.ws import frames, inbound
from sidecar.ws.greeting import Greeting
from sidecar.ws.inbound import Acknowledge, BadFrame, Cancel, ClientFrame, ClientMessage, Hello, Refresh
from sidecar.ws.opening import minted_record
from sidecar.ws.resume_tokens import belongs_to

if TYPE_CHECKING:
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import AuditValue
    from sidecar.ws.connection import EdgeConnection
    from sidecar.ws.ports import EdgePorts
    from sidecar.ws.socket import ClientSocket


class JsonSession:
    """Runs one client of the JSON protocol. `run` ends when the connection does, by ConnectionClosed."""

    def __init__(self, connection: EdgeConnection, socket: ClientSocket, ports: EdgePorts) -> None:
        self._connection = connection
        self._socket = socket
        self._ports = ports
        self._renewal: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Serve until the connection ends."""
        self._socket.on_event = self._on_event
        greeting = Greeting(self._connection, self._socket, self._ports)
        try:
            await greeting.run()
            self._connection.on_text = self._take_at_once
            while True:
                self._connection.unread -= 1  # what came last, hello at first
                await self._read()
        finally:
            greeting.abandon()
            await self._end_renewal()

    # Frames

    def _take_at_once(self, data: bytes) -> bool:
        """Take an `ack` or a `message` in the step in which it is read: waking this task costs more than what is done.

        Everything else, what is not good, and a message behind one that waits are left to `_read`. What is unforeseen
        is raised by this task, for who runs it: the transport would log its text.
        """
        manager = self._socket.manager
        if manager is None or self._socket.gone:
            return False
        try:
            frame = inbound.parse(data.decode())
            if isinstance(frame, Acknowledge):
                return self._acknowledge(manager, frame.sequence)
            if isinstance(frame, ClientMessage) and not self._connection.unread:
                self._take_message(manager, frame)
                return True
        except (BadFrame, UnicodeDecodeError):
            pass
        except Exception as error:  # noqa: BLE001 - raised again
            self._failure = error
        return False

    def _acknowledge(self, manager: IsolatedWebSocketManager, sequence: int) -> bool:
        """False for one that is not good.

        One that acknowledges something new is not counted against the rate: a service has paid for it with a message.
        """
        before = manager.outbox.acknowledged
        if not manager.acknowledge(self._socket.attach_id, sequence, self._ports.clock.now()):
            return False
        if manager.outbox.acknowledged > before:
            self._connection.give_back_frame()
        return True

    async def _read(self) -> None:
        """Take one frame. What comes after this side began to close is read and does not count."""
        text = await self._connection.recv()
        if self._failure is not None:
            raise self._failure
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
                if not manager.acknowledge(self._socket.attach_id, frame.sequence, self._ports.clock.now()):
                    self._close(manager, CloseCode.BAD_FRAME)
            case ClientMessage():
                self._take_message(manager, frame)
            case Cancel():
                if manager.primary is self._socket:  # a mirror's counts for nothing
                    manager.cancel(frame.stream_id, frame.message_id, self._ports.clock.now())
            case Refresh():
                await self._refresh(manager, frame.token)
            case Hello():
                self._close(manager, CloseCode.BAD_FRAME)
            case _:
                self._socket.send(frames.error(ErrorReason.BAD_REQUEST, frame.message_id))

    def _take_message(self, manager: IsolatedWebSocketManager, frame: ClientMessage) -> None:
        """Answer `accepted` once it is queued, or `error`. A mirror has nobody to talk to."""
        if manager.primary is not self._socket:
            self._socket.send(frames.error(ErrorReason.NO_AGENT, frame.message_id))
            return
        message = InboundMessage(frame.message_id, frame.event, orjson.dumps(frame.data), ContentType.JSON)
        try:
            manager.receive(message, self._ports.clock.now(), partial(self._answer, frame.message_id))
        except SidecarError as error:
            self._answer(frame.message_id, error, duplicate=False)

    def _answer(self, message_id: str, error: SidecarError | None, duplicate: bool) -> None:
        if error is None:
            self._socket.send(frames.accepted(message_id, duplicate=duplicate))
        else:
            self._socket.send(frames.error(error.reason, message_id))

    def _touch(self, manager: IsolatedWebSocketManager) -> None:
        """Activity; a mirror's does not count."""
        if manager.primary is self._socket:
            manager.touch(self._ports.clock.now())

    def _close(self, manager: IsolatedWebSocketManager, code: CloseCode) -> None:
        manager.close_connection(self._socket, catalogued(code), self._ports.clock.now())

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
            manager.lifecycle.token_refreshed(socket.attach_id, user.expires_at, ports.clock.now())
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
            manager.lifecycle.context_token_minted(socket.attach_id, token.expires_at, ports.clock.now())
            socket.send(frames.context_token(token))

    async def _end_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
