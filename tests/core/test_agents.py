"""The registry of agent services: who is given what, when it is sent again, and what is forgotten."""

from __future__ import annotations

from functools import partial

import pytest

from sidecar.core.agents import MAX_USER_BYTES
from sidecar.core.deliveries import InboundMessage
from sidecar.core.errors import AlreadyExists, ErrorReason, SidecarError
from sidecar.core.identity import UserExecutionContext
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES
from sidecar.core.workers import Subscription
from tests.support.agents import Agents


@pytest.fixture
def agents() -> Agents:
    return Agents()


def refusal(agents: Agents, context: UserExecutionContext, event: str = "message") -> ErrorReason:
    """Why the client's message is not taken."""
    with pytest.raises(SidecarError) as caught:
        agents.say(context, event=event)
    return caught.value.reason


# Who takes what


def test_a_message_goes_to_the_one_service_that_takes_its_event(agents: Agents) -> None:
    named = agents.attach("billing", Subscription("acme", "invoice"))
    rest = agents.attach("support", Subscription("acme", None))
    alice = agents.context()
    agents.say(alice, "m-1", "invoice")
    agents.say(alice, "m-2", "message")
    assert (agents.told(named), agents.told(rest)) == (["alice m-1"], ["alice m-2"])


def test_nobody_attached_is_no_agent(agents: Agents) -> None:
    alice = agents.context()
    assert refusal(agents, alice) is ErrorReason.NO_AGENT
    worker = agents.attach("billing", Subscription(None, "invoice"))
    assert refusal(agents, alice) is ErrorReason.NO_AGENT
    agents.say(alice, event="invoice")
    agents.lose(worker)
    assert refusal(agents, alice, event="invoice") is ErrorReason.NO_AGENT


@pytest.mark.parametrize(
    ("subscription", "tenants"),
    [
        (Subscription("globex", None), None),
        (Subscription(None, None), frozenset({"globex"})),
        (Subscription("acme", None), frozenset({"globex"})),  # more than the service may have
        (Subscription(None, None), frozenset()),
    ],
)
def test_nothing_of_a_tenant_reaches_a_service_of_another(
    agents: Agents, subscription: Subscription, tenants: frozenset[str] | None
) -> None:
    worker = agents.attach("theirs", subscription, tenants=tenants)
    alice = agents.open("alice", "acme")
    agents.come_and_go(alice)
    assert refusal(agents, alice) is ErrorReason.NO_AGENT
    agents.registry.cancelled(alice, "s-1", "")
    agents.close(alice)
    assert agents.take(worker) == []
    assert worker.next_cancelled() is None
    assert agents.kept() == {"theirs": (0, 0)}


def test_a_worker_with_fewer_tenants_is_given_none_of_what_its_service_has_beside(agents: Agents) -> None:
    few = agents.attach("support", tenants=frozenset({"acme"}))
    many = agents.attach("support", tenants=frozenset({"acme", "globex"}))
    people = [agents.open(f"user-{number}", "globex") for number in range(20)]
    deliveries = agents.take(many)
    assert len(deliveries) == 20
    assert agents.take(few) == []
    assert agents.acknowledge(few, *deliveries) == []  # nor may it say that it has them
    for context in (people[0], agents.context("unheard", "globex")):
        agents.registry.cancelled(context, "s-1", "")
        assert few.next_cancelled() is None
        assert many.next_cancelled() is not None
    agents.lose(many)
    assert agents.take(few) == []
    again = agents.attach("support", tenants=frozenset({"globex"}))
    assert len(agents.take(again)) == 20


# A pair is held by one service


def test_a_pair_that_another_service_holds_is_refused(agents: Agents) -> None:
    worker = agents.attach("support", Subscription("acme", "message"))
    with pytest.raises(AlreadyExists) as caught:
        agents.attach("other", Subscription("acme", "else"), Subscription(None, "message"))
    assert caught.value.reason is ErrorReason.SUBSCRIPTION_TAKEN
    assert len(agents.registry) == 1
    agents.attach("support", Subscription("acme", "message"))  # another worker of the same
    agents.attach("other", Subscription("acme", "else"), Subscription("acme", None))
    agents.lose(worker)
    with pytest.raises(AlreadyExists):
        agents.attach("third", Subscription("acme", "message"))


def test_a_pair_is_free_once_its_last_worker_has_gone(agents: Agents) -> None:
    agents.lose(agents.attach("support"))
    agents.attach("other")
    assert len(agents.registry) == 1


def test_services_of_different_tenants_hold_the_same_events(agents: Agents) -> None:
    """Every tenant is every tenant that the service may have: else one would learn of the other, and lock it out."""
    ours = agents.attach("ours", tenants=frozenset({"acme"}))
    theirs = agents.attach("theirs", tenants=frozenset({"globex"}))
    agents.say(agents.context("alice", "acme"))
    agents.say(agents.context("bob", "globex"))
    assert (agents.told(ours), agents.told(theirs)) == (["alice m"], ["bob m"])
    with pytest.raises(AlreadyExists):
        agents.attach("third")


