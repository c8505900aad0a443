"""Who is told what became of a message, once and no more."""

from __future__ import annotations

from sidecar.core.outcomes import Outcomes


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
