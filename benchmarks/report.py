"""The results as text for a terminal, as JSON, and as Markdown between the markers of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.measure import Spread
from benchmarks.results import RATIO, Pace, Result, Target

Row = tuple[str, ...]

COST_HEAD: Final[Row] = ("work", "sidecar", "against", "ratio (10–90 %)", "noise (10–90 %)", "target", "verdict", "n")
PACE_HEAD: Final[Row] = ("work", "side", "a second", "p50", "p99", "p99.9")


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, where, and whether it may be taken for a measurement at all."""

    results: Sequence[Result]
    facts: dict[str, str]
    quick: bool = False

    def text(self) -> str:
        """Two tables and the notes, in columns."""
        head = ["QUICK RUN: shows that it works; its figures mean nothing", ""] if self.quick else []
        facts = [f"{name:<10} {value}" for name, value in self.facts.items()]
        costs = columns([COST_HEAD, *map(_cost_row, self.results)])
        paces = columns([PACE_HEAD, *_pace_rows(self.results)])
        notes = [f"{result.title}: {result.note}" for result in self.results if result.note]
        return "\n".join([*head, *facts, "", *costs, "", *paces, "", *notes])

    def json(self) -> str:
        """Everything, with the verdicts."""
        results = [
            asdict(result) | {"target": result.target and asdict(result.target), "verdict": result.verdict}
            for result in self.results
        ]
        return json.dumps({"quick": self.quick, "facts": self.facts, "results": results}, indent=2, ensure_ascii=False)

    def markdown(self) -> str:
        """The same as tables of a page."""
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        costs = markdown_table(COST_HEAD, map(_cost_row, self.results))
        paces = markdown_table(PACE_HEAD, _pace_rows(self.results))
        notes = [f"- {result.title}: {result.note}" for result in self.results if result.note]
        return "\n".join([*facts, "", *costs, "", *paces, "", *notes])


def between_markers(page: str, name: str, text: str) -> str:
    """The page with the text between its markers of that name. Raises ValueError unless it has both, in order."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page needs {begin} and {end}, in this order")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _cost_row(result: Result) -> Row:
    return (
        result.title,
        _amount(result.ours, result.unit),
        "" if result.floor is None else f"{result.floor_is}: {_amount(result.floor, result.unit)}",
        _spread(result.ratio, RATIO),
        _spread(result.noise),
        _bound(result.target),
        result.verdict,
        str(result.samples or ""),
    )


def _pace_rows(results: Iterable[Result]) -> list[Row]:
    return [_pace_row(result.title.partition(":")[0], pace) for result in results for pace in result.paces]


def _pace_row(work: str, pace: Pace) -> Row:
    waits = tuple(f"{wait * 1e3:.1f} ms" for wait in (pace.p50_s, pace.p99_s, pace.p999_s))
    return (work, pace.side, f"{pace.rate:,.0f}", *waits)


def _bound(target: Target | None) -> str:
    return "" if target is None else f"{'≥' if target.at_least else '≤'} {target.bound:,g} {target.unit}"


def _amount(value: float | None, unit: str) -> str:
    """Three digits, with at most two of them after the point."""
    if value is None:
        return ""
    digits = max(0, 3 - len(str(int(value))))
    return f"{value:,.{digits}f} {unit}"


def _spread(spread: Spread | None, unit: str = "") -> str:
    if spread is None:
        return ""
    middle = f"{spread.median:.2f} {unit}".rstrip()
    return middle if spread.low == spread.high else f"{middle} ({spread.low:.2f}–{spread.high:.2f})"


def columns(rows: Sequence[Row]) -> list[str]:
    """Rows of a terminal's table, the first its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown_table(head: Row, rows: Iterable[Row]) -> list[str]:
    """Lines of a page's table."""
    return [_markdown_row(head), _markdown_row(("---",) * len(head)), *map(_markdown_row, rows)]


def _markdown_row(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"
