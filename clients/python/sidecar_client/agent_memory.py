"""What an agent remembers of what it was told: names, the latest of them, so that a repeat is known. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from sidecar_client.agent_events import AgentEvent, InboundMessage

MAX_REMEMBERED: Final = 10_000


class Recent:
    """So many names at most, the latest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: Hashable) -> None:
        """Remember it; the oldest goes."""
        self._names[name] = None
        if len(self._names) > self._most:
            self._names.popitem(last=False)

    def discard(self, name: Hashable) -> None:
        """Forget it, where it is known."""
        self._names.pop(name, None)


class AgentMemory:
    """Which events this process has taken, and which messages were cancelled before they came."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._taken = Recent(most)
        self._messages = Recent(most)
        self._cancelled = Recent(most)

    def is_new(self, delivery_id: str, event: AgentEvent, *, redelivered: bool) -> bool:
        """Whether this process takes that event for the first time; from then on it is known.

        A delivery_id lasts as long as the sidecar's process. A message that a store kept over its end comes under
        another one, marked; it is known by the client's own id.
        """
        message = _named(event)
        known = delivery_id in self._taken or (redelivered and message is not None and message in self._messages)
        self._taken.add(delivery_id)
        if message is not None:
            self._messages.add(message)
        return not known

    def forget(self, delivery_id: str, event: AgentEvent) -> None:
        """It was not begun, and is new when it comes again."""
        self._taken.discard(delivery_id)
        message = _named(event)
        if message is not None:
            self._messages.discard(message)

    def cancelled(self, isolation_key: str, message_id: str) -> None:
        """The client wants no answer to that message, which may not have come yet."""
        self._cancelled.add((isolation_key, message_id))

    def is_cancelled(self, event: AgentEvent) -> bool:
        """Whether the client said that it wants no answer to that."""
        message = _named(event)
        return message is not None and message in self._cancelled


def _named(event: AgentEvent) -> tuple[str, str] | None:
    if not isinstance(event, InboundMessage) or not event.id:
        return None
    return event.context.isolation_key, event.id
