"""What the bench makes of its results."""

from __future__ import annotations

import json

import pytest

from benchmarks.measure import Amount, Comparison, Spread, Triple, Window
from benchmarks.report import Report, between_markers
from benchmarks.results import TARGETS, Pace, Result, Target, compared, compared_windows

PAGE = "# A page\n\n<!-- bench: begin -->\nold\n<!-- bench: end -->\n\nThe rest.\n"


def windows(floor_s: float, our_s: float) -> Comparison[Window]:
    floor = Window(100, floor_s, 2.0, [0.001, 0.002])
    return Comparison((Triple(floor, Window(100, our_s, 4.0, [0.003]), floor),))


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (Result("unary", "t", ours=1.0, ratio=Spread(1.3, 1.0, 2.0)), "met"),
        (Result("unary", "t", ours=1.0, ratio=Spread(1.43, 1.0, 2.0)), "missed by 10.0 %"),
        (Result("start", "t", "s", ours=1.0), "met"),
        (Result("idle-rss", "t", "MB", ours=170.0), "missed by 100.0 %"),
        (Result("sqlite-rate", "t", "/s", ours=15_000.0), "met"),
        (Result("sqlite-rate", "t", "/s", ours=30_000.0), "met"),
        (Result("sqlite-rate", "t", "/s", ours=13_500.0), "missed by 10.0 %"),
        (Result("crowd-spread", "t", ours=1.0, ratio=Spread(9.0, 9.0, 9.0)), "told"),
        (Result("unary", "t", note="not run: needs 7 descriptors"), "not run"),
    ],
)
def test_a_verdict_holds_the_ratio_or_the_figure_against_the_target(result: Result, verdict: str) -> None:
    assert result.verdict == verdict


def test_the_targets_are_those_asked_for() -> None:
    at_most = {name: (target.bound, target.unit) for name, target in TARGETS.items() if not target.at_least}
    assert at_most == {
        "unary": (1.3, "×"),
        "deliver-100": (1.4, "×"),
        "deliver-1": (1.25, "×"),
        "unary-acks": (1.3, "×"),
        "deliver-100-acks": (1.4, "×"),
        "sqlite": (2.5, "×"),
        "resume": (50.0, "ms"),
        "storm": (15.0, "s"),
        "stalled-memory": (1.0, "×"),
        "stalled-beside": (2.0, "×"),
        "agent-round-p50": (1.5, "×"),
        "agent-round-p99": (1.5, "×"),
        "agent-round-alone-p50": (1.5, "×"),
        "agent-round-alone-p99": (1.5, "×"),
        "token-streams": (1.6, "×"),
        "connect": (2.5, "×"),
        "memory": (1.5, "×"),
        "crowd-active": (1.25, "×"),
        "crowd-memory": (1.1, "×"),
        "start": (1.0, "s"),
        "idle-rss": (85.0, "MB"),
    }
    assert {name: target for name, target in TARGETS.items() if target.at_least} == {
        "sqlite-rate": Target(15_000, "/s", at_least=True),
        "sqlite-silent-rate": Target(15_000, "/s", at_least=True),
        "client-go-share": Target(90.0, "%", at_least=True),
        "client-node-share": Target(90.0, "%", at_least=True),
        "client-java-share": Target(90.0, "%", at_least=True),
    }


def test_costs_are_told_in_the_result_s_unit() -> None:
    result = compared_windows("unary", "a call", windows(floor_s=0.01, our_s=0.012))
    assert result.unit == "µs"
    assert result.floor == pytest.approx(100.0)
    assert result.ours == pytest.approx(120.0)
    assert result.ratio is not None
    assert result.ratio.median == pytest.approx(1.2)
    kilobytes = compared(
        "memory", "each", Comparison((Triple(Amount(2e4), Amount(3e4), Amount(2e4)),)), unit="kB", units_of_cost=1e-3
    )
    assert kilobytes.floor == pytest.approx(20.0)
    assert kilobytes.ours == pytest.approx(30.0)


