"""What services are told of the coming, going and cancels of clients, and how long what of it is remembered."""

from __future__ import annotations

import pytest

from sidecar.core.agents import KEEP_S, MAX_ABSENT, MAX_CLOSED, MAX_COMINGS
from sidecar.core.deliveries import Cancelled
from sidecar.core.identity import UserExecutionContext
from sidecar.core.workers import MAX_CANCELLING, MAX_CANCELS, AgentWorker, Subscription
from tests.support.agents import CLOSING, Agents


@pytest.fixture
def agents() -> Agents:
    return Agents()


def cancels(worker: AgentWorker) -> list[tuple[str, str, str]]:
    """The (user, stream, message) of everything cancelled that the worker is told now."""
    found: list[Cancelled] = []
    while (event := worker.next_cancelled()) is not None:
        found.append(event)
    assert all(event.isolation_key == event.context.get_isolation_key() for event in found)
    return [(event.context.user_id, event.stream_id, event.message_id) for event in found]


def holds_nothing(worker: AgentWorker) -> bool:
    return not any((worker.ready, worker.sent, worker.queues, worker.urgent))


def test_every_service_of_the_tenant_is_told_of_a_life(agents: Agents) -> None:
    one, other = (agents.attach(name, Subscription("acme", name)) for name in ("one", "other"))
    alice = agents.open()
    for worker in (one, other):
        assert agents.told(worker) == ["alice opened"]
    agents.registry.away(alice, agents.clock.now())
    assert agents.told(one) == ["alice away"]
    agents.registry.back(alice, agents.clock.now())
    agents.close(alice)
    # Each as far as it was told: what is over by now is not told.
    (closed,) = agents.take(one)
    assert closed.closing == CLOSING
    assert agents.told(other) == ["alice closed"]


def test_away_and_back_before_anybody_was_told_is_nothing(agents: Agents) -> None:
    worker = agents.attach(credits_left=1)
    alice = agents.open()
    agents.settle(worker)
    for _ in range(1_000):
        agents.come_and_go(alice)
    assert agents.kept() == {"support": (1, 0)}
    agents.registry.away(alice, agents.clock.now())
    for _ in range(1_000):
        agents.registry.back(alice, agents.clock.now())
        agents.registry.away(alice, agents.clock.now())
    agents.registry.credit(worker, 9)
    assert agents.told(worker) == ["alice away"]
    agents.registry.back(alice, agents.clock.now())
    assert agents.told(worker) == ["alice back"]


