"""How much of each work is done."""

from __future__ import annotations

from dataclasses import dataclass

TRIPLES = 15
QUICK_TRIPLES = 1
QUICK_DIVISOR = 20
SETTLE_S = 2.0
QUICK_SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run, or a quick one that shows that everything works and means nothing else."""

    quick: bool = False

    def triples(self, full: int = TRIPLES) -> int:
        """How many floor-ours-floor triples."""
        return min(full, QUICK_TRIPLES) if self.quick else full

    def count(self, full: int) -> int:
        """How many messages, sockets or users."""
        return full // QUICK_DIVISOR if self.quick else full

    @property
    def settle_s(self) -> float:
        """Two of the sidecar's ticks: what is done once in the background is done."""
        return QUICK_SETTLE_S if self.quick else SETTLE_S
