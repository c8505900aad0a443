"""Who is told what became of a message, once and no more."""

from __future__ import annotations

import pytest

from sidecar.core.limits import Limits
from sidecar.core.outbox import OutboxLimits
from sidecar.core.outcomes import Outcomes
from tests.support.core import Core
from tests.support.doubles import LaterStore


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []

    def acknowledged(self, sequence: int) -> None:
        self.told.append((sequence,))

    def dropped(self, first: int, last: int) -> None:
        self.told.append((first, last))


def test_an_acknowledgement_tells_those_up_to_it_in_order() -> None:
    outcomes, told = Outcomes(), list[int]()
    for sequence in (3, 1, 2, 2):
        outcomes.wait(sequence, lambda sequence=sequence: told.append(sequence))  # type: ignore[misc]
    outcomes.acknowledged(2)
    assert told == [1, 2, 2]
    outcomes.acknowledged(2)
    assert told == [1, 2, 2]
    outcomes.acknowledged(9)
    assert told == [1, 2, 2, 3]
    assert not outcomes


def test_a_loss_tells_those_in_it_alone() -> None:
    outcomes, told = Outcomes(), list[int]()
    for sequence in (1, 2, 3, 4):
        outcomes.wait(sequence, lambda sequence=sequence: told.append(sequence))  # type: ignore[misc]
    outcomes.dropped(2, 3)
    assert told == [2, 3]
    outcomes.acknowledged(4)
    assert told == [2, 3, 1, 4]


def test_whoever_waits_no_more_is_not_told_and_leaves_nothing() -> None:
    outcomes, told = Outcomes(), list[int]()
    waits = [outcomes.wait(1, lambda number=number: told.append(number)) for number in range(100)]  # type: ignore[misc]
    for wait in waits[:-1]:
        outcomes.stop_waiting(wait)
        outcomes.stop_waiting(wait)
        assert not wait.waiting
    assert len(outcomes._waits) < 20
    outcomes.acknowledged(1)
    assert told == [99]
    outcomes.stop_waiting(waits[-1])
    assert not outcomes


def test_a_wait_that_was_cancelled_is_not_told_by_a_loss() -> None:
    outcomes, told = Outcomes(), list[int]()
    wait = outcomes.wait(1, lambda: told.append(1))
    outcomes.stop_waiting(wait)
    outcomes.dropped(1, 1)
    assert told == []


def test_listeners_hear_of_everything_until_they_leave() -> None:
    outcomes, first, second = Outcomes(), Listener(), Listener()
    outcomes.listen(first)
    outcomes.listen(first)
    outcomes.listen(second)
    outcomes.acknowledged(1)
    outcomes.leave(second)
    outcomes.leave(second)
    outcomes.dropped(2, 5)
    assert first.told == [(1,), (2, 5)]
    assert second.told == [(1,)]
    assert outcomes
    outcomes.clear()
    assert not outcomes


def test_a_listener_may_leave_while_it_is_told() -> None:
    outcomes, other = Outcomes(), Listener()

    class Leaver(Listener):
        def acknowledged(self, sequence: int) -> None:
            super().acknowledged(sequence)
            outcomes.leave(self)

    leaver = Leaver()
    outcomes.listen(leaver)
    outcomes.listen(other)
    outcomes.acknowledged(1)
    outcomes.acknowledged(2)
    assert leaver.told == [(1,)]
    assert other.told == [(1,), (2,)]


# How soon a loss is told: by the tick that follows it, though a context is otherwise looked at once a minute

LIMITS = Limits(outbox=OutboxLimits(ttl_s=5.0, resume_window_s=1_000.0))


@pytest.mark.parametrize("before", [True, False], ids=["listens before", "listens after"])
@pytest.mark.parametrize("ttl_s", [None, 3.0], ids=["default ttl", "own ttl"])
@pytest.mark.parametrize("away", [True, False], ids=["away", "slow"])
def test_who_listens_hears_of_an_expiry_by_the_next_tick(before: bool, ttl_s: float | None, away: bool) -> None:
    core, listener = Core(LIMITS), Listener()
    manager = core.create() if away else core.connect(paused=True)[0]
    if before:
        manager.listen(listener)
    core.send(manager, ttl_s=ttl_s)
    if not before:
        core.run(1)
        manager.listen(listener)
    core.send(manager, ttl_s=20.0)
    core.run((5 if ttl_s is None else 3) - 1 - (not before))
    assert listener.told == []
    core.run(1)
    assert listener.told == [(1, 1)]
    core.run(20)
    assert listener.told == [(1, 1), (2, 2)]


def test_who_waits_hears_of_it_by_the_next_tick() -> None:
    core, told = Core(LIMITS), list[int]()
    manager = core.create()
    core.send(manager, critical=True)
    manager.wait_for_outcome(core.send(manager).sequence, lambda: told.append(2))
    manager.wait_for_outcome(1, lambda: told.append(1))
    core.run(4)
    assert told == []
    core.run(1)
    assert told == [2]


def test_what_is_confirmed_when_it_is_over_is_told_by_the_next_tick() -> None:
    store, listener = LaterStore(), Listener()
    core = Core(LIMITS, store)
    manager = core.create()
    manager.listen(listener)
    core.send_later(manager, ttl_s=1.0)
    core.run(3)
    store.confirm()
    assert listener.told == []
    core.run(1)
    assert listener.told == [(1, 1)]


def test_what_is_to_be_written_again_is_told_when_it_expires() -> None:
    core, listener = Core(LIMITS), Listener()
    manager, _ = core.connect()
    manager.listen(listener)
    core.send(manager)
    core.run(2)
    socket = core.socket(paused=True)
    assert manager.resume(manager.context, socket, 0, core.clock.now())
    core.run(2)
    core.clock.advance(2.0)
    core.lose(manager, socket)
    assert listener.told == []  # it was promised until now
    core.run(1)
    assert listener.told == [(1, 1)]


def test_what_comes_behind_the_promised_is_told_when_it_expires() -> None:
    core, listener = Core(LIMITS), Listener()
    manager = core.create()
    core.send(manager, ttl_s=3.0)
    socket = core.socket(paused=True)
    assert manager.resume(manager.context, socket, 0, core.clock.now())
    manager.listen(listener)
    core.run(4)
    core.send(manager, ttl_s=2.0)
    core.run(2)
    assert listener.told == [(2, 2)]
    core.run(10)
    core.lose(manager, socket)
    core.run(1)
    assert listener.told == [(2, 2), (1, 1)]


def test_what_is_written_or_of_interest_to_nobody_brings_no_look() -> None:
    core, listener = Core(LIMITS), Listener()
    manager, socket = core.connect()
    due = manager.scheduled_for
    manager.listen(listener)
    manager.wait_for_outcome(core.send(manager, ttl_s=1.0).sequence, lambda: None)
    core.send(manager)
    assert manager.scheduled_for == due
    manager.leave(listener)
    manager.acknowledge(socket.attach_id, 2, core.clock.now())
    core.pause(manager, socket)
    due = manager.scheduled_for
    core.send(manager, ttl_s=1.0)
    assert manager.scheduled_for == due
