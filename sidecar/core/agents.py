"""The agent services attached now, what each takes of which tenants, and which worker is given what.

Every method is one synchronous step. A context sticks to one worker of a service while that worker lives; what a worker
does not acknowledge in time, or held when it was lost, is sent again, marked, in the order of its context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.deliveries import Cancelled, Closing, ContextQueue, Delivery, EventKind, InboundMessage
from sidecar.core.errors import AlreadyExists, ErrorReason, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from sidecar.core.identity import Scope, UserExecutionContext
    from sidecar.core.message import Instant
    from sidecar.core.ports import Randomness

MAX_CLOSED: Final = 10_000
"""`closed` events that one service has yet to acknowledge; the oldest are dropped."""
KEEP_S: Final = 24 * 3600.0
"""How long a service without a worker, and a `closed` that nobody acknowledges, are remembered."""

_LIFECYCLE: Final = (EventKind.OPENED, EventKind.AWAY, EventKind.BACK)


class Subscription(NamedTuple):
    """What a service takes: the events of a tenant. None is every tenant, or whatever event no other service holds."""

    tenant_id: str | None
    event: str | None

    def overlaps(self, other: Subscription) -> bool:
        """True when some (tenant, event) pair is in both, `*` being a pair of its own."""
        tenants = self.tenant_id == other.tenant_id or self.tenant_id is None or other.tenant_id is None
        return tenants and self.event == other.event

    def takes(self, tenant_id: str, event: str | None) -> bool:
        """True for that event of that tenant, named just so; None asks for what takes any."""
        return self.tenant_id in (None, tenant_id) and self.event == event


class AgentWorker:
    """One attached worker. The edge calls `next`; `wake` tells it that there may be something.

    `tenants` None is every tenant. `credits` is how many events may still be written.
    """

    __slots__ = (
        "ack_timeout_s",
        "credits",
        "queues",
        "ready",
        "scopes",
        "service_name",
        "subscriptions",
        "tenants",
        "urgent",
        "wake",
        "worker_id",
    )

    def __init__(
        self,
        worker_id: str,
        service_name: str,
        subscriptions: Iterable[Subscription],
        *,
        tenants: frozenset[str] | None,
        scopes: frozenset[Scope],
        credits_left: int,
        ack_timeout_s: float,
        wake: Callable[[], None],
    ) -> None:
        self.worker_id = worker_id
        self.service_name = service_name
        self.subscriptions = tuple(subscriptions)
        self.tenants = tenants
        self.scopes = scopes
        self.credits = credits_left
        self.ack_timeout_s = ack_timeout_s
        self.wake = wake
        self.ready: deque[Delivery] = deque()
        self.urgent: deque[Cancelled] = deque(maxlen=1_024)
        self.queues: set[ContextQueue] = set()

    def __repr__(self) -> str:
        return f"<AgentWorker {self.service_name}/{self.worker_id} credits={self.credits} ready={len(self.ready)}>"

    def allows(self, tenant_id: str) -> bool:
        """Whether this worker may have to do with that tenant."""
        named = any(each.tenant_id in (None, tenant_id) for each in self.subscriptions)
        return named and (self.tenants is None or tenant_id in self.tenants)

    def takes(self, tenant_id: str, event: str | None) -> bool:
        """Whether it subscribed to that event of that tenant."""
        return self.allows(tenant_id) and any(each.takes(tenant_id, event) for each in self.subscriptions)


class _Service:
    __slots__ = ("closed", "deliveries", "left_at", "name", "queues", "tenants", "workers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[str, AgentWorker] = {}
        self.queues: dict[str, ContextQueue] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.closed = 0
        self.left_at: float | None = None
        self.tenants: tuple[frozenset[str] | None, ...] = ()

    def may_have(self, tenant_id: str) -> bool:
        """Whether its workers, or the last it had, may have to do with that tenant."""
        if self.workers:
            return any(worker.allows(tenant_id) for worker in self.workers.values())
        return any(tenants is None or tenant_id in tenants for tenants in self.tenants)


class AgentRegistry:
    """See the module. `max_inbound` bounds the messages of one context that no service has acknowledged."""

    def __init__(self, randomness: Randomness, *, max_inbound: int = 64) -> None:
        self._prefix = f"d-{randomness(6)}-"
        self._numbers = count(1)
        self._max_inbound = max_inbound
        self._services: dict[str, _Service] = {}
        self._deadlines: list[tuple[float, int, Delivery]] = []

    def __len__(self) -> int:
        return sum(len(service.workers) for service in self._services.values())

    # Workers

    def register(self, worker: AgentWorker) -> None:
        """Attach a worker; what waits for its service is given to it. Raises SUBSCRIPTION_TAKEN."""
        for service in self._services.values():
            if service.name != worker.service_name and _holds_any(service, worker.subscriptions):
                raise AlreadyExists(ErrorReason.SUBSCRIPTION_TAKEN)
        service = self._services.setdefault(worker.service_name, _Service(worker.service_name))
        service.workers[worker.worker_id] = worker
        service.left_at = None
        for queue in tuple(service.queues.values()):
            if queue.worker is None:
                self._assign(service, queue)

    def unregister(self, worker: AgentWorker, at: Instant) -> None:
        """A worker is gone: what it held goes to others, marked where it was written. Idempotent."""
        service = self._services.get(worker.service_name)
        if service is None or service.workers.pop(worker.worker_id, None) is None:
            return
        if not service.workers:
            service.left_at = at.monotonic
            service.tenants = (_tenants_of(worker),)
        for queue in tuple(worker.queues):
            self._move(service, queue, None)
        worker.ready.clear()

    def credit(self, worker: AgentWorker, amount: int) -> None:
        """The worker takes so many more."""
        worker.credits += amount
        worker.wake()

    def acknowledge(self, worker: AgentWorker, delivery_ids: Iterable[str]) -> list[Delivery]:
        """The service is responsible for these now. Returns them; unknown ones are passed over."""
        service = self._services[worker.service_name]
        taken = []
        for delivery_id in delivery_ids:
            delivery = service.deliveries.get(delivery_id)
            if delivery is not None and worker.allows(delivery.queue.context.tenant_id):
                self._drop(service, delivery)
                taken.append(delivery)
                if delivery.taken is not None:
                    delivery.taken()
        return taken

    def next(self, worker: AgentWorker, at: Instant) -> Delivery | None:
        """What to write to that worker now, within its credits; None when there is nothing. Its time begins."""
        while worker.credits > 0 and worker.ready:
            delivery = worker.ready.popleft()
            if delivery.gone or delivery.queue.worker is not worker:
                continue
            worker.credits -= 1
            delivery.written = True
            delivery.deadline = at.monotonic + worker.ack_timeout_s
            heappush(self._deadlines, (delivery.deadline, next(self._numbers), delivery))
            return delivery
        return None

    def tick(self, at: Instant) -> None:
        """Send again what was not acknowledged in time; forget what nobody will ask for any more."""
        while self._deadlines and self._deadlines[0][0] <= at.monotonic:
            due, _, delivery = heappop(self._deadlines)
            if not delivery.gone and delivery.deadline == due:
                service = self._services[delivery.queue.service]
                self._move(service, delivery.queue, delivery.queue.worker)
        for service in tuple(self._services.values()):
            self._forget_old(service, at.monotonic)

    # Contexts

    def opened(self, context: UserExecutionContext, at: Instant) -> None:
        """A context was made, and its client knows."""
        self._tell_all(context, EventKind.OPENED, at)

    def away(self, context: UserExecutionContext, at: Instant) -> None:
        """Its primary socket is gone; it may come back."""
        self._tell_all(context, EventKind.AWAY, at)

    def back(self, context: UserExecutionContext, at: Instant) -> None:
        """It has a primary socket again."""
        self._tell_all(context, EventKind.BACK, at)

    def closed(self, context: UserExecutionContext, closing: Closing, at: Instant) -> None:
        """It has ended. A service that was never told of it is not told of its end either."""
        for service in self._of_tenant(context.tenant_id):
            queue = self._queue(service, context)
            queue.ended = True
            unheard = bool(queue.unwritten(EventKind.OPENED))
            for delivery in queue.unwritten(*_LIFECYCLE):
                self._drop(service, delivery)
            if not unheard or queue.deliveries:
                self._add(
                    service, queue, Delivery(self._new_id(), queue, EventKind.CLOSED, at.monotonic, None, closing)
                )
                service.closed += 1
            self._let_go(service, queue)

    def submit(self, context: UserExecutionContext, message: InboundMessage, at: Instant) -> Delivery:
        """Queue a client's message for the service that takes it. Raises NO_AGENT or AGENT_BUSY, and keeps nothing."""
        return self.deliver(self.reserve(context, message), message, at)

    def reserve(self, context: UserExecutionContext, message: InboundMessage) -> ContextQueue:
        """A place for a message that is yet to be kept: `deliver` or `release` it. Raises NO_AGENT or AGENT_BUSY."""
        service = self._taker(context.tenant_id, message.event_type)
        if service is None:
            raise Unavailable(ErrorReason.NO_AGENT)
        queue = self._queue(service, context)
        if queue.messages + queue.reserved >= self._max_inbound:
            self._let_go(service, queue)
            raise ResourceExhausted(ErrorReason.AGENT_BUSY, retry_after_s=1.0)
        queue.reserved += 1
        return queue

    def deliver(
        self, queue: ContextQueue, message: InboundMessage, at: Instant, taken: Callable[[], None] | None = None
    ) -> Delivery:
        """Queue the message that a place was reserved for; `taken` is called when a worker has acknowledged it."""
        queue.reserved -= 1
        service = self._services[queue.service]
        service.queues.setdefault(queue.isolation_key, queue)
        delivery = Delivery(self._new_id(), queue, EventKind.MESSAGE, at.monotonic, message, taken=taken)
        self._add(service, queue, delivery)
        return delivery

    def release(self, queue: ContextQueue) -> None:
        """The message was not kept: its place is free again."""
        queue.reserved -= 1
        service = self._services.get(queue.service)
        if service is not None:
            self._let_go(service, queue)

    def restore(
        self,
        context: UserExecutionContext,
        service_name: str,
        message: InboundMessage,
        at: Instant,
        taken: Callable[[], None],
    ) -> None:
        """A message that was accepted before a restart waits for its service again; it may have been sent to one."""
        service = self._services.get(service_name)
        if service is None:
            service = self._services[service_name] = _Service(service_name)
            service.left_at, service.tenants = at.monotonic, ()
        if frozenset({context.tenant_id}) not in service.tenants:
            service.tenants += (frozenset({context.tenant_id}),)
        queue = self._queue(service, context)
        delivery = Delivery(self._new_id(), queue, EventKind.MESSAGE, at.monotonic, message, taken=taken)
        delivery.redelivered = True
        self._add(service, queue, delivery)

    def cancelled(self, context: UserExecutionContext, stream_id: str, message_id: str) -> None:
        """The client wants no more of that: told at once to whoever has to do with the context, beside all credits."""
        event = Cancelled(context.get_isolation_key(), context, stream_id, message_id)
        for service in self._of_tenant(context.tenant_id):
            queue = service.queues.get(event.isolation_key)
            worker = None if queue is None else queue.worker
            for each in (worker,) if worker is not None else tuple(service.workers.values()):
                if each.allows(context.tenant_id):
                    each.urgent.append(event)
                    each.wake()

    # Who gets what

    def _taker(self, tenant_id: str, event: str) -> _Service | None:
        for named in (event, None):
            for service in self._services.values():
                if any(worker.takes(tenant_id, named) for worker in service.workers.values()):
                    return service
        return None

    def _of_tenant(self, tenant_id: str) -> Iterator[_Service]:
        return (service for service in tuple(self._services.values()) if service.may_have(tenant_id))

    def _tell_all(self, context: UserExecutionContext, kind: EventKind, at: Instant) -> None:
        for service in self._of_tenant(context.tenant_id):
            queue = self._queue(service, context)
            if kind in (EventKind.AWAY, EventKind.BACK) and self._cancels_out(service, queue):
                continue
            self._add(service, queue, Delivery(self._new_id(), queue, kind, at.monotonic))

    def _cancels_out(self, service: _Service, queue: ContextQueue) -> bool:
        """Away and back again before anybody was told of it is nothing to tell."""
        last = queue.deliveries[-1] if queue.deliveries else None
        if last is None or last.written or last.kind not in (EventKind.AWAY, EventKind.BACK):
            return False
        self._drop(service, last)
        return True

    def _queue(self, service: _Service, context: UserExecutionContext) -> ContextQueue:
        queue = service.queues.get(context.isolation_key)
        if queue is None:
            queue = service.queues[context.isolation_key] = ContextQueue(service.name, context)
            self._assign(service, queue)
        return queue

    def _add(self, service: _Service, queue: ContextQueue, delivery: Delivery) -> None:
        service.deliveries[delivery.delivery_id] = delivery
        queue.add(delivery)
        if queue.worker is None:
            self._assign(service, queue)
        else:
            queue.worker.ready.append(delivery)
            queue.worker.wake()

    def _assign(self, service: _Service, queue: ContextQueue, avoid: AgentWorker | None = None) -> None:
        """Choose a worker by rendezvous hashing, and give it everything that waits, in order."""
        able = [worker for worker in service.workers.values() if worker.allows(queue.context.tenant_id)]
        preferred = [worker for worker in able if worker is not avoid] or able
        if not preferred:
            return
        worker = queue.worker = max(preferred, key=lambda each: _weight(queue.isolation_key, each.worker_id))
        worker.queues.add(queue)
        worker.ready.extend(queue.deliveries)
        worker.wake()

    def _move(self, service: _Service, queue: ContextQueue, avoid: AgentWorker | None) -> None:
        """Take a context from its worker; what that was sent and did not acknowledge is sent again, marked."""
        former, queue.worker = queue.worker, None
        if former is not None:
            former.queues.discard(queue)
            former.ready = deque(delivery for delivery in former.ready if delivery.queue is not queue)
        for delivery in queue.deliveries:
            delivery.redelivered = delivery.redelivered or delivery.written
            delivery.deadline = 0.0
        self._assign(service, queue, avoid)

    def _drop(self, service: _Service, delivery: Delivery) -> None:
        del service.deliveries[delivery.delivery_id]
        service.closed -= delivery.kind is EventKind.CLOSED
        delivery.queue.remove(delivery)
        self._let_go(service, delivery.queue)

    def _let_go(self, service: _Service, queue: ContextQueue) -> None:
        """Forget the queue of a context that has ended, once nothing of it waits."""
        if queue.ended and not queue.deliveries and not queue.reserved:
            service.queues.pop(queue.isolation_key, None)
            if queue.worker is not None:
                queue.worker.queues.discard(queue)

    def _forget_old(self, service: _Service, now: float) -> None:
        over = service.closed - MAX_CLOSED
        if over > 0 or service.closed:
            closed = [each for each in service.deliveries.values() if each.kind is EventKind.CLOSED]
            for place, delivery in enumerate(closed):
                if place < over or delivery.created <= now - KEEP_S:
                    self._drop(service, delivery)
        if service.left_at is not None and now >= service.left_at + KEEP_S:
            del self._services[service.name]

    def _new_id(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"


def _holds_any(service: _Service, subscriptions: Iterable[Subscription]) -> bool:
    held = [each for worker in service.workers.values() for each in worker.subscriptions]
    return any(one.overlaps(other) for one in subscriptions for other in held)


def _tenants_of(worker: AgentWorker) -> frozenset[str] | None:
    """The tenants that a worker subscribed to and may have; None for every one."""
    named = {each.tenant_id for each in worker.subscriptions}
    if None in named:
        return worker.tenants
    tenants = frozenset(tenant for tenant in named if tenant is not None)
    return tenants if worker.tenants is None else tenants & worker.tenants


def _weight(isolation_key: str, worker_id: str) -> bytes:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): the worker with the highest weight has the context."""
    return blake2b(f"{isolation_key}/{worker_id}".encode(), digest_size=8).digest()
