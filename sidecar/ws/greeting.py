"""From the upgrade to the welcome of the JSON protocol: hello, whose it is, and which context it gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from websockets.exceptions import ConnectionClosed

from sidecar.core.close_codes import CloseCode, catalogued
from sidecar.core.errors import ErrorReason, ResourceExhausted, SidecarError, Unauthenticated, Unavailable
from sidecar.core.ports import AuditEvent
from sidecar.ws import frames, inbound
from sidecar.ws.admission import record_refused_stranger, record_refused_user
from sidecar.ws.inbound import BadFrame, Hello, Resume
from sidecar.ws.opening import joined_record, kept, minted_record, open_context, opened_record, resumed_record
from sidecar.ws.resume_tokens import belongs_to, digest_of, new_resume_token

if TYPE_CHECKING:
    from sidecar.core.identity import ContextToken, VerifiedUser
    from sidecar.core.manager import IsolatedWebSocketManager
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


class Greeting:
    """Takes one socket as far as its welcome, or closes it with the code that says why not."""

    def __init__(self, connection: EdgeConnection, socket: ClientSocket, ports: EdgePorts) -> None:
        assert connection.admission is not None
        self._connection = connection
        self._admission: Admission = connection.admission
        self._socket = socket
        self._ports = ports
        self._welcomed = False

    async def run(self) -> None:
        """Return when the socket is welcomed or closing. Raises ConnectionClosed when its client goes meanwhile."""
        try:
            await self._greet()
        except _Refused as refused:
            self._refuse(refused)
        except ConnectionClosed as end:
            self._record_failure(end)
            raise

    def abandon(self) -> None:
        """End the context of a socket that was never welcomed: nobody knows of it. Idempotent."""
        manager = self._socket.manager
        if manager is not None and not self._welcomed:
            manager.end("lost_before_welcome", None, self._ports.clock.now())

    # hello

    async def _greet(self) -> None:
        hello = await self._receive_hello()
        if hello is None:
            return
        user = self._authenticate(hello)
        if self._ports.factory.draining:  # upgraded before that began
            raise _Refused(CloseCode.RESTART, "draining", user)
        if hello.mirror_token is not None:
            await self._join(user, hello.mirror_token)
        elif hello.resume is not None:
            await self._come_back(user, hello.resume)
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

    def _record_failure(self, end: ConnectionClosed) -> None:
        """What the client sent was no WebSocket (RFC 6455 §7.1.7), and it was closed for that: a refusal like others.

        An echo of the client's own close is none, nor is what this side closed for another reason.
        """
        if end.sent is not None and end.sent != end.rcvd and self._socket.closing is None:
            reason = CloseCode(end.sent.code).name.lower()
            record_refused_stranger(self._ports, self._admission.address, reason, None)

    # A context of one's own

    async def _open(self, user: VerifiedUser, recovery: str) -> None:
        ports, socket = self._ports, self._socket
        resume_token = new_resume_token(ports.randomness)
        try:
            manager = open_context(
                ports, socket, self._admission, user, _ENCODER, resume_digest=digest_of(resume_token)
            )
        except SidecarError as error:
            raise _Refused(_code_of(error), error.reason.value.lower(), user) from None
        token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(
                opened_record(manager, socket, self._admission), minted_record(ports, manager, socket, token)
            )
            await kept(manager)
        except Unavailable as error:
            # Closed first, with the code that says why: ending the manager would say another.
            refused = _Refused(CloseCode.OVERLOADED, error.reason.value.lower(), user)
            self._refuse(refused)
            manager.end(refused.reason, catalogued(refused.code), ports.clock.now())
            return
        if socket.gone or manager.ended:
            return
        self._welcome(manager, user, token, recovery, sequence=manager.outbox.cursor, resume_token=resume_token)
        manager.conversation.announce(ports.clock.now())

    # The former context

    async def _come_back(self, user: VerifiedUser, resume: Resume) -> None:
        """Resume, or answer `denied` with a fresh context: one answer for whatever stands against it."""
        manager = self._ports.factory.find_by_resume_digest(digest_of(resume.token))
        if manager is None:
            fault: str | None = "not_found"
        elif not belongs_to(manager, user):
            fault = "not_yours"
        elif not manager.note_attempt(resume.attempt):
            raise _Refused(CloseCode.TAKEN_OVER, "stale_attempt", user)
        elif resume.last_sequence > manager.outbox.confirmed:
            fault = "above_head"
        else:
            fault = await self._resume(manager, user, resume)
        if fault is not None:
            self._deny(user, "resume", fault)
            await self._open(user, "denied")

    async def _resume(self, manager: IsolatedWebSocketManager, user: VerifiedUser, resume: Resume) -> str | None:
        """Take over that manager once the record is written; a fault where it has ended meanwhile.

        An attempt that a newer hello overtook while its record was written ends itself and fences nobody.
        """
        ports, socket = self._ports, self._socket
        context_token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(
                resumed_record(manager, socket, self._admission, resume.attempt),
                minted_record(ports, manager, socket, context_token),
            )
        except Unavailable as error:
            raise _Refused(CloseCode.OVERLOADED, error.reason.value.lower(), user) from None
        if socket.gone:
            return None
        if manager.ended:
            return "not_found"
        if manager.attempt != resume.attempt:
            raise _Refused(CloseCode.TAKEN_OVER, "stale_attempt", user)
        full = manager.resume(manager.context, socket, resume.last_sequence, ports.clock.now())
        socket.manager = manager
        self._welcome(
            manager,
            user,
            context_token,
            "full" if full else "gap",
            sequence=manager.outbox.cursor,
            resume_token=resume.token,
        )
        return None

    # A second screen

    async def _join(self, user: VerifiedUser, token: str) -> None:
        manager = self._ports.factory.find_by_resume_digest(digest_of(token))
        if manager is None:
            fault: str | None = "not_found"
        elif not belongs_to(manager, user):
            fault = "not_yours"
        else:
            fault = await self._mirror(manager, user)
        if fault is not None:
            self._deny(user, "mirror", fault)
            await self._open(user, "denied")

    async def _mirror(self, manager: IsolatedWebSocketManager, user: VerifiedUser) -> str | None:
        """Join that manager; a fault where it has ended. Joins after its record: a mirror has no outbox to wait in."""
        ports, socket = self._ports, self._socket
        self._admit_mirror(manager, user)
        context_token = ports.tokens.mint(manager.context, ports.settings.client_scopes)
        try:
            await ports.audit.grant(
                joined_record(manager, socket, self._admission), minted_record(ports, manager, socket, context_token)
            )
        except Unavailable as error:
            raise _Refused(CloseCode.OVERLOADED, error.reason.value.lower(), user) from None
        if socket.gone:
            return None
        if manager.ended:
            return "not_found"
        self._admit_mirror(manager, user)  # others may have joined meanwhile
        manager.add_connection(manager.context, socket, ports.clock.now(), mirror=True)
        socket.manager = manager
        # What the store has confirmed is behind a mirror: the next message to be confirmed is its first.
        self._welcome(manager, user, context_token, "mirror", sequence=manager.outbox.confirmed, resume_token=None)
        return None

    def _admit_mirror(self, manager: IsolatedWebSocketManager, user: VerifiedUser) -> None:
        try:
            manager.admit_mirror()
        except ResourceExhausted:
            self._ports.counters.resource_limit_enforcements += 1
            raise _Refused(CloseCode.LIMIT_REACHED, "connections_per_manager", user) from None

    def _deny(self, user: VerifiedUser, kind: str, fault: str) -> None:
        """A token that leads nowhere, to somebody else's context, or ahead of it; the client is not told which."""
        counters = self._ports.counters
        counters.context_validation_failures += 1
        counters.isolation_violations_detected += fault == "not_yours"
        self._ports.audit.record(
            AuditEvent.RESUME_DENIED,
            kind=kind,
            reason=fault,
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
        socket, settings, at = self._socket, self._ports.settings, self._ports.clock.now()
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


def _code_of(error: SidecarError) -> CloseCode:
    if error.reason is ErrorReason.USER_LIMIT:
        return CloseCode.LIMIT_REACHED
    return CloseCode.RESTART if error.reason is ErrorReason.DRAINING else CloseCode.OVERLOADED


def _whole(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds
