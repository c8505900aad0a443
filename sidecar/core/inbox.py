"""One client's own messages: the ids it has given them, so that one sent again after a cut is handed over once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import AlreadyExists, ErrorReason, ResourceExhausted
from sidecar.core.stored import MessageIdentity

if TYPE_CHECKING:
    from sidecar.core.deliveries import InboundMessage
    from sidecar.core.errors import SidecarError

INBOUND_WINDOW: Final = 1_024
MAX_REPEATS: Final = 16
"""Repeats of one message that may wait for the store to answer the first."""

Answer = Callable[["SidecarError | None", bool], None]
"""Called once with (error, duplicate): the message is queued, was before, or is refused and nothing is kept."""


class Known:
    """A message that has been taken; `waiting`: repeats that came before the store had confirmed it, if any did."""

    __slots__ = ("fingerprint", "kept", "number", "waiting")

    def __init__(self, fingerprint: bytes, number: int, *, kept: bool) -> None:
        self.fingerprint = fingerprint
        self.number = number
        self.kept = kept
        self.waiting: list[Answer] | None = None

    def wait(self, answer: Answer) -> None:
        """A repeat waits for the store as well. Raises AGENT_BUSY for one too many."""
        waiting = self.waiting = self.waiting or []
        if len(waiting) >= MAX_REPEATS:
            raise ResourceExhausted(ErrorReason.AGENT_BUSY, retry_after_s=1.0)
        waiting.append(answer)

    def answer(self, error: SidecarError | None) -> None:
        """The store has answered: so are the repeats."""
        self.kept = error is None
        waiting, self.waiting = self.waiting, None
        for answer in waiting or ():
            answer(error, error is None)


class Inbox:
    """The last 1,024 ids of one context's client, and the number of its last message. A refusal is not remembered."""

    __slots__ = ("_known", "last_number")

    def __init__(self) -> None:
        self.last_number = 0
        self._known: OrderedDict[str, Known] = OrderedDict()

    def find(self, message: InboundMessage) -> Known | None:
        """What was taken under this id. Raises MESSAGE_ID_REUSED when it was another message."""
        known = self._known.get(message.message_id)
        if known is not None and known.fingerprint != fingerprint_of(message):
            raise AlreadyExists(ErrorReason.MESSAGE_ID_REUSED)
        return known

    def remember(self, identity: MessageIdentity, number: int, *, kept: bool) -> tuple[Known, int | None]:
        """The message of that number was taken; and the number of the one that is forgotten for it."""
        known = self._known[identity.message_id] = Known(identity.fingerprint, number, kept=kept)
        if len(self._known) <= INBOUND_WINDOW:
            return known, None
        return known, self._known.popitem(last=False)[1].number

    def forget(self, message_id: str) -> None:
        """The store did not keep it: its id is free again."""
        self._known.pop(message_id, None)


def fingerprint_of(message: InboundMessage) -> bytes:
    """16 bytes that two messages of one client share only when they are the same."""
    head = f"{message.event_type}\0{message.content_type}\0".encode()
    return blake2b(head + message.payload, digest_size=16).digest()