# A context sticks to one worker


def test_a_context_stays_with_its_worker_while_that_lives(agents: Agents) -> None:
    first, second = agents.attach(), agents.attach()
    people = [agents.open(f"user-{number}") for number in range(40)]
    mine = {delivery.queue.context.user_id for delivery in agents.take(first)}
    yours = {delivery.queue.context.user_id for delivery in agents.take(second)}
    assert len(mine | yours) == 40
    assert mine
    assert yours
    third = agents.attach()  # moves nobody
    for context in people:
        agents.say(context)
    assert {delivery.queue.context.user_id for delivery in agents.take(first)} == mine
    assert {delivery.queue.context.user_id for delivery in agents.take(second)} == yours
    agents.lose(second)  # its contexts go to those that are left, and no other moves
    moved = [*agents.told(first), *agents.told(third)]
    assert sorted(moved) == sorted(f"*{user} {what}" for user in yours for what in ("opened", "m"))


def test_what_a_lost_worker_held_is_sent_again_in_order_and_marked(agents: Agents) -> None:
    first = agents.attach(credits_left=3)
    alice = agents.open()
    opened, *_ = [agents.registry.next(first, agents.clock.now())]
    assert opened is not None
    agents.acknowledge(first, opened)
    for number in range(1, 5):
        agents.say(alice, f"m-{number}")
    assert agents.told(first) == ["alice m-1", "alice m-2"]
    agents.lose(first)
    agents.lose(first)
    second = agents.attach()
    agents.say(context=alice, message_id="m-5")
    assert agents.told(second) == ["*alice m-1", "*alice m-2", "alice m-3", "alice m-4", "alice m-5"]


def test_what_is_not_acknowledged_in_time_is_sent_again_and_to_another_if_there_is_one(agents: Agents) -> None:
    first = agents.attach(ack_timeout_s=5.0)
    agents.say(agents.context())
    assert agents.told(first) == ["alice m"]
    agents.tick(4.9)
    assert agents.told(first) == []
    agents.tick(0.1)
    assert agents.told(first) == ["*alice m"]
    second = agents.attach(ack_timeout_s=5.0)
    agents.tick(5.0)
    assert agents.told(first) == []
    (delivery,) = agents.take(second)
    assert delivery.redelivered
    assert agents.acknowledge(first, delivery) == [delivery]  # it was late, but it has it
    agents.tick(5.0)
    assert (agents.told(first), agents.told(second)) == ([], [])


def test_a_context_that_times_out_is_sent_again_before_anything_newer(agents: Agents) -> None:
    worker = agents.attach(credits_left=2, ack_timeout_s=5.0)
    alice = agents.context()
    for number in range(1, 4):
        agents.say(alice, f"m-{number}")
    assert agents.told(worker) == ["alice m-1", "alice m-2"]
    agents.tick(5.0)
    agents.registry.credit(worker, 9)
    assert agents.told(worker) == ["*alice m-1", "*alice m-2", "alice m-3"]


def test_unknown_ids_are_passed_over(agents: Agents) -> None:
    worker = agents.attach()
    agents.say(agents.context())
    (delivery,) = agents.take(worker)
    found = agents.registry.acknowledge(worker, ["", "d-1", delivery.delivery_id, delivery.delivery_id])
    assert found == [delivery]


# Credits, and workers that do not do their part


def test_credits_bound_what_is_in_flight(agents: Agents) -> None:
    worker = agents.attach(credits_left=0)
    alice = agents.context()
    for number in range(4):
        agents.say(alice, f"m-{number}")
    assert agents.told(worker) == []
    agents.registry.credit(worker, 2)
    agents.registry.credit(worker, 1)
    assert agents.told(worker) == ["alice m-0", "alice m-1", "alice m-2"]
    agents.registry.acknowledge(worker, list(worker.sent))
    assert agents.told(worker) == []  # an acknowledgement is no credit
    assert agents.woken == ["w-1"] * 6


def test_contexts_take_turns(agents: Agents) -> None:
    worker = agents.attach()
    alice, bob = agents.context("alice"), agents.context("bob")
    for number in range(3):
        agents.say(alice, f"m-{number}")
    agents.say(bob, "m")
    assert agents.told(worker) == ["alice m-0", "bob m", "alice m-1", "alice m-2"]


def test_a_worker_that_never_acknowledges_starves_nobody(agents: Agents) -> None:
    """It holds what its credits were spent on; what waits behind that would have waited for ever."""
    bad = agents.attach(credits_left=3, ack_timeout_s=10.0)
    people = [agents.context(f"user-{number}") for number in range(10)]
    for context in people:
        agents.say(context)
    assert len(agents.take(bad)) == 3
    good = agents.attach(ack_timeout_s=10.0)
    agents.tick(10.0)
    assert sorted(agents.told(good)) == sorted(f"{'*' if number < 3 else ''}user-{number} m" for number in range(10))
    agents.registry.credit(bad, 1_000)
    for number in range(10):
        agents.say(agents.context(f"newcomer-{number}"))  # nor is it given anybody new
    assert len(agents.take(good)) == 10
    assert not bad.queues


