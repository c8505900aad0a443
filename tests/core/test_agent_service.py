"""Workers of one service that take different events, as while another version of it is rolled out."""

from __future__ import annotations

import pytest

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.workers import Subscription
from tests.support.agents import Agents
from tests.support.core import attempt

ASK, RATE = Subscription(None, "ask"), Subscription(None, "rate")


@pytest.fixture
def agents() -> Agents:
    return Agents()


def reason_of(outcome: object) -> ErrorReason:
    assert isinstance(outcome, SidecarError)
    return outcome.reason


def test_a_message_moves_its_context_to_a_worker_that_takes_it(agents: Agents) -> None:
    old = agents.attach("support", ASK)
    alice = agents.context()
    agents.say(alice, "m-1", "ask")
    assert agents.told(old) == ["alice m-1"]
    new = agents.attach("support", ASK, RATE)
    agents.say(alice, "m-2", "ask")
    assert agents.told(old) == ["alice m-2"]  # which takes it: it stays
    agents.say(alice, "m-3", "rate")
    assert agents.told(old) == []
    assert agents.told(new) == ["*alice m-1", "*alice m-2", "alice m-3"]
    agents.say(alice, "m-4", "ask")
    assert (agents.told(old), agents.told(new)) == ([], ["alice m-4"])


def test_a_message_that_no_one_worker_takes_beside_what_is_under_way_is_refused(agents: Agents) -> None:
    one, other = agents.attach("support", ASK), agents.attach("support", RATE)
    alice = agents.context()
    agents.say(alice, "m-1", "ask")
    (asked,) = agents.take(one)
    assert reason_of(attempt(lambda: agents.say(alice, "m-2", "rate"))) is ErrorReason.AGENT_BUSY
    agents.acknowledge(one, asked)
    agents.say(alice, "m-2", "rate")
    assert (agents.told(one), agents.told(other)) == ([], ["alice m-2"])


def test_what_waits_moves_to_a_worker_that_takes_it_once_what_held_it_back_was_taken(agents: Agents) -> None:
    """Where it was placed with one that does not, as after a loss."""
    lost = agents.attach("support", ASK, RATE)
    alice = agents.context()
    for number, event in enumerate(("ask", "rate")):
        agents.say(alice, f"m-{number}", event)
    asking = agents.attach("support", ASK, credits_left=1)
    agents.lose(lost)
    rating = agents.attach("support", RATE)  # which does not take the first, and so has neither
    (asked,) = agents.take(asking)
    agents.acknowledge(asking, asked)
    agents.registry.credit(asking, 1)
    assert (agents.told(asking), agents.told(rating)) == ([], ["alice m-1"])


def test_a_lost_workers_messages_go_to_one_that_takes_them(agents: Agents) -> None:
    lost = agents.attach("support", ASK, RATE)
    people = [agents.context(f"user-{number}") for number in range(20)]
    for context in people:
        agents.say(context, event="rate")
    asking, both = agents.attach("support", ASK), agents.attach("support", ASK, RATE)
    agents.lose(lost)
    assert agents.told(asking) == []
    assert len(agents.told(both)) == 20


def test_a_time_out_gives_a_message_to_nobody_who_does_not_take_it(agents: Agents) -> None:
    rating = agents.attach("support", RATE, ack_timeout_s=5.0)
    alice = agents.context()
    agents.say(alice, event="rate")
    assert agents.told(rating) == ["alice m"]
    asking = agents.attach("support", ASK)
    agents.tick(5.0)
    assert (agents.told(asking), agents.told(rating)) == ([], ["*alice m"])
    other = agents.attach("support", RATE)
    agents.tick(5.0)
    assert (agents.told(asking), agents.told(rating), agents.told(other)) == ([], [], ["*alice m"])


def test_what_nobody_is_left_for_goes_to_whom_there_is_and_back_to_one_that_comes_in_time(agents: Agents) -> None:
    rating = agents.attach("support", RATE)
    asking = agents.attach("support", ASK, credits_left=0)
    alice = agents.context()
    agents.say(alice, event="rate")
    agents.lose(rating)
    assert [queue.isolation_key for queue in asking.queues] == [alice.isolation_key]
    again = agents.attach("support", RATE)
    assert agents.told(again) == ["alice m"]
    agents.lose(again)
    agents.registry.credit(asking, 1)
    assert agents.told(asking) == ["*alice m"]


def test_one_that_takes_any_event_needs_no_other(agents: Agents) -> None:
    anything, asking = agents.attach("support"), agents.attach("support", ASK)
    people = [agents.context(f"user-{number}") for number in range(20)]
    for context in people:
        agents.say(context, event="ask")
        agents.say(context, event="rate")
    assert len(agents.told(anything)) == 40
    assert agents.told(asking) == []
    assert asking.takes_everything is False


def test_any_event_of_some_tenants_is_not_any_event_of_all(agents: Agents) -> None:
    some = agents.attach("support", Subscription("acme", None), Subscription("globex", "ask"))
    assert not some.takes_everything
    assert some.wants("acme", "rate")
    assert some.wants("globex", "ask")
    assert not some.wants("globex", "rate")
    assert (
        reason_of(attempt(lambda: agents.say(agents.context(tenant_id="globex"), event="rate"))) is ErrorReason.NO_AGENT
    )
