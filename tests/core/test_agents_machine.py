"""The registry against a simple model: workers come, acknowledge, stall and go; clients speak and go; time passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.deliveries import Delivery, EventKind
from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.identity import UserExecutionContext
from sidecar.core.workers import AgentWorker, Subscription
from tests.support.agents import Agents
from tests.support.core import attempt

MAX_INBOUND = 4
ACK_TIMEOUT_S = 10.0
TENANTS = (None, frozenset({"acme"}), frozenset({"globex"}))
MANY = 1_000_000
TAKEN = ((None,), ("ask",), ("rate",), ("ask", "rate"))
"""The events that a worker subscribes to; None is any."""


@dataclass
class Spoken:
    """One context, and its messages in order: those that were accepted, were sent, were taken."""

    context: UserExecutionContext
    accepted: list[Delivery] = field(default_factory=list)
    taken: set[Delivery] = field(default_factory=set)
    sent: set[Delivery] = field(default_factory=set)
    holder: AgentWorker | None = None
    """Whom something of it was sent to last."""
    last: int = -1
    """The place of what was sent last."""
    ended: bool = False

    @property
    def waiting(self) -> list[Delivery]:
        return [delivery for delivery in self.accepted if delivery not in self.taken]


def takes(worker: AgentWorker, one: Spoken, deliveries: list[Delivery]) -> bool:
    """Whether that worker is one for all these messages."""
    tenant_id = one.context.tenant_id
    events = {delivery.message.event_type for delivery in deliveries if delivery.message is not None}
    return worker.allows(tenant_id) and all(worker.wants(tenant_id, event) for event in events)


class AgentsMachine(RuleBasedStateMachine):
    """Nothing accepted is lost; in order per context, whoever is given it; again only when marked, never once taken."""

    @initialize()
    def begin(self) -> None:
        self.agents = Agents(max_inbound=MAX_INBOUND)
        self.spoken: list[Spoken] = []
        self.credits: dict[AgentWorker, int] = {}
        self.held: dict[AgentWorker, list[Delivery]] = {}

    # Workers

    @rule(credit=st.sampled_from([0, 1, 3, MANY]), tenants=st.sampled_from(TENANTS), events=st.sampled_from(TAKEN))
    def attach(self, credit: int, tenants: frozenset[str] | None, events: tuple[str | None, ...]) -> None:
        if len(self.credits) < 4:
            taken = [Subscription(None, event) for event in events]
            worker = self.agents.attach(
                "support", *taken, tenants=tenants, credits_left=credit, ack_timeout_s=ACK_TIMEOUT_S
            )
            self.credits[worker], self.held[worker] = credit, []

    @precondition(lambda self: self.credits)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(list(self.credits)))
        self.agents.lose(worker)
        del self.credits[worker], self.held[worker]

    @precondition(lambda self: self.credits)
    @rule(data=st.data(), amount=st.integers(0, 3))
    def credit(self, data: st.DataObject, amount: int) -> None:
        worker = data.draw(st.sampled_from(list(self.credits)))
        self.agents.registry.credit(worker, amount)
        self.credits[worker] += amount

    @precondition(lambda self: self.credits)
    @rule(data=st.data(), most=st.integers(1, 5))
    def take(self, data: st.DataObject, most: int) -> None:
        worker = data.draw(st.sampled_from(list(self.credits)))
        for _ in range(most):
            delivery = self.agents.registry.next(worker, self.agents.clock.now())
            if delivery is None:
                return
            delivery.sent = True
            self.credits[worker] -= 1
            self.held[worker].append(delivery)
            self.see(worker, delivery)

    def see(self, worker: AgentWorker, delivery: Delivery) -> None:
        """It may be sent to that worker, now."""
        assert worker.allows(delivery.queue.context.tenant_id)
        if delivery.kind is not EventKind.MESSAGE:
            return
        (one,) = (each for each in self.spoken if each.context is delivery.queue.context)
        if not takes(worker, one, [delivery]):
            assert not any(takes(other, one, one.waiting) for other in self.credits), "another would take it"
        assert delivery not in one.taken
        assert delivery.redelivered == (delivery in one.sent)
        place = one.accepted.index(delivery)
        goes_on = worker is one.holder and place > one.last
        behind = [other for other in one.waiting if one.accepted.index(other) < place]
        if goes_on:
            behind = [other for other in behind if one.accepted.index(other) > one.last]
        assert not behind, "it overtook one that was not taken"
        one.sent.add(delivery)
        one.holder, one.last = worker, place

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """Any that it was ever sent: a worker may be late, and say it twice."""
        worker = data.draw(st.sampled_from([worker for worker, held in self.held.items() if held]))
        delivery = data.draw(st.sampled_from(self.held[worker]))
        self.agents.acknowledge(worker, delivery)
        for one in self.spoken:
            if delivery in one.accepted:
                one.taken.add(delivery)

    # Clients

    @rule(tenant_id=st.sampled_from(["acme", "globex"]))
    def open(self, tenant_id: str) -> None:
        if len(self.spoken) < 6:
            self.spoken.append(Spoken(self.agents.open(f"user-{len(self.spoken)}", tenant_id)))

    @precondition(lambda self: any(not one.ended for one in self.spoken))
    @rule(data=st.data(), event=st.sampled_from(["ask", "rate"]))
    def say(self, data: st.DataObject, event: str) -> None:
        one = data.draw(st.sampled_from([one for one in self.spoken if not one.ended]))
        tenant_id, waiting = one.context.tenant_id, one.waiting
        takers = [worker for worker in self.credits if worker.allows(tenant_id) and worker.wants(tenant_id, event)]
        holders = [worker for worker in self.credits for queue in worker.queues if queue.context is one.context]
        outcome = attempt(lambda: self.agents.say(one.context, event=event))
        if isinstance(outcome, Delivery):
            assert takers
            assert len(waiting) < MAX_INBOUND
            one.accepted.append(outcome)
        elif not takers:
            assert isinstance(outcome, SidecarError)
            assert outcome.reason is ErrorReason.NO_AGENT
        else:
            assert isinstance(outcome, SidecarError)
            assert outcome.reason is ErrorReason.AGENT_BUSY
            divided = not any(takes(worker, one, waiting) for worker in takers) and holders[0] not in takers
            assert len(waiting) >= MAX_INBOUND or divided

    @precondition(lambda self: any(not one.ended for one in self.spoken))
    @rule(data=st.data())
    def come_and_go(self, data: st.DataObject) -> None:
        self.agents.come_and_go(data.draw(st.sampled_from([one for one in self.spoken if not one.ended])).context)

    @precondition(lambda self: any(not one.ended for one in self.spoken))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.spoken if not one.ended]))
        self.agents.close(one.context)
        one.ended = True

    @rule(seconds=st.sampled_from([1.0, ACK_TIMEOUT_S]))
    def wait(self, seconds: float) -> None:
        self.agents.tick(seconds)

    # What holds at every step

    @invariant()
    def credits_are_what_was_given(self) -> None:
        assert {worker: worker.credits for worker in self.credits} == self.credits

    @invariant()
    def each_context_has_one_worker_and_that_may_have_it(self) -> None:
        queues = [queue for worker in self.credits for queue in worker.queues]
        assert len(queues) == len(set(queues))
        for worker in self.credits:
            assert all(queue.worker is worker for queue in worker.queues)
            assert set(worker.ready) <= worker.queues.keys()
            assert all(queue.waiting for queue in worker.ready)
            assert {delivery.queue for delivery in worker.sent.values()} <= worker.queues.keys()

    @invariant()
    def what_waits_is_with_a_worker_if_there_is_one(self) -> None:
        for service in self.agents.registry._services.values():
            for queue in service.queues.values():
                able = any(worker.allows(queue.context.tenant_id) for worker in self.credits)
                assert (queue.worker is not None) == able
                if queue.worker is not None and queue.waiting:
                    assert queue in queue.worker.ready

    def teardown(self) -> None:
        """In the end a good worker is told all that is left, in order, and nothing stays behind."""
        if not hasattr(self, "agents"):
            return
        for worker in list(self.credits):
            self.agents.lose(worker)
            del self.credits[worker]
        if not any(one.accepted for one in self.spoken):
            return
        good = self.agents.attach()
        self.credits[good], self.held[good] = MANY, []
        for delivery in self.agents.take(good):
            self.see(good, delivery)
            self.agents.acknowledge(good, delivery)
            for one in self.spoken:
                if delivery in one.accepted:
                    one.taken.add(delivery)
        assert [one.waiting for one in self.spoken] == [[]] * len(self.spoken)
        for one in self.spoken:
            if not one.ended:
                self.agents.close(one.context)
        self.agents.settle(good)
        assert self.agents.kept() == {"support": (0, 0)}
        assert not self.agents.registry._user_bytes
        assert not any((good.queues, good.sent, good.ready))


AgentsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestAgents = AgentsMachine.TestCase
