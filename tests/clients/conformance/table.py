"""The table of docs/clients.md: which client passes which scenario. Written by a run, compared by a check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from clients.conformance.languages import LANGUAGES, SERVICE, Language
from tests.clients.conformance.scenarios import FOLDER, Scenario, load_scenarios

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
PASSED, FAILED, NOT_PLAYED, NOT_ITS_SIDE = "✓", "✗", "not played", ""
Column = tuple[Language, str]
Results = Mapping[tuple[str, str, str], str]
"""By the language, the side and the scenario."""
_BETWEEN: Final = re.compile(r"(?<=<!-- conformance: begin -->\n).*(?=<!-- conformance: end -->)", re.DOTALL)


def columns() -> list[Column]:
    """A client that has both sides has two: services first."""
    found = [(language, side) for language in LANGUAGES for side in language.sides]
    return sorted(found, key=lambda column: column[1] != SERVICE)


def rendered(results: Results) -> str:
    """The whole of what stands between the marks."""
    head = [f"{language} ({side})" for language, side in columns()]
    lines = [_row("scenario", head), _row("---", [":-:"] * len(head))]
    for scenario in load_scenarios():
        marks = [_mark(scenario, column, results) for column in columns()]
        lines.append(_row(f"[{scenario.name}](../clients/conformance/{scenario.theme}.yaml): {scenario.about}", marks))
    return "\n".join((*lines, "", f"Of the list `{digest()}`.", ""))


def digest() -> str:
    """Names the list as it was played: a scenario that changed since makes the table stale."""
    whole = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.yaml")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def write(results: Results, page: Path = PAGE) -> None:
    """Put the table into the page."""
    page.write_text(_BETWEEN.sub(lambda _: rendered(results), page.read_text("utf-8")), "utf-8")


def stale(page: Path = PAGE) -> str:
    """Why the page's table is not that of a whole run of this list, or nothing."""
    found = _BETWEEN.search(page.read_text("utf-8"))
    if found is None:
        return "it has no table"
    everything = {
        (language.name, side, scenario.name): PASSED for language, side in columns() for scenario in load_scenarios()
    }
    return "" if found[0] == rendered(everything) else "its table is not that of a run in which this list was passed"


def _mark(scenario: Scenario, column: Column, results: Results) -> str:
    language, side = column
    return results.get((language.name, side, scenario.name), NOT_PLAYED) if side in scenario.sides else NOT_ITS_SIDE


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"
