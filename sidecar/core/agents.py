"""The agent services attached now, what each takes of which tenants, and which worker is given what.

Every method is one synchronous step. A context sticks to one worker of a service while that worker lives; what a worker
does not acknowledge in time, or held when it was lost, is sent again, marked, in the order of its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Final

from sidecar.core.agent_service import AgentService
from sidecar.core.deliveries import Cancelled, Closing, ContextQueue, Delivery, EventKind, InboundMessage
from sidecar.core.errors import AlreadyExists, ErrorReason, ResourceExhausted, Unavailable
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext, UserIdentity
    from sidecar.core.message import Instant
    from sidecar.core.ports import Randomness
    from sidecar.core.workers import AgentWorker

MAX_CLOSED: Final = 10_000
"""Contexts that have ended and of which one service has yet to acknowledge something; the oldest are dropped."""
KEEP_S: Final = 24 * 3600.0
"""How long a service without a worker, and a context that has ended, are remembered for what nobody acknowledges."""
MAX_ABSENT: Final = 100
"""Services without a worker that are remembered, the latest: names cost whoever registers them nothing."""
MAX_USER_BYTES: Final = 16 * 1024 * 1024
"""What messages of one user, over all contexts, may wait for services: payload + 256 bytes each."""
MAX_COMINGS: Final = 16
"""Of a client that comes and goes faster than its agent acknowledges, so many `away` and `back` are kept, the last."""
_COMINGS: Final = (EventKind.AWAY, EventKind.BACK)


class AgentRegistry:
    """See the module. `max_inbound` bounds the messages of one context that no service has acknowledged."""

    def __init__(self, randomness: Randomness, *, max_inbound: int = 64) -> None:
        self._prefix = f"d-{randomness(6)}-"
        self._numbers = count(1)
        self._max_inbound = max_inbound
        self._services: dict[str, AgentService] = {}
        self._user_bytes: dict[UserIdentity, int] = {}

    def __len__(self) -> int:
        return sum(len(service.workers) for service in self._services.values())

    # Workers

    def register(self, worker: AgentWorker) -> None:
        """Attach a worker; what waits for its service is given to it. Raises SUBSCRIPTION_TAKEN."""
        for service in self._services.values():
            contends = any(worker.contends_with(other) for other in service.workers.values())
            if contends and service.name != worker.service_name:
                raise AlreadyExists(ErrorReason.SUBSCRIPTION_TAKEN)
        service = self._service(worker.service_name)
        service.workers[worker.worker_id] = worker
        for queue in tuple(service.queues.values()):
            if queue.worker is None:
                service.assign(queue)
            else:
                service.move_to_taker(queue)

    def unregister(self, worker: AgentWorker, at: Instant) -> None:
        """A worker is gone: what it held goes to others, marked where it was written. Idempotent."""
        service = self._services.get(worker.service_name)
        if service is None or service.workers.pop(worker.worker_id, None) is None:
            return
        if not service.workers:
            service.left_at, service.tenants = at.monotonic, worker.reach
        for queue in tuple(worker.queues):
            service.move(queue, worker)
        self._forget_absent(at.monotonic)

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
                worker.late = False
                taken.append(delivery)
                if delivery.taken is not None:
                    delivery.taken()
        return taken

    def next(self, worker: AgentWorker, at: Instant) -> Delivery | None:
        """What to write to that worker now, within its credits; None when there is nothing. Its time begins.

        Set `sent` on what is written.
        """
        if worker.credits <= 0:
            return None
        while True:
            if not worker.ready:
                return None
            queue = next(iter(worker.ready))
            message = queue.waiting[0].message
            if message is None or worker.wants(queue.context.tenant_id, message.event_type):
                break
            if not self._services[worker.service_name].move_to_taker(queue):
                break
        delivery = queue.waiting.popleft()
        if queue.waiting:
            worker.ready.move_to_end(queue)
        else:
            del worker.ready[queue]
        worker.credits -= 1
        delivery.taken_up = True
        delivery.deadline = at.monotonic + worker.ack_timeout_s
        worker.sent[delivery.delivery_id] = delivery
        return delivery

    def tick(self, at: Instant) -> None:
        """Send again what was not acknowledged in time; forget what nobody will ask for any more."""
        for service in tuple(self._services.values()):
            for worker in tuple(service.workers.values()):
                service.send_again(worker, at.monotonic)
            self._forget_ended(service, at.monotonic)
        self._forget_absent(at.monotonic)

    # Contexts

    def opened(self, context: UserExecutionContext, at: Instant) -> None:
        """A context was made, and its client knows."""
        self._tell_all(context, EventKind.OPENED)

    def away(self, context: UserExecutionContext, at: Instant) -> None:
        """Its primary socket is gone; it may come back."""
        self._tell_all(context, EventKind.AWAY)

    def back(self, context: UserExecutionContext, at: Instant) -> None:
        """It has a primary socket again."""
        self._tell_all(context, EventKind.BACK)

    def closed(self, context: UserExecutionContext, closing: Closing, at: Instant) -> None:
        """It has ended. A service that was yet to be told that it opened is told of neither."""
        for service in tuple(self._services.values()):
            if context.isolation_key in service.queues or service.may_have(context.tenant_id):
                self._close(service, self._queue(service, context), closing, at)

    def submit(self, context: UserExecutionContext, message: InboundMessage, at: Instant) -> Delivery:
        """Queue a client's message for the service that takes it. Raises NO_AGENT or AGENT_BUSY, and keeps nothing."""
        return self.deliver(self.reserve(context, message), message, at)

    def reserve(self, context: UserExecutionContext, message: InboundMessage) -> ContextQueue:
        """A place for a message that is yet to be kept: `deliver` or `release` it. Raises NO_AGENT or AGENT_BUSY."""
        service = self._taker(context.tenant_id, message.event_type)
        if service is None:
            raise Unavailable(ErrorReason.NO_AGENT)
        queue = self._queue(service, context)
        size = len(message.payload) + MESSAGE_OVERHEAD_BYTES
        full = queue.messages + queue.reserved >= self._max_inbound
        misplaced = queue.worker is not None and not service.has_taker(queue, message.event_type)
        if full or misplaced or self._user_bytes.get(queue.identity, 0) + size > MAX_USER_BYTES:
            raise ResourceExhausted(ErrorReason.AGENT_BUSY, retry_after_s=1.0)
        queue.reserved += 1
        return queue

    def deliver(
        self, queue: ContextQueue, message: InboundMessage, at: Instant, taken: Callable[[], None] | None = None
    ) -> Delivery:
        """Queue the message that a place was reserved for; `taken` is called when a worker has acknowledged it."""
        queue.reserved -= 1
        service = self._service(queue.service, at)
        service.queues.setdefault(queue.isolation_key, queue)
        delivery = Delivery(self._new_id(), queue, EventKind.MESSAGE, message, taken=taken)
        self._add(service, delivery)
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
        service = self._service(service_name, at)
        if service.tenants is not None:
            service.tenants |= {context.tenant_id}
        delivery = Delivery(self._new_id(), self._queue(service, context), EventKind.MESSAGE, message, taken=taken)
        delivery.redelivered = delivery.sent = True
        self._add(service, delivery)

    def cancelled(self, context: UserExecutionContext, stream_id: str, message_id: str) -> None:
        """The client wants no more of that: told at once to whoever has to do with the context, beside all credits."""
        event = Cancelled(context.get_isolation_key(), context, stream_id, message_id)
        for service in self._of_tenant(context.tenant_id):
            queue = service.queues.get(event.isolation_key)
            worker = None if queue is None else queue.worker
            for each in (worker,) if worker is not None else tuple(service.workers.values()):
                if each.allows(context.tenant_id):
                    each.cancel(event)

    # Who gets what

    def _service(self, name: str, at: Instant | None = None) -> AgentService:
        service = self._services.get(name)
        if service is None:
            service = self._services[name] = AgentService(name)
            service.left_at = 0.0 if at is None else at.monotonic
        return service

    def _taker(self, tenant_id: str, event: str) -> AgentService | None:
        for named in (event, None):
            for service in self._services.values():
                for worker in service.workers.values():
                    if worker.takes(tenant_id, named):
                        return service
        return None

    def _of_tenant(self, tenant_id: str) -> Iterator[AgentService]:
        return (service for service in tuple(self._services.values()) if service.may_have(tenant_id))

    def _tell_all(self, context: UserExecutionContext, kind: EventKind) -> None:
        for service in self._of_tenant(context.tenant_id):
            queue = self._queue(service, context)
            if kind in _COMINGS and self._cancels_out(service, queue):
                continue
            self._add(service, Delivery(self._new_id(), queue, kind))
            comings = [delivery for delivery in queue.deliveries.values() if delivery.kind in _COMINGS]
            for delivery in comings[:-MAX_COMINGS]:
                self._drop(service, delivery)

    def _cancels_out(self, service: AgentService, queue: ContextQueue) -> bool:
        """Away and back again before anybody was told of it is nothing to tell."""
        last = queue.waiting[-1] if queue.waiting else None
        if last is None or last.taken_up or last.kind not in _COMINGS:
            return False
        self._drop(service, last)
        return True

    def _close(self, service: AgentService, queue: ContextQueue, closing: Closing, at: Instant) -> None:
        """What was not told and is over need not be told; what the client said must, and that it came and went then."""
        unheard = bool(queue.untold(EventKind.OPENED)) and not queue.messages
        for delivery in queue.untold(*_COMINGS, *((EventKind.OPENED,) if unheard else ())):
            self._drop(service, delivery)
        if not unheard:
            self._add(service, Delivery(self._new_id(), queue, EventKind.CLOSED, closing=closing))
        # Only now: a queue that is empty for a moment would be let go of, and what is added to it then be lost.
        queue.ended = True
        service.ended[queue] = at.monotonic
        self._let_go(service, queue)
        self._forget_ended(service, at.monotonic)

    def _queue(self, service: AgentService, context: UserExecutionContext) -> ContextQueue:
        queue = service.queues.get(context.isolation_key)
        if queue is None:
            queue = service.queues[context.isolation_key] = ContextQueue(service.name, context)
            service.assign(queue)
        return queue

    def _add(self, service: AgentService, delivery: Delivery) -> None:
        queue = delivery.queue
        service.deliveries[delivery.delivery_id] = delivery
        queue.add(delivery)
        self._user_bytes[queue.identity] = self._user_bytes.get(queue.identity, 0) + _size(delivery)
        if queue.worker is None:
            service.assign(queue)
        elif delivery.message is None or not service.move_to_taker(queue):
            queue.worker.ready[queue] = None
            queue.worker.wake()

    # What is over

    def _drop(self, service: AgentService, delivery: Delivery) -> None:
        queue = delivery.queue
        del service.deliveries[delivery.delivery_id]
        queue.remove(delivery)
        identity = queue.identity
        left = self._user_bytes.get(identity, 0) - _size(delivery)
        if left:
            self._user_bytes[identity] = left
        else:
            self._user_bytes.pop(identity, None)
        if queue.worker is not None:
            queue.worker.sent.pop(delivery.delivery_id, None)
            if not queue.waiting:
                queue.worker.ready.pop(queue, None)
        self._let_go(service, queue)

    def _let_go(self, service: AgentService, queue: ContextQueue) -> None:
        """Forget the queue of a context that has ended, once nothing of it waits."""
        if queue.ended and not queue.deliveries and not queue.reserved:
            service.queues.pop(queue.isolation_key, None)
            service.ended.pop(queue, None)
            if queue.worker is not None:
                queue.worker.queues.pop(queue, None)

    def _forget_ended(self, service: AgentService, now: float) -> None:
        while service.ended:
            queue, ended_at = next(iter(service.ended.items()))
            if len(service.ended) <= MAX_CLOSED and now < ended_at + KEEP_S:
                return
            del service.ended[queue]
            for delivery in tuple(queue.deliveries.values()):
                self._drop(service, delivery)

    def _forget_absent(self, now: float) -> None:
        """Services without a worker: when their time is over, or they are too many; first those nothing waits for."""
        absent = [service for service in self._services.values() if not service.workers]
        absent.sort(key=lambda service: (bool(service.deliveries), service.left_at))
        for place, service in enumerate(absent, start=1):
            if now >= service.left_at + KEEP_S or len(absent) - place >= MAX_ABSENT:
                for delivery in tuple(service.deliveries.values()):
                    self._drop(service, delivery)
                del self._services[service.name]

    def _new_id(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"


def _size(delivery: Delivery) -> int:
    return 0 if delivery.message is None else len(delivery.message.payload) + MESSAGE_OVERHEAD_BYTES
