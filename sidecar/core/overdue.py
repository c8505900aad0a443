"""The messages of one outbox whose time is over and that must stay for now: promised, or not yet confirmed.

They have left the queues by expiry, which would else have to be searched behind them, again at each look.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.core.outbox import OutboxEntry

_SEQUENCE: Final = attrgetter("sequence")


class Overdue:
    """See the module. In the order of their sequences, each once."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[OutboxEntry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: OutboxEntry) -> None:
        """Set one more aside."""
        insort(self._entries, entry, key=_SEQUENCE)

    def take(self, cursor: int, promised: int, confirmed: int) -> list[OutboxEntry]:
        """Those that need not stay any more: what is written by now, and what is confirmed and was not promised.

        What must stay are two runs of sequences, so that none of them is looked at, however many there are.
        """
        entries = self._entries
        positions = (cursor, max(cursor, promised), confirmed)
        first, second, third = (bisect_right(entries, position, key=_SEQUENCE) for position in positions)
        taken = entries[:first] + entries[second:third]
        if taken:
            self._entries = entries[first:second] + entries[third:]
        return [entry for entry in taken if entry.kept]

    def forget_what_left(self) -> None:
        """Only what is kept stays."""
        self._entries = [entry for entry in self._entries if entry.kept]
