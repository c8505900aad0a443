"""Every client plays the conformance list, on each side that it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clients.conformance.languages import LANGUAGES, Language
from tests.clients.conformance.scenarios import Scenario, load_scenarios
from tests.clients.conformance.stage import Stage, staged
from tests.support.tools import lacking

CASES = [
    pytest.param(scenario, language, side, id=f"{language}-{side}-{scenario}")
    for language in LANGUAGES
    for side in language.sides
    for scenario in load_scenarios()
    if side in scenario.sides
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


@pytest.mark.timeout(300)  # the first of a language builds its runner
@pytest.mark.parametrize(("scenario", "language", "side"), CASES)
def test_scenario(stage: Stage, scenario: Scenario, language: Language, side: str) -> None:
    if language.missing:
        lacking(f"{language.missing}, for the {language} client,")
    stage.play(scenario, language, side)
