"""What a work hands to the report: figures, what they are held against, and what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.measure import Comparison, S, Spread, Window, median_cost, quantile

RATIO: Final = "×"


@dataclass(frozen=True, slots=True)
class Target:
    """At most so much, or at least: of the floor where the unit is ×, else of what is measured."""

    bound: float
    unit: str = RATIO
    at_least: bool = False

    def missed_by(self, reached: float) -> float:
        """The share of the bound by which that is on its wrong side; 0 and below is met."""
        over = reached / self.bound - 1
        return -over if self.at_least else over


TARGETS: Final = {
    "unary": Target(1.3),
    "deliver-100": Target(1.4),
    "deliver-1": Target(1.25),
    "unary-acks": Target(1.3),
    "deliver-100-acks": Target(1.4),
    "sqlite": Target(2.5),
    "sqlite-rate": Target(15_000, "/s", at_least=True),
    "sqlite-silent-rate": Target(15_000, "/s", at_least=True),
    "resume": Target(50.0, "ms"),
    "storm": Target(15.0, "s"),
    "stalled-memory": Target(1.0),
    "stalled-beside": Target(2.0),
    "agent-round-p50": Target(1.5),
    "agent-round-p99": Target(1.5),
    "agent-round-alone-p50": Target(1.5),
    "agent-round-alone-p99": Target(1.5),
    "token-streams": Target(1.6),
    "client-go-share": Target(90.0, "%", at_least=True),
    "client-node-share": Target(90.0, "%", at_least=True),
    "client-java-share": Target(90.0, "%", at_least=True),
    "connect": Target(2.5),
    "memory": Target(1.5),
    "crowd-active": Target(1.25),
    "crowd-memory": Target(1.1),
    "start": Target(1.0, "s"),
    "idle-rss": Target(85.0, "MB"),
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one side went under the load, and how long a caller waited there: medians over all windows."""

    side: str
    rate: float
    p50_s: float
    p99_s: float
    p999_s: float

    @classmethod
    def of(cls, side: str, windows: Sequence[Window]) -> Pace:
        """The pace in these windows; the latencies of all of them together."""
        latencies = sorted(latency for window in windows for latency in window.latencies_s)
        rate = quantile(sorted(window.rate for window in windows), 0.5)
        return cls(side, rate, *(quantile(latencies, fraction) for fraction in (0.5, 0.99, 0.999)))


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report.

    `ours` and `floor` are medians in `unit`. `ratio` is ours against the floor, `noise` the floor against itself; both
    are absent where there is nothing to compare with. `floor_is` says what the floor was. A work that was not run has a
    note and no figures.
    """

    key: str
    title: str
    unit: str = ""
    ours: float | None = None
    floor: float | None = None
    floor_is: str = "floor"
    ratio: Spread | None = None
    noise: Spread | None = None
    samples: int = 0
    paces: tuple[Pace, ...] = ()
    note: str = ""

    @property
    def target(self) -> Target | None:
        """What was asked for; None where the figure is only told."""
        return TARGETS.get(self.key)

    @property
    def verdict(self) -> str:
        """`met`, `missed by x %`, `told` without a target, or `not run`."""
        reached = self.ratio.median if self.ratio is not None else self.ours
        if reached is None:
            return "not run"
        if self.target is None:
            return "told"
        missed_by = self.target.missed_by(reached)
        return "met" if missed_by <= 0 else f"missed by {missed_by:.1%}".replace("%", " %")


def compared(
    key: str,
    title: str,
    comparison: Comparison[S],
    *,
    unit: str,
    units_of_cost: float,
    floor_is: str = "floor",
    note: str = "",
) -> Result:
    """The line of a comparison; `units_of_cost` of the unit make up a cost of one."""
    return Result(
        key=key,
        title=title,
        unit=unit,
        ours=median_cost(comparison.ours) * units_of_cost,
        floor=median_cost(comparison.floor) * units_of_cost,
        floor_is=floor_is,
        ratio=comparison.ratio,
        noise=comparison.noise,
        samples=len(comparison.triples),
        note=note,
    )


def compared_windows(
    key: str,
    title: str,
    comparison: Comparison[Window],
    *,
    floor_is: str = "floor",
    ours_is: str = "sidecar",
    note: str = "",
) -> Result:
    """The line of compared stretches of work, with the pace of both sides; costs in microseconds of CPU."""
    line = compared(key, title, comparison, unit="µs", units_of_cost=1e6, floor_is=floor_is, note=note)
    paces = (Pace.of(floor_is, comparison.floor), Pace.of(ours_is, comparison.ours))
    return replace(line, paces=paces)
