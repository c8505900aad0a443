"""The table of docs/clients.md: stale as soon as the list, the clients or a result is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conformance import table
from tests.clients.conformance.scenarios import load_scenarios

MARKS = "before\n<!-- conformance: begin -->\n<!-- conformance: end -->\nafter\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "clients.md"
    path.write_text(MARKS)
    return path


def everything(result: str = table.PASSED) -> dict[tuple[str, str, str], str]:
    return {
        (language.name, side, scenario.name): result
        for language, side in table.columns()
        for scenario in load_scenarios()
    }


def test_a_table_of_a_whole_run_is_fresh(page: Path) -> None:
    assert table.stale(page)
    table.write(everything(), page)
    assert table.stale(page) == ""
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    table.write(everything(), page)
    assert table.stale(page) == ""


def test_one_failure_is_shown_and_makes_it_stale(page: Path) -> None:
    language, side = table.columns()[0]
    scenario = next(each for each in load_scenarios() if side in each.sides)
    table.write(everything() | {(language.name, side, scenario.name): table.FAILED}, page)
    assert page.read_text().count(table.FAILED) == 1
    assert table.stale(page)


def test_what_was_not_played_is_said(page: Path) -> None:
    table.write({}, page)
    assert table.NOT_PLAYED in page.read_text()
    assert table.PASSED not in page.read_text()
    assert table.stale(page)


def test_a_changed_list_makes_it_stale(page: Path) -> None:
    table.write(everything(), page)
    page.write_text(page.read_text().replace(table.digest(), "of another"))
    assert table.stale(page)


def test_a_page_without_a_place_for_it_is_stale(page: Path) -> None:
    page.write_text("no table\n")
    assert table.stale(page)
