"""What agent services are told of connection contexts: events, their deliveries, and one context's queue of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.agents import AgentWorker
    from sidecar.core.identity import UserExecutionContext


class EventKind(StrEnum):
    """What happened in a context; the values are the oneof's."""

    OPENED = "opened"
    AWAY = "away"
    BACK = "back"
    CLOSED = "closed"
    MESSAGE = "message"


class InboundMessage(NamedTuple):
    """A client's message. `message_id` "" where its protocol has none; `content_type` the proto's number."""

    message_id: str
    event_type: str
    payload: bytes
    content_type: int


class Closing(NamedTuple):
    """Why a context ended: the close code of its primary socket (0 for none), and the reason."""

    code: int
    reason: str


class Cancelled(NamedTuple):
    """What a client wants no more of: a stream, or the answer to its message; "" for what it did not name."""

    isolation_key: str
    context: UserExecutionContext
    stream_id: str
    message_id: str


@dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one service, until it is acknowledged.

    `written`: some worker was sent it. `gone`: acknowledged or dropped, whoever still holds it passes it over.
    """

    delivery_id: str
    queue: ContextQueue
    kind: EventKind
    created: float
    message: InboundMessage | None = None
    closing: Closing | None = None
    written: bool = False
    redelivered: bool = False
    gone: bool = False
    deadline: float = 0.0
    taken: Callable[[], None] | None = None
    """Called when a worker has acknowledged it."""


class ContextQueue:
    """The events of one context for one service that are not acknowledged, in order, and who is given them."""

    __slots__ = ("context", "deliveries", "ended", "isolation_key", "messages", "reserved", "service", "worker")

    def __init__(self, service: str, context: UserExecutionContext) -> None:
        self.service = service
        self.context = context
        self.isolation_key = context.get_isolation_key()
        self.deliveries: deque[Delivery] = deque()
        self.worker: AgentWorker | None = None
        self.messages = 0
        self.reserved = 0
        self.ended = False

    def add(self, delivery: Delivery) -> None:
        """Keep one more at the end."""
        self.deliveries.append(delivery)
        self.messages += delivery.kind is EventKind.MESSAGE

    def remove(self, delivery: Delivery) -> None:
        """It was acknowledged, or is not needed any more."""
        delivery.gone = True
        self.deliveries.remove(delivery)
        self.messages -= delivery.kind is EventKind.MESSAGE

    def unwritten(self, *kinds: EventKind) -> list[Delivery]:
        """Those of these kinds that no worker was sent yet."""
        return [delivery for delivery in self.deliveries if delivery.kind in kinds and not delivery.written]
