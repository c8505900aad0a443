"""Makes the context of a client and attaches its socket in one step with the limit check; what is recorded of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.core.context_factory import Handshake
from sidecar.core.ports import AuditEvent
from sidecar.security.audit_record import AuditRecord

if TYPE_CHECKING:
    from sidecar.core.identity import ContextToken, VerifiedUser
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import AuditValue, Encoder
    from sidecar.ws.admission import Admission
    from sidecar.ws.ports import EdgePorts
    from sidecar.ws.socket import ClientSocket


def open_context(
    ports: EdgePorts,
    socket: ClientSocket,
    admission: Admission,
    user: VerifiedUser,
    encoder: Encoder,
    *,
    resume_digest: bytes = b"",
) -> IsolatedWebSocketManager:
    """The manager of a new context with `socket` as its primary, which nothing is written to before `socket.open`.

    Attached at once, though its record is still to be written: a context being made must not pass for a detached one,
    which another connection of the same user would replace. Without a `resume_digest` it ends with its socket. Raises
    USER_LIMIT, RATE_LIMITED or DRAINING.
    """
    at = ports.clock.now()
    handshake = Handshake(admission.offer.request_id, admission.offer.metadata(admission.address))
    context = ports.contexts.create_context(user, handshake, at)
    manager = ports.factory.create_manager(
        context, encoder, at, ends_with_socket=not resume_digest, resume_digest=resume_digest
    )
    manager.add_connection(context, socket, at)
    socket.manager = manager
    return manager


async def kept(manager: IsolatedWebSocketManager) -> None:
    """Return once the store keeps that new context. Raises Unavailable when it does not."""
    creation = manager.creation
    if creation is None:
        return
    done = asyncio.Event()
    creation.add_done_callback(done.set)
    await done.wait()
    manager.creation = None
    if creation.error is not None:
        raise creation.error


def opened_record(manager: IsolatedWebSocketManager, socket: ClientSocket, admission: Admission) -> AuditRecord:
    """What the audit trail must hold before a client learns of its context."""
    protocol = "raw" if admission.offer.raw else "json"
    fields = {"attach_id": socket.attach_id, "address": admission.address, "protocol": protocol}
    return AuditRecord(AuditEvent.CONTEXT_OPENED, manager.context, fields)


def resumed_record(
    manager: IsolatedWebSocketManager, socket: ClientSocket, admission: Admission, attempt: int
) -> AuditRecord:
    """What the audit trail must hold before a client is let back to its context."""
    fields: dict[str, AuditValue] = {
        "attach_id": socket.attach_id,
        "address": admission.address,
        "attempt": attempt,
    }
    return AuditRecord(AuditEvent.CONTEXT_RESUMED, manager.context, fields)


def joined_record(manager: IsolatedWebSocketManager, socket: ClientSocket, admission: Admission) -> AuditRecord:
    """What the audit trail must hold before a mirror joins."""
    fields = {"attach_id": socket.attach_id, "address": admission.address}
    return AuditRecord(AuditEvent.MIRROR_JOINED, manager.context, fields)


def minted_record(
    ports: EdgePorts, manager: IsolatedWebSocketManager, socket: ClientSocket, token: ContextToken
) -> AuditRecord:
    """What the audit trail must hold before a client is given a context token."""
    fields = {
        "attach_id": socket.attach_id,
        "token_id": token.token_id,
        "family": token.family,
        "scopes": " ".join(ports.settings.client_scopes),
    }
    return AuditRecord(AuditEvent.TOKEN_MINTED, manager.context, fields)
