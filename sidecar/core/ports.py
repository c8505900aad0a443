"""What the core is given at construction: clock, audit trail, sockets, encoder, outbox store. Protocols only.

The core calls these and nothing else; every method here is synchronous, returns at once and never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidecar.core.close_codes import Close
    from sidecar.core.events import SocketEvent
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.message import Durability, Instant, Message
    from sidecar.core.outbox import OutboxEntry
    from sidecar.core.stored import MessageIdentity, StoredContext, StoredInbound, StoredState


class Clock(Protocol):
    """Time, handed in so that tests own it."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never set back. Every deadline is on this clock."""

    def time(self) -> float:
        """Unix seconds. Only for what people and other machines read; a step of it changes no timeout."""

    def now(self) -> Instant:
        """One reading of both."""


class AuditEvent(StrEnum):
    """The closed list of what the audit trail records."""

    SIDECAR_STARTED = "sidecar_started"
    SIDECAR_DRAINING = "sidecar_draining"
    SIDECAR_STOPPED = "sidecar_stopped"
    AUDIT_TAIL_REPAIRED = "audit_tail_repaired"
    AUDIT_INTERRUPTED = "audit_interrupted"
    AUDIT_RECORDS_LOST = "audit_records_lost"
    CONTEXT_OPENED = "context_opened"
    CONTEXT_RESUMED = "context_resumed"
    CONTEXTS_RESTORED = "contexts_restored"
    CONTEXT_CLOSED = "context_closed"
    MIRROR_JOINED = "mirror_joined"
    SOCKET_CLOSED = "socket_closed"
    CONNECT_REFUSED = "connect_refused"
    REFUSALS_COUNTED = "refusals_counted"
    RESUME_DENIED = "resume_denied"
    USER_TOKEN_REFRESHED = "user_token_refreshed"
    TOKEN_MINTED = "token_minted"
    TOKEN_REFRESHED = "token_refreshed"
    TOKEN_EXCHANGED = "token_exchanged"
    TOKEN_REVOKED = "token_revoked"
    TOKEN_DENIED = "token_denied"
    SCOPE_DENIED = "scope_denied"
    SERVICE_DENIED = "service_denied"
    ISOLATION_VIOLATION = "isolation_violation"
    LIMIT_ENFORCED = "limit_enforced"
    BROADCAST = "broadcast"
    ADMIN_CALL = "admin_call"
    AGENT_ATTACHED = "agent_attached"
    AGENT_DETACHED = "agent_detached"
    KEYS_ROTATED = "keys_rotated"


AuditValue = str | int | float | bool | None


class AuditTrail(Protocol):
    """Where security events go. Never given a token, a key or a payload."""

    def record(
        self,
        event: AuditEvent,
        context: UserExecutionContext | None = None,
        /,
        **fields: AuditValue,
    ) -> None:
        """Queue one record in order, without waiting: for what takes away or refuses."""


class Socket(Protocol):
    """One WebSocket as a manager sees it."""

    attach_id: str

    @property
    def writable(self) -> bool:
        """True while open and its transport takes more."""

    def write(self, frame: bytes) -> None:
        """Give one encoded frame to the transport. Only called while `writable`."""

    def notify(self, event: SocketEvent) -> None:
        """Tell the client something that has no sequence."""

    def ping(self, payload: bytes) -> None:
        """Send a ping (RFC 6455 §5.5.2)."""

    def close(self, close: Close) -> None:
        """Begin the closing handshake; the socket bounds its own end. Idempotent."""


class Encoder(Protocol):
    """Turns what the outbox holds into the bytes of one frame, the same for every socket of a manager."""

    def message(self, sequence: int, message_id: str, message: Message) -> bytes:
        """The frame of one message."""

    def gap(self, first: int, last: int, reason: str) -> bytes | None:
        """The frame announcing that first..last cannot be delivered; None where the protocol has no such frame."""


class Randomness(Protocol):
    """Unpredictable text, handed in."""

    def __call__(self, size: int, /) -> str:
        """`size` random bytes as lower-case hexadecimal."""


class OwnerDirectory(Protocol):
    """Which sidecar owns a context. An epoch rises with each change of owner, so that a former one cannot append."""

    def claim(self, isolation_key: str) -> int:
        """This sidecar owns the key from now on; returns the owner epoch."""

    def release(self, isolation_key: str) -> None:
        """The context has ended."""


Confirmed = Callable[[Exception | None], None]


class OutboxStore(Protocol):
    """Keeps what managers accepted. An append is conditional on (isolation_key, owner epoch, expected sequence)."""

    durability: Durability
    survives: bool
    """What it keeps outlives the process: contexts are there again after a restart."""

    def create(
        self, context: StoredContext, epoch: int, state: Callable[[], StoredState], confirmed: Confirmed
    ) -> bool:
        """A context has been made; answered as an append is. `state` reads where it stands, for as long as it lives."""

    def append(
        self,
        isolation_key: str,
        epoch: int,
        entry: OutboxEntry,
        identity: MessageIdentity | None,
        at: Instant,
        confirmed: Confirmed,
    ) -> bool:
        """True: kept now, as is every earlier append of this key. False: `confirmed` is called later, never from
        within this call, once for each append and in order, with None or the error.

        After an error the appends behind it cannot succeed: they are answered with errors of their own, and the
        sequence that failed is the one expected again.
        """

    def changed(self, isolation_key: str) -> None:
        """The context stands elsewhere than it did: ask for its state before long. What it released may go."""

    def forget(self, isolation_key: str, sequence: int) -> None:
        """No repeat of that message is recognised any more; negative for a client's own of that number."""

    def receive(self, isolation_key: str, inbound: StoredInbound, at: Instant, confirmed: Confirmed) -> bool:
        """A client's message, numbered in its context; answered as an append is."""

    def taken(self, isolation_key: str, number: int) -> None:
        """The service has acknowledged the client's message of that number."""

    def dispose(self, isolation_key: str) -> None:
        """The manager has ended; nothing of it may be readable again."""

    def when_written(self, done: Callable[[], None]) -> bool:
        """True: all that was asked so far is done. False: `done` is called once it is, or has failed for now."""
