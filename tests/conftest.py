"""Rules for the whole suite."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any, Final

import hypothesis
import pytest

# An example's time is the machine's, not the product's.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

pytest.register_assert_rewrite("tests.support")  # what fails there says what it saw

SLOW_FOLDERS: Final = ("integration", "docs", "benchmarks", "faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers the long tests come first: what is left for the end, and for stealing, is short.

    Stealing takes from the end of another's list; so what a module of these folders sets up is set up once.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name not in SLOW_FOLDERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, Any]:
    """In CI nothing is skipped: with SIDECAR_TEST_NO_SKIP=1 a skip for a missing tool is a failure.

    One for a tool that a machine may not be able to have is none, where a test without it runs in its stead.
    """
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SIDECAR_TEST_NO_SKIP") == "1":
        report.outcome = "skipped" if has_stand_in(item) else "failed"
    return report


def has_stand_in(item: pytest.Item) -> bool:
    """Whether the test that `stands_in` names, of the same module, runs in this session too."""
    marker = item.get_closest_marker("stands_in")
    module = item.nodeid.rpartition("::")[0]
    return marker is not None and f"{module}::{marker.args[0]}" in {other.nodeid for other in item.session.items}