def test_a_time_out_moves_a_context_though_no_worker_acknowledges(agents: Agents) -> None:
    workers = [agents.attach(ack_timeout_s=10.0) for _ in range(3)]
    agents.say(agents.context())
    former: set[int] = set()
    for _ in range(10):
        (now,) = (place for place, worker in enumerate(workers) if agents.take(worker))
        assert now not in former
        former = {now}
        agents.tick(10.0)


def test_a_worker_that_gives_no_credit_is_not_chosen_while_another_does(agents: Agents) -> None:
    agents.attach(credits_left=0)
    ready = agents.attach()
    for number in range(20):
        agents.say(agents.context(f"user-{number}"))
    assert len(agents.take(ready)) == 20


def test_a_worker_that_was_late_is_trusted_again_once_it_acknowledges(agents: Agents) -> None:
    slow = agents.attach(ack_timeout_s=1.0)
    delivery = agents.say(agents.context())
    agents.take(slow)
    agents.tick(1.0)
    assert slow.late
    agents.acknowledge(slow, delivery)
    assert not slow.late


# The inbound queue


def test_a_context_has_so_many_messages_that_nobody_acknowledged() -> None:
    agents = Agents(max_inbound=3)
    worker = agents.attach()
    alice = agents.open()
    sent = [agents.say(alice, f"m-{number}") for number in range(3)]
    assert refusal(agents, alice) is ErrorReason.AGENT_BUSY
    agents.say(agents.context("bob"))  # costs nobody else
    agents.take(worker)
    assert refusal(agents, alice) is ErrorReason.AGENT_BUSY  # written is not taken
    agents.acknowledge(worker, sent[0])
    agents.say(alice, "m-3")
    assert refusal(agents, alice) is ErrorReason.AGENT_BUSY
    assert agents.kept() == {"support": (2, 5)}


def test_a_place_that_is_reserved_counts_until_it_is_given_back() -> None:
    agents = Agents(max_inbound=1)
    worker = agents.attach()
    alice = agents.open()
    message = InboundMessage("m", "message", b"{}", 1)
    place = agents.registry.reserve(alice, message)
    assert refusal(agents, alice) is ErrorReason.AGENT_BUSY
    agents.registry.release(place)
    place = agents.registry.reserve(alice, message)
    agents.lose(worker)
    agents.registry.deliver(place, message, agents.clock.now())
    assert agents.told(agents.attach()) == ["alice opened", "alice m"]


def test_a_place_of_a_context_that_ended_is_let_go_of(agents: Agents) -> None:
    worker = agents.attach()
    alice = agents.open()
    place = agents.registry.reserve(alice, InboundMessage("m", "message", b"{}", 1))
    agents.close(alice)
    assert agents.take(worker) == []
    assert agents.kept() == {"support": (1, 0)}
    agents.registry.release(place)
    assert agents.kept() == {"support": (0, 0)}


def test_a_user_keeps_no_more_waiting_over_all_contexts_however_many_have_ended(agents: Agents) -> None:
    worker = agents.attach(credits_left=0)
    payload = bytes(MAX_USER_BYTES // 64 - MESSAGE_OVERHEAD_BYTES)
    for _ in range(64):
        context = agents.context()
        agents.say(context, payload=payload)
        agents.close(context)
    with pytest.raises(SidecarError) as caught:
        agents.say(agents.context(), payload=b"")
    assert caught.value.reason is ErrorReason.AGENT_BUSY
    agents.say(agents.context("bob"))
    agents.registry.credit(worker, 1)
    agents.settle(worker)
    agents.say(agents.context(), payload=payload)


def test_a_message_that_waited_before_a_restart_is_marked_and_waits_for_its_service(agents: Agents) -> None:
    alice = agents.context()
    taken: list[str] = []
    for name in ("m-1", "m-2"):
        message = InboundMessage(name, "message", b"{}", 1)
        agents.registry.restore(alice, "support", message, agents.clock.now(), partial(taken.append, name))
    assert refusal(agents, alice) is ErrorReason.NO_AGENT
    agents.attach("other", Subscription("globex", None))
    worker = agents.attach("support", Subscription("acme", None))
    agents.say(alice, "m-3")
    deliveries = agents.take(worker)
    assert [delivery.redelivered for delivery in deliveries] == [True, True, False]
    agents.acknowledge(worker, *deliveries)
    assert taken == ["m-1", "m-2"]


def test_one_that_waits_for_a_service_that_may_have_every_tenant(agents: Agents) -> None:
    agents.lose(agents.attach())
    message = InboundMessage("m", "message", b"{}", 1)
    agents.registry.restore(agents.context(), "support", message, agents.clock.now(), lambda: None)
    worker = agents.attach()
    assert agents.told(worker) == ["*alice m"]
    assert repr(worker) == "<AgentWorker support/w-2 credits=999999 ready=0>"
