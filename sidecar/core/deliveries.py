"""What agent services are told of connection contexts: events, their deliveries, and one context's queue of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.workers import AgentWorker


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

    `taken_up`: the edge has it, for the worker that has it now until `deadline` (monotonic seconds). `sent`: some
    worker was sent it; the edge says so, for what has to wait for a token was not.
    """

    delivery_id: str
    queue: ContextQueue
    kind: EventKind
    message: InboundMessage | None = None
    closing: Closing | None = None
    taken_up: bool = False
    sent: bool = False
    redelivered: bool = False
    deadline: float = 0.0
    taken: Callable[[], None] | None = None
    """Called when a worker has acknowledged it."""

    @property
    def context(self) -> UserExecutionContext:
        """Whose it is."""
        return self.queue.context


class ContextQueue:
    """The events of one context for one service that are not acknowledged, in order, and who is given them.

    `waiting` are those of them that its worker has yet to be sent.
    """

    __slots__ = (
        "context",
        "deliveries",
        "ended",
        "identity",
        "isolation_key",
        "messages",
        "reserved",
        "service",
        "waiting",
        "worker",
    )

    def __init__(self, service: str, context: UserExecutionContext) -> None:
        self.service = service
        self.context = context
        self.isolation_key = context.get_isolation_key()
        self.identity = context.identity
        self.deliveries: dict[str, Delivery] = {}
        self.waiting: deque[Delivery] = deque()
        self.worker: AgentWorker | None = None
        self.messages = 0
        self.reserved = 0
        self.ended = False

    def add(self, delivery: Delivery) -> None:
        """Keep one more at the end."""
        self.deliveries[delivery.delivery_id] = delivery
        self.waiting.append(delivery)
        self.messages += delivery.kind is EventKind.MESSAGE

    def remove(self, delivery: Delivery) -> None:
        """It was acknowledged, or is not needed any more."""
        del self.deliveries[delivery.delivery_id]
        if delivery in self.waiting:
            self.waiting.remove(delivery)
        self.messages -= delivery.kind is EventKind.MESSAGE

    def begin_again(self) -> None:
        """Another worker is to be sent all of it, in order; what one was sent before is marked."""
        for delivery in self.deliveries.values():
            delivery.redelivered = delivery.redelivered or delivery.sent
        self.waiting = deque(self.deliveries.values())

    def untold(self, *kinds: EventKind) -> list[Delivery]:
        """Those of these kinds that are for no worker yet."""
        return [delivery for delivery in self.deliveries.values() if delivery.kind in kinds and not delivery.taken_up]

    @property
    def events(self) -> set[str]:
        """The events of the messages that wait or are unacknowledged."""
        return {delivery.message.event_type for delivery in self.deliveries.values() if delivery.message is not None}
