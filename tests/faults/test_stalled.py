"""Invariants 17 and 18: what those who read nothing cost, by the bench's own work with fewer of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.works.plan import Plan
from benchmarks.works.stalled import stalled

MOST_MEMORY: Final = 1.5
"""Of the outbox's own bounds: what large messages cost the process once is spread over fewer readers here. The bench
has 1,000 of them, and 1.0."""
MOST_TIME: Final = 4.0
"""How many times longer another's p99 may be here. The bench has a machine of its own, and 2."""


@dataclass(frozen=True, slots=True)
class Fewer(Plan):
    """A fifth of the readers and of the messages."""

    def count(self, full: int) -> int:
        return full // 5

    def triples(self, full: int = 0) -> int:
        return 5


async def test_stalled_readers_cost_bounded_memory_and_nobody_elses_time() -> None:
    memory, beside = await stalled(Fewer())
    assert memory.ratio is not None
    assert memory.ratio.median <= MOST_MEMORY, memory
    assert beside.ratio is not None
    assert beside.ratio.median <= MOST_TIME, beside
