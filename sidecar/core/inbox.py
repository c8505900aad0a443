"""The ids that one client has given its messages, so that one sent again after a cut is handed over once."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from sidecar.core.errors import AlreadyExists, ErrorReason

if TYPE_CHECKING:
    from sidecar.core.deliveries import InboundMessage

INBOUND_WINDOW: Final = 1_024


class RecentInbound:
    """One context's last 1,024 inbound ids. A refusal is not remembered."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, bytes] = OrderedDict()

    def is_known(self, message: InboundMessage) -> bool:
        """True for a repeat. Raises MESSAGE_ID_REUSED when the id was another message's."""
        known = self._known.get(message.message_id)
        if known is None:
            return False
        if known != _fingerprint(message):
            raise AlreadyExists(ErrorReason.MESSAGE_ID_REUSED)
        return True

    def remember(self, message: InboundMessage) -> None:
        """The message was accepted."""
        self._known[message.message_id] = _fingerprint(message)
        if len(self._known) > INBOUND_WINDOW:
            self._known.popitem(last=False)


def _fingerprint(message: InboundMessage) -> bytes:
    digest = blake2b(f"{message.event_type}\0{message.content_type}\0".encode(), digest_size=16)
    digest.update(message.payload)
    return digest.digest()