def test_of_a_client_that_comes_and_goes_unacknowledged_the_last_is_kept(agents: Agents) -> None:
    worker = agents.attach(ack_timeout_s=1.0)
    alice = agents.open()
    for _ in range(MAX_COMINGS):
        agents.registry.away(alice, agents.clock.now())
        agents.told(worker)
        agents.registry.back(alice, agents.clock.now())
        agents.told(worker)
    assert agents.kept() == {"support": (1, 1 + MAX_COMINGS)}
    agents.tick(1.0)
    assert agents.told(worker) == ["*alice opened", *["*alice away", "*alice back"] * (MAX_COMINGS // 2)]


# closed


def test_closed_outlives_its_worker_though_the_client_was_away_before(agents: Agents) -> None:
    """The client's own close is an `away` that nobody was told of, then the end."""
    worker = agents.attach()
    alice = agents.open()
    agents.settle(worker)
    agents.registry.away(alice, agents.clock.now())
    agents.close(alice)
    assert agents.told(worker) == ["alice closed"]
    agents.lose(worker)
    again = agents.attach()
    assert agents.told(again) == ["*alice closed"]
    agents.tick(60.0)
    agents.settle(again)
    assert agents.kept() == {"support": (0, 0)}
    assert not again.queues


def test_a_context_that_nobody_was_told_of_is_neither_opened_nor_closed(agents: Agents) -> None:
    worker = agents.attach(credits_left=0)
    for _ in range(100):
        context = agents.open()
        agents.come_and_go(context)
        agents.registry.away(context, agents.clock.now())
        agents.close(context)
    assert agents.kept() == {"support": (0, 0)}
    assert holds_nothing(worker)


def test_what_the_client_said_is_told_though_it_has_gone_with_its_coming_and_its_end(agents: Agents) -> None:
    worker = agents.attach(credits_left=0)
    alice = agents.open()
    agents.say(alice)
    agents.close(alice)
    agents.registry.credit(worker, 9)
    assert agents.told(worker) == ["alice opened", "alice m", "alice closed"]


def test_closed_waits_for_a_service_without_a_worker(agents: Agents) -> None:
    worker = agents.attach()
    alice = agents.open()
    agents.settle(worker)
    agents.lose(worker)
    bob = agents.open("bob")
    agents.close(alice)
    agents.close(agents.open("carol"))  # who came and went meanwhile
    agents.tick(KEEP_S - 1.0)
    assert sorted(agents.told(agents.attach())) == ["alice closed", "bob opened"]
    agents.close(bob)


def test_closed_is_told_to_a_service_whose_worker_for_that_tenant_is_gone_for_now(agents: Agents) -> None:
    acme = agents.attach("support", tenants=frozenset({"acme"}))
    agents.attach("support", tenants=frozenset({"globex"}))
    alice = agents.open()
    agents.settle(acme)
    agents.lose(acme)
    agents.close(alice)
    assert agents.told(agents.attach("support", tenants=frozenset({"acme"}))) == ["alice closed"]


def test_closed_is_kept_for_a_day_and_so_many_a_service(agents: Agents) -> None:
    worker = agents.attach()
    agents.lose(worker)
    worker = agents.attach(credits_left=MAX_CLOSED + 1)
    people = [agents.open(f"user-{number}") for number in range(MAX_CLOSED + 1)]
    agents.settle(worker)
    for context in people[:-1]:
        agents.close(context)
    assert agents.kept() == {"support": (MAX_CLOSED + 1, MAX_CLOSED)}
    agents.close(people[-1])
    assert agents.kept() == {"support": (MAX_CLOSED, MAX_CLOSED)}
    agents.registry.credit(worker, 1)
    assert agents.told(worker) == ["user-1 closed"]  # the oldest was dropped
    agents.tick(KEEP_S - 0.1)
    assert agents.kept() == {"support": (MAX_CLOSED, MAX_CLOSED)}
    agents.tick(0.1)
    assert agents.kept() == {"support": (0, 0)}
    assert not worker.queues


def test_messages_of_a_context_that_ended_are_forgotten_with_its_closed(agents: Agents) -> None:
    worker = agents.attach(credits_left=0)
    alice = agents.context()
    agents.say(alice)
    agents.close(alice)
    agents.tick(KEEP_S)
    agents.registry.credit(worker, 9)
    assert agents.told(worker) == []
    assert agents.kept() == {"support": (0, 0)}


# Services without a worker


def test_a_service_without_a_worker_is_forgotten_after_a_day(agents: Agents) -> None:
    worker = agents.attach()
    agents.say(agents.open())
    agents.lose(worker)
    agents.tick(KEEP_S - 0.1)
    assert agents.kept() == {"support": (1, 2)}
    agents.tick(0.1)
    assert agents.kept() == {}
    agents.open("bob")
    assert agents.told(agents.attach()) == []


def test_only_so_many_services_without_a_worker_are_remembered_first_those_with_something_to_tell(
    agents: Agents,
) -> None:
    worker = agents.attach("support", Subscription("acme", None))
    agents.say(agents.open())
    agents.lose(worker)
    for number in range(MAX_ABSENT + 10):
        agents.lose(agents.attach(f"name-{number}", Subscription("globex", None)))
    assert len(agents.kept()) == MAX_ABSENT
    assert agents.kept()["support"] == (1, 2)
    assert f"name-{MAX_ABSENT + 9}" in agents.kept()


def test_a_message_that_the_store_kept_after_its_service_was_forgotten_waits_all_the_same(agents: Agents) -> None:
    worker = agents.attach()
    alice = agents.open()
    message = agents.say(alice).message
    assert message is not None
    place = agents.registry.reserve(alice, message)
    agents.lose(worker)
    agents.tick(KEEP_S)
    agents.registry.deliver(place, message, agents.clock.now())
    assert agents.told(agents.attach()) == ["alice m"]


def test_a_place_in_a_service_that_was_forgotten_is_given_back_to_nobody(agents: Agents) -> None:
    worker = agents.attach()
    alice = agents.open()
    message = agents.say(alice).message
    assert message is not None
    place = agents.registry.reserve(alice, message)
    agents.lose(worker)
    agents.tick(KEEP_S)
    agents.registry.release(place)
    assert agents.kept() == {}


def test_nothing_is_left_of_what_was_acknowledged(agents: Agents) -> None:
    """Not a payload, though it would have been sent again an hour later."""
    worker = agents.attach(ack_timeout_s=3_600.0)
    for number in range(100):
        context = agents.open(f"user-{number}")
        agents.say(context, payload=bytes(1_000))
        agents.come_and_go(context)
        agents.settle(worker)
        agents.close(context)
        agents.settle(worker)
    assert agents.kept() == {"support": (0, 0)}
    assert holds_nothing(worker)
    assert not agents.registry._user_bytes


# cancelled


def test_a_cancel_needs_no_credit_and_goes_to_the_worker_of_the_context(agents: Agents) -> None:
    first, second = agents.attach(credits_left=1), agents.attach(credits_left=0)
    alice = agents.open()
    agents.told(first)
    agents.registry.cancelled(alice, "s-1", "m-1")
    assert cancels(first) == [("alice", "s-1", "m-1")]
    assert cancels(second) == []


def test_a_cancel_of_a_context_without_a_worker_goes_to_every_worker(agents: Agents) -> None:
    alice = agents.open()  # before any service was there
    workers = [agents.attach(), agents.attach(), agents.attach("other", Subscription("acme", "else"))]
    agents.registry.cancelled(alice, "", "m-1")
    assert [cancels(worker) for worker in workers] == [[("alice", "", "m-1")]] * 3


def test_cancels_of_one_client_cost_no_other_client_its_own(agents: Agents) -> None:
    worker = agents.attach()
    alice, bob = agents.open("alice"), agents.open("bob")
    for number in range(MAX_CANCELS + 1):
        agents.registry.cancelled(alice, f"s-{number}", "")
    agents.registry.cancelled(bob, "s-1", "")
    told = cancels(worker)
    assert told.pop(1) == ("bob", "s-1", "")  # they take turns
    assert told == [("alice", f"s-{number}", "") for number in range(1, MAX_CANCELS + 1)]


def test_cancels_for_a_worker_that_does_not_read_are_bounded(agents: Agents) -> None:
    worker = agents.attach()
    people: list[UserExecutionContext] = [agents.context(f"user-{number}") for number in range(MAX_CANCELLING + 1)]
    for context in people:
        agents.registry.cancelled(context, "s-1", "")
    assert len(worker.urgent) == MAX_CANCELLING
    told = cancels(worker)
    assert (told[0][0], told[-1][0]) == ("user-1", f"user-{MAX_CANCELLING}")
    assert not worker.urgent
