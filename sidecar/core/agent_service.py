"""One agent service: its workers, what they are told of which contexts, and which worker has which context.

A context sticks to one worker while that worker lives and takes what the client says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.deliveries import ContextQueue, Delivery
    from sidecar.core.workers import AgentWorker, Tenants


class AgentService:
    """See the module. The contexts of its `queues` are with one worker each, where one may have them."""

    __slots__ = ("deliveries", "ended", "left_at", "name", "queues", "tenants", "workers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[str, AgentWorker] = {}
        self.queues: dict[str, ContextQueue] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.ended: OrderedDict[ContextQueue, float] = OrderedDict()
        """The queues of contexts that have ended, and when."""
        self.left_at = 0.0
        self.tenants: Tenants = frozenset()
        """What its last worker might have, once there is none."""

    def may_have(self, tenant_id: str) -> bool:
        """Whether its workers, or the last it had, may have to do with that tenant."""
        if self.workers:
            return any(worker.allows(tenant_id) for worker in self.workers.values())
        return self.tenants is None or tenant_id in self.tenants

    # Who has which context

    def assign(self, queue: ContextQueue, avoid: AgentWorker | None = None) -> None:
        """Choose a worker by rendezvous hashing, and give it everything that waits, in order.

        Of those that may have the tenant; rather of those that take all its messages, and rather not of `avoid`, of one
        that is late, of one without credits.
        """
        able = [worker for worker in self.workers.values() if worker.allows(queue.context.tenant_id)]
        if queue.messages and len(able) > 1:
            events = queue.events
            able = [worker for worker in able if _suits(worker, queue, events)] or able
        able = [worker for worker in able if worker is not avoid] or able
        able = [worker for worker in able if not worker.late] or able
        able = [worker for worker in able if worker.credits > 0] or able
        if not able:
            return
        worker = queue.worker = max(able, key=lambda each: _weight(queue.isolation_key, each.worker_id))
        worker.queues[queue] = None
        if queue.waiting:
            worker.ready[queue] = None
            worker.wake()

    def move(self, queue: ContextQueue, former: AgentWorker) -> None:
        """Take a context from its worker; what that was sent and did not acknowledge is sent again, marked."""
        queue.worker = None
        former.queues.pop(queue, None)
        former.ready.pop(queue, None)
        for delivery_id in queue.deliveries:
            former.sent.pop(delivery_id, None)
        queue.begin_again()
        self.assign(queue, avoid=former)

    def move_to_taker(self, queue: ContextQueue) -> bool:
        """Move a context whose worker does not take all its messages to one that does; False where it stays.

        Workers of one service differ while another version of it is rolled out.
        """
        worker = queue.worker
        if worker is None or worker.takes_everything or len(self.workers) < 2 or not queue.messages:
            return False
        events = queue.events
        if _suits(worker, queue, events) or not any(_suits(each, queue, events) for each in self.workers.values()):
            return False
        self.move(queue, worker)
        return True

    def has_taker(self, queue: ContextQueue, event: str) -> bool:
        """Whether one worker takes that event and whatever else the context has under way: it has one at a time."""
        if queue.worker is not None and queue.worker.wants(queue.context.tenant_id, event):
            return True
        events = queue.events | {event}
        return any(_suits(worker, queue, events) for worker in self.workers.values())

    def send_again(self, worker: AgentWorker, now: float) -> None:
        """A time-out moves its context to another worker, where there is one, and with it all that waits there.

        A worker that neither acknowledges nor gives credits, or does not read, would keep that for ever.
        """
        overdue: dict[ContextQueue, None] = {}
        for delivery in worker.sent.values():
            if delivery.deadline > now:
                break
            overdue[delivery.queue] = None
        if not overdue:
            return
        worker.late = True
        for queue in overdue:
            self.move(queue, worker)
        others = [other for other in self.workers.values() if not other.late]
        for queue in tuple(worker.ready):
            if any(other.allows(queue.context.tenant_id) for other in others):
                self.move(queue, worker)


def _suits(worker: AgentWorker, queue: ContextQueue, events: Iterable[str]) -> bool:
    tenant_id = queue.context.tenant_id
    return worker.allows(tenant_id) and all(worker.wants(tenant_id, event) for event in events)


def _weight(isolation_key: str, worker_id: str) -> bytes:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): the worker with the highest weight has the context."""
    return blake2b(f"{isolation_key}/{worker_id}".encode(), digest_size=8).digest()
