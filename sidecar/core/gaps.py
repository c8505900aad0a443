"""The runs of sequences that an outbox no longer keeps, and what each is still to be: announced, or told as lost."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Iterator
from enum import StrEnum
from typing import Final

from sidecar.core.stored import StoredGap

MAX_HOLES: Final = 1_024
"""How many runs behind the cursor are remembered for what a repeat of their messages is answered."""


class GapReason(StrEnum):
    """Why a message could not be kept."""

    EXPIRED = "expired"
    EVICTED = "evicted"
    ACKNOWLEDGED = "acknowledged"
    LOST = "lost"


class Hole:
    """A run of sequences that are no longer kept. `lost`: whoever waits for them was told that they are dropped."""

    __slots__ = ("announced", "first", "last", "lost", "reason")

    def __init__(self, first: int, last: int, reason: GapReason, *, announced: bool = False, lost: bool) -> None:
        self.first, self.last, self.reason = first, last, reason
        self.announced, self.lost = announced, lost


class Gaps:
    """The holes of one outbox, in order. `cursor` is always the outbox's: what it has written or announced."""

    __slots__ = ("_holes",)

    def __init__(self) -> None:
        self._holes: list[Hole] = []

    def __iter__(self) -> Iterator[StoredGap]:
        """Every hole, as a store keeps it."""
        return (StoredGap(hole.first, hole.last, hole.reason, hole.announced, hole.lost) for hole in self._holes)

    def restore(self, gaps: Iterable[StoredGap]) -> None:
        """Be as a store kept them."""
        self._holes = [
            Hole(gap.first, gap.last, GapReason(gap.reason), announced=gap.announced, lost=gap.lost) for gap in gaps
        ]

    def clear(self) -> None:
        """Forget them all."""
        self._holes.clear()

    def covering(self, sequence: int) -> Hole | None:
        """The hole that `sequence` is in, or None."""
        index = self._index(sequence)
        hole = self._holes[index] if index < len(self._holes) else None
        return hole if hole is not None and hole.first <= sequence else None

    def begin_at(self, sequence: int, end: int, kept: Container[int], cursor: int) -> Hole:
        """The hole from `sequence` on, to be announced; one marked lost, up to what is `kept`, should there be none.

        `end` is the last sequence that there is. A hole that begins before is split: a client that came back may stand
        in the middle of it.
        """
        index = self._index(sequence)
        following = self._holes[index] if index < len(self._holes) else None
        if following is not None and following.first <= sequence:
            return self._split(index, sequence)
        last = sequence
        before = end if following is None else following.first - 1
        while last < before and last + 1 not in kept:
            last += 1
        hole = Hole(sequence, last, GapReason.LOST, lost=False)
        self._holes.insert(index, hole)
        self._forget(cursor)
        return hole

    def dig(self, sequence: int, reason: GapReason, cursor: int, written: int) -> None:
        """`sequence` is not kept any more. Unwritten it is lost; up to `written`, its client may have it."""
        holes, lost = self._holes, sequence > written
        if holes and holes[-1].last == sequence - 1 and holes[-1].reason is reason:
            # The usual case, a full outbox whose oldest give way: the last run grows.
            last = holes[-1]
            if not last.announced and last.last != cursor and last.lost is lost:
                last.last = sequence
                return
        index = self._index(sequence)
        hole = Hole(sequence, sequence, reason, lost=lost)
        if index < len(holes) and _continues(hole, holes[index], cursor):
            hole.last = holes.pop(index).last
        if index and _continues(holes[index - 1], hole, cursor):
            holes[index - 1].last = hole.last
        else:
            holes.insert(index, hole)
            self._forget(cursor)

    def lose_after(self, sequence: int) -> Iterator[tuple[int, int]]:
        """What is missing behind `sequence` will be announced: it is lost now. Yields the runs that were not before."""
        index = self._index(sequence + 1)
        if index < len(self._holes) and self._holes[index].first <= sequence:
            self._split(index, sequence + 1)
            index += 1
        for hole in self._holes[index:]:
            if not hole.lost:
                hole.lost = True
                yield hole.first, hole.last

    def _index(self, sequence: int) -> int:
        return bisect_left(self._holes, sequence, key=lambda hole: hole.last)

    def _split(self, index: int, sequence: int) -> Hole:
        hole = self._holes[index]
        if hole.first < sequence:
            behind = Hole(hole.first, sequence - 1, hole.reason, announced=hole.announced, lost=hole.lost)
            hole.first = sequence
            self._holes.insert(index, behind)
        return hole

    def _forget(self, cursor: int) -> None:
        """Bound the holes behind the cursor. Those ahead are bounded already: between any two a message is kept."""
        over = len(self._holes) - MAX_HOLES
        if over > 0:
            del self._holes[: min(over, bisect_right(self._holes, cursor, key=lambda hole: hole.last))]


def _continues(before: Hole, after: Hole, cursor: int) -> bool:
    """True when the two are one run, of one reason, to be announced in one.

    A hole behind the cursor and one ahead of it never merge: the second is still to be announced, whole.
    """
    alike = before.reason is after.reason and before.lost is after.lost
    announced = before.announced or after.announced or before.last == cursor
    return before.last + 1 == after.first and alike and not announced
