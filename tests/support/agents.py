"""A registry of agent services on a fake clock, and short ways to attach workers and see what they are told."""

from __future__ import annotations

from typing import Any

from sidecar.core.agents import AgentRegistry
from sidecar.core.deliveries import Closing, Delivery, EventKind, InboundMessage
from sidecar.core.identity import UserExecutionContext
from sidecar.core.message import ContentType
from sidecar.core.workers import AgentWorker, Subscription
from tests.support.core import Core

ALL = Subscription(None, None)
CLOSING = Closing(1000, "client_closed")


class Agents:
    """`registry`, and what is told to whom."""

    def __init__(self, **options: Any) -> None:
        self.core = Core()
        self.clock = self.core.clock
        self.registry = AgentRegistry(self.core.randomness, **options)
        self.woken: list[str] = []
        self._workers = 0

    def worker(self, service: str = "support", *subscriptions: Subscription, **options: Any) -> AgentWorker:
        """A worker that is not attached yet: of everything unless it says what, with many credits."""
        self._workers += 1
        name = f"w-{self._workers}"
        values: dict[str, Any] = {"tenants": None, "credits_left": 1_000_000, "ack_timeout_s": 60.0} | options
        return AgentWorker(name, service, subscriptions or (ALL,), wake=lambda: self.woken.append(name), **values)

    def attach(self, service: str = "support", *subscriptions: Subscription, **options: Any) -> AgentWorker:
        """A worker that is."""
        worker = self.worker(service, *subscriptions, **options)
        self.registry.register(worker)
        return worker

    def lose(self, worker: AgentWorker) -> None:
        self.registry.unregister(worker, self.clock.now())

    def context(self, user_id: str = "alice", tenant_id: str = "acme") -> UserExecutionContext:
        """A context that no service was told of."""
        return self.core.context(user_id, tenant_id)

    def open(self, user_id: str = "alice", tenant_id: str = "acme") -> UserExecutionContext:
        """A context that is open."""
        context = self.context(user_id, tenant_id)
        self.registry.opened(context, self.clock.now())
        return context

    def come_and_go(self, context: UserExecutionContext) -> None:
        self.registry.away(context, self.clock.now())
        self.registry.back(context, self.clock.now())

    def close(self, context: UserExecutionContext) -> None:
        self.registry.closed(context, CLOSING, self.clock.now())

    def say(
        self, context: UserExecutionContext, message_id: str = "m", event: str = "message", payload: bytes = b"{}"
    ) -> Delivery:
        """The client says something."""
        message = InboundMessage(message_id, event, payload, ContentType.JSON)
        return self.registry.submit(context, message, self.clock.now())

    def take(self, worker: AgentWorker) -> list[Delivery]:
        """Everything that may be written to that worker now."""
        taken = []
        while (delivery := self.registry.next(worker, self.clock.now())) is not None:
            delivery.sent = True
            taken.append(delivery)
        return taken

    def told(self, worker: AgentWorker) -> list[str]:
        """The same, to be read: `alice opened`, `alice m-1`; with a star where it is marked as sent before."""
        return [read(delivery) for delivery in self.take(worker)]

    def acknowledge(self, worker: AgentWorker, *deliveries: Delivery) -> list[Delivery]:
        return self.registry.acknowledge(worker, [delivery.delivery_id for delivery in deliveries])

    def settle(self, worker: AgentWorker) -> None:
        """The worker takes and acknowledges everything."""
        self.acknowledge(worker, *self.take(worker))

    def tick(self, seconds: float = 0.0) -> None:
        self.registry.tick(self.clock.advance(seconds))

    def kept(self) -> dict[str, tuple[int, int]]:
        """By service: of how many contexts something is remembered, and how many events wait or are unacknowledged."""
        services = self.registry._services.values()
        return {service.name: (len(service.queues), len(service.deliveries)) for service in services}


def read(delivery: Delivery) -> str:
    """`alice opened`, or `alice m-1`; with a star where it is marked."""
    what = delivery.message.message_id if delivery.message is not None else str(delivery.kind)
    assert (delivery.kind is EventKind.MESSAGE) == (delivery.message is not None)
    return f"{'*' if delivery.redelivered else ''}{delivery.queue.context.user_id} {what}"
