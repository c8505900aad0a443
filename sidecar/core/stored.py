"""What a store keeps of one context beyond the process, as values: who it is, where it stands, what waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.errors import ErrorReason, SidecarError, Unavailable

if TYPE_CHECKING:
    from sidecar.core.deliveries import InboundMessage
    from sidecar.core.message import StreamPlace


class MessageIdentity(NamedTuple):
    """What a repeat of a message is known by (promise 4): the caller's id, and `fingerprint` of what was sent."""

    message_id: str
    fingerprint: bytes


class StoredContext(NamedTuple):
    """The identity of a context, fixed when it is made. `created_at` is Unix seconds.

    `resume_digest` is the SHA-256 of its resume token, empty for a raw context, which has none and `ends_with_socket`.
    """

    isolation_key: str
    tenant_id: str
    user_id: str
    session_id: str
    connection_id: str
    request_id: str
    created_at: float
    permissions: tuple[str, ...]
    metadata: Mapping[str, str]
    issuer: str
    resume_digest: bytes
    ends_with_socket: bool


class StoredGap(NamedTuple):
    """A run of sequences that are not kept any more; `reason` is the gap frame's."""

    first: int
    last: int
    reason: str
    announced: bool
    lost: bool


class StoredStream(NamedTuple):
    """A response stream, or what was cancelled before there was one: without a `stream_id`, the message `reply_to`."""

    stream_id: str
    next_index: int
    over: bool
    cancelled: bool
    reply_to: str


class StoredState(NamedTuple):
    """Where a context stands. No message up to `released` is needed any more; `dropped` are single ones beyond it.

    `head` is the last confirmed sequence; `last_activity_at` Unix seconds.
    """

    acknowledged: int
    released: int
    head: int
    dropped: tuple[int, ...]
    gaps: tuple[StoredGap, ...]
    attempt: int
    last_activity_at: float
    streams: tuple[StoredStream, ...] = ()


class StoredMessage(NamedTuple):
    """One message that was confirmed. `frame` None: acknowledged, and kept for its `identity` alone.

    `size` is what it counts for, in bytes; times are Unix seconds; a critical one does not expire.
    """

    sequence: int
    frame: bytes | None
    size: int
    expires_at: float
    critical: bool
    accepted_at: float
    identity: MessageIdentity | None
    stream: StreamPlace | None = None


class StoredInbound(NamedTuple):
    """A client's message for that service; `message` None: taken, and kept for its `identity` alone."""

    number: int
    service: str
    message: InboundMessage | None
    identity: MessageIdentity | None


class RestoredContext(NamedTuple):
    """All that a store kept of one context, its messages and its client's in order."""

    context: StoredContext
    state: StoredState
    messages: Sequence[StoredMessage]
    inbound: Sequence[StoredInbound] = ()


class Creation:
    """The store's answer to the making of a context, yet to come. Settles once; `error` None: it is kept."""

    __slots__ = ("_callbacks", "error", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.error: SidecarError | None = None
        self._callbacks: list[Callable[[], None]] = []

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` when settled; at once if it is."""
        if self.settled:
            callback()
        else:
            self._callbacks.append(callback)

    def settle(self, error: Exception | None) -> None:
        """The store has answered."""
        if error is not None:
            self.error = error if isinstance(error, SidecarError) else Unavailable(ErrorReason.STORAGE_UNAVAILABLE)
        self.settled = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