def test_a_pace_takes_the_latencies_of_all_windows_together() -> None:
    pace = Pace.of("floor", [Window(100, 1.0, 1.0, [2.0, 0.0]), Window(300, 1.0, 1.0, [1.0])])
    assert (pace.side, pace.rate, pace.p50_s) == ("floor", 200.0, 1.0)
    assert pace.p99_s == pytest.approx(1.98)
    assert pace.p999_s == pytest.approx(1.998)


def report(quick: bool = False) -> Report:
    results = [
        compared_windows("unary", "SendToUser: CPU a call", windows(0.01, 0.0143)),
        Result("start", "Start", "s", ours=0.591, samples=9, note="10–90 %: 0.57–0.61 s"),
        Result("crowd", "Many", note="not run: needs 16,200 descriptors, has 1,024"),
    ]
    return Report(results, {"machine": "a machine"}, quick)


def test_the_text_has_a_line_a_result_and_a_line_a_side() -> None:
    text = report().text()
    assert "QUICK" not in text
    line = next(line for line in text.splitlines() if line.startswith("SendToUser: CPU a call"))
    assert [cell.strip() for cell in line.split("  ") if cell] == [
        "SendToUser: CPU a call", "143 µs", "floor: 100 µs", "1.43 ×", "1.00", "≤ 1.3 ×", "missed by 10.0 %", "1",
    ]  # fmt: skip
    assert "0.59 s" in text
    assert "Many: not run: needs 16,200 descriptors, has 1,024" in text
    pace = next(line for line in text.splitlines() if "sidecar  " in line and "ms" in line)
    assert [cell.strip() for cell in pace.split("  ") if cell] == ["SendToUser", "sidecar", "25", *["3.0 ms"] * 3]


def test_a_target_says_on_which_side_of_it_is_right() -> None:
    report = Report([Result("sqlite-rate", "Messages", "/s", ours=20_500.0)], {})
    line = next(line for line in report.text().splitlines() if line.startswith("Messages"))
    assert [cell.strip() for cell in line.split("  ") if cell] == ["Messages", "20,500 /s", "≥ 15,000 /s", "met"]


def test_a_quick_run_says_that_it_means_nothing() -> None:
    assert report(quick=True).text().startswith("QUICK RUN")
    assert json.loads(report(quick=True).json())["quick"] is True


def test_the_json_has_everything_and_the_verdicts() -> None:
    document = json.loads(report().json())
    assert document["quick"] is False
    assert document["facts"] == {"machine": "a machine"}
    unary, start, crowd = document["results"]
    assert unary["verdict"] == "missed by 10.0 %"
    assert unary["target"] == {"bound": 1.3, "unit": "×", "at_least": False}
    assert unary["ratio"].keys() == {"median", "low", "high"}
    assert [pace["side"] for pace in unary["paces"]] == ["floor", "sidecar"]
    assert (start["verdict"], crowd["verdict"]) == ("met", "not run")
    assert crowd["ours"] is None


def test_the_page_keeps_all_but_what_is_between_its_markers() -> None:
    page = between_markers(PAGE, "bench", "new")
    assert page == "# A page\n\n<!-- bench: begin -->\n\nnew\n\n<!-- bench: end -->\n\nThe rest.\n"
    assert between_markers(page, "bench", "new") == page


@pytest.mark.parametrize("page", ["", "<!-- bench: begin -->", "<!-- bench: end --> <!-- bench: begin -->"])
def test_a_page_without_its_markers_is_not_written(page: str) -> None:
    with pytest.raises(ValueError, match="needs <!-- bench: begin --> and <!-- bench: end -->"):
        between_markers(page, "bench", "new")


def test_every_row_of_a_markdown_table_has_the_same_cells() -> None:
    rows = [line for line in report().markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 + 2 + 2
    assert {row.count("|") for row in rows} == {9, 7}
