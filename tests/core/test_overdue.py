"""What is over and must stay for now, by what becomes of it."""

from __future__ import annotations

from sidecar.core.outbox import OutboxEntry
from sidecar.core.overdue import Overdue


def filled(*sequences: int) -> tuple[Overdue, dict[int, OutboxEntry]]:
    """With those, in that order."""
    overdue = Overdue()
    entries = {sequence: OutboxEntry(sequence, b"frame", 100, 1.0, False) for sequence in sequences}
    for entry in entries.values():
        overdue.add(entry)
    return overdue, entries


def taken(overdue: Overdue, cursor: int, promised: int, confirmed: int) -> list[int]:
    return [entry.sequence for entry in overdue.take(cursor, promised, confirmed)]


def test_the_promised_stay_until_they_are_written() -> None:
    overdue, _ = filled(3, 1, 2)
    assert taken(overdue, 0, 3, 3) == []
    assert taken(overdue, 2, 3, 3) == [1, 2]
    assert taken(overdue, 3, 3, 3) == [3]
    assert not overdue


def test_the_unconfirmed_stay_until_they_are_confirmed() -> None:
    overdue, _ = filled(6, 5, 7)
    assert taken(overdue, 0, 0, 4) == []
    assert taken(overdue, 0, 0, 6) == [5, 6]
    assert taken(overdue, 0, 0, 7) == [7]


def test_what_is_confirmed_goes_though_the_promised_before_it_stay() -> None:
    overdue, _ = filled(2, 1, 4, 5)
    assert taken(overdue, 0, 2, 4) == [4]
    assert taken(overdue, 1, 2, 4) == [1]
    assert taken(overdue, 1, 0, 4) == [2]  # the promise is broken
    assert len(overdue) == 1


def test_what_left_another_way_is_not_given() -> None:
    overdue, entries = filled(1, 2, 3)
    entries[1].kept = False
    assert taken(overdue, 2, 0, 2) == [2]
    entries[3].kept = False
    overdue.forget_what_left()
    assert not overdue
