"""One attached worker: what it takes of which tenants, what it holds, and what it is told next."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sidecar.core.deliveries import Cancelled, ContextQueue, Delivery
    from sidecar.core.identity import UserExecutionContext

MAX_CANCELS: Final = 64
MAX_CANCELLING: Final = 10_000
"""Contexts whose cancels wait for a worker that does not read, the latest; MAX_CANCELS of each."""
MAX_LOOKED_AT: Final = 100
"""So many contexts are asked about before nothing can be told of a cancel."""

Tenants = frozenset[str] | None
"""None is every tenant."""


class Subscription(NamedTuple):
    """What a service takes: the events of a tenant. None is every tenant it may have, or whatever no other holds."""

    tenant_id: str | None
    event: str | None


class AgentWorker:
    """One attached worker. The edge calls `next` and `next_cancelled`; `wake` tells it that there may be something.

    `tenants` are those that its service identity may have; what it subscribed to is never more. `credits` is how many
    events may still be written. `late`: it let something time out, and has acknowledged nothing since.
    """

    __slots__ = (
        "_held",
        "_reach",
        "ack_timeout_s",
        "credits",
        "late",
        "queues",
        "ready",
        "sent",
        "service_name",
        "takes_everything",
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
        tenants: Tenants,
        credits_left: int,
        ack_timeout_s: float,
        wake: Callable[[], None],
    ) -> None:
        self.worker_id = worker_id
        self.service_name = service_name
        self.credits = credits_left
        self.ack_timeout_s = ack_timeout_s
        self.wake = wake
        self.late = False
        self.queues: dict[ContextQueue, None] = {}
        self.ready: OrderedDict[ContextQueue, None] = OrderedDict()
        """The contexts with something to send, in turn."""
        self.sent: dict[str, Delivery] = {}
        """What it has yet to acknowledge, in the order in which that is due."""
        self.urgent: OrderedDict[str, deque[Cancelled]] = OrderedDict()
        self._held = _held_by(subscriptions, tenants)
        self._reach = _united(self._held.values())
        self.takes_everything = None in self._held and self._held[None] == self._reach
        """Whatever the tenants that it may have say."""

    def __repr__(self) -> str:
        return f"<AgentWorker {self.service_name}/{self.worker_id} credits={self.credits} ready={len(self.ready)}>"

    @property
    def reach(self) -> Tenants:
        """The tenants that it subscribed to and may have."""
        return self._reach

    def allows(self, tenant_id: str) -> bool:
        """Whether this worker may have to do with that tenant."""
        return self._reach is None or tenant_id in self._reach

    def takes(self, tenant_id: str, event: str | None) -> bool:
        """Whether it subscribed to that event of that tenant, named just so; None asks for what takes any."""
        if event not in self._held:
            return False
        tenants = self._held[event]
        return tenants is None or tenant_id in tenants

    def wants(self, tenant_id: str, event: str) -> bool:
        """Whether a message of that event of that tenant is for this worker, of those of its service."""
        return self.takes_everything or self.takes(tenant_id, event) or self.takes(tenant_id, None)

    def contends_with(self, other: AgentWorker) -> bool:
        """True when some (tenant, event) pair is held by both, `*` being a pair of its own."""
        return any(event in other._held and _meet(tenants, other._held[event]) for event, tenants in self._held.items())

    def cancel(self, event: Cancelled) -> None:
        """Tell it of a cancel, before all else."""
        waiting = self.urgent.get(event.isolation_key)
        if waiting is None:
            waiting = self.urgent[event.isolation_key] = deque(maxlen=MAX_CANCELS)
            if len(self.urgent) > MAX_CANCELLING:
                self.urgent.popitem(last=False)
        waiting.append(event)
        self.wake()

    def next_cancelled(self, of: Callable[[UserExecutionContext], bool] | None = None) -> Cancelled | None:
        """What to tell it of a cancel now; contexts take turns. `of`: only of these contexts, among the next ones."""
        if not self.urgent:
            return None
        looked_at = islice(self.urgent.items(), MAX_LOOKED_AT)
        key, waiting = next((each for each in looked_at if of is None or of(each[1][0].context)), ("", None))
        if waiting is None:
            return None
        event = waiting.popleft()
        if waiting:
            self.urgent.move_to_end(key)
        else:
            del self.urgent[key]
        return event


def _held_by(subscriptions: Iterable[Subscription], tenants: Tenants) -> dict[str | None, Tenants]:
    """The tenants of each event; none beyond `tenants`."""
    named: dict[str | None, list[Tenants]] = {}
    for tenant_id, event in subscriptions:
        asked = tenants if tenant_id is None else frozenset((tenant_id,))
        named.setdefault(event, []).append(asked if tenants is None or asked is None else asked & tenants)
    return {event: _united(each) for event, each in named.items()}


def _united(many: Iterable[Tenants]) -> Tenants:
    found: set[str] = set()
    for tenants in many:
        if tenants is None:
            return None
        found |= tenants
    return frozenset(found)


def _meet(one: Tenants, other: Tenants) -> bool:
    if one is None or other is None:
        return one is other or bool(one or other)
    return not one.isdisjoint(other)
