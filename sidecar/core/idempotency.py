"""The messages that a caller gave an id, remembered so that a retry is answered and not delivered again (promise 4)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from sidecar.core.errors import AlreadyExists, ErrorReason
from sidecar.core.message import Instant, Message, PendingReceipt, fingerprint
from sidecar.core.stored import MessageIdentity

IDEMPOTENCY_WINDOW: Final = 4_096
IDEMPOTENCY_WINDOW_S: Final = 600.0


class KnownMessage(NamedTuple):
    """One message that was accepted; `pending` while the store has yet to confirm it."""

    fingerprint: bytes
    sequence: int
    accepted: Instant
    pending: PendingReceipt | None


class RecentMessages:
    """One manager's last 4,096 caller-given ids, at most ten minutes back. A refusal is not remembered."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, KnownMessage] = OrderedDict()

    def recall(self, message: Message, at: Instant) -> KnownMessage | None:
        """What was accepted under this id. Raises MESSAGE_ID_REUSED when it was another message."""
        known = self._known.get(message.message_id)
        if known is None or known.accepted.monotonic < at.monotonic - IDEMPOTENCY_WINDOW_S:
            return None
        if known.fingerprint != fingerprint(message):
            raise AlreadyExists(ErrorReason.MESSAGE_ID_REUSED)
        return known

    def remember(
        self, identity: MessageIdentity, sequence: int, at: Instant, pending: PendingReceipt | None
    ) -> int | None:
        """That message has been appended as `sequence`. Returns the sequence of the one that is forgotten for it."""
        message_id = identity.message_id
        former = self._known.pop(message_id, None)
        self._known[message_id] = KnownMessage(identity.fingerprint, sequence, at, pending)
        if former is not None:
            return former.sequence
        if len(self._known) > IDEMPOTENCY_WINDOW:
            return self._known.popitem(last=False)[1].sequence
        return None

    def confirmed(self, message_id: str, pending: PendingReceipt) -> None:
        """The store has that append: a repeat need not wait any more."""
        known = self._known.get(message_id)
        if known is not None and known.pending is pending:
            self._known[message_id] = known._replace(pending=None)

    def forget(self, message_id: str, pending: PendingReceipt) -> None:
        """That append failed: its id is free again."""
        known = self._known.get(message_id)
        if known is not None and known.pending is pending:
            del self._known[message_id]

    def clear(self) -> None:
        """Forget everything; the manager has ended."""
        self._known.clear()
