"""Plays the whole list with every client and writes the table of docs/clients.md; `--check` compares it alone."""

from __future__ import annotations

import sys

from tests.clients.conformance import table
from tests.clients.conformance.scenarios import load_scenarios
from tests.clients.conformance.stage import Stage, staged

Results = dict[tuple[str, str, str], str]


def main(arguments: list[str]) -> int:
    """The exit status: 1 for a table that is stale, or a scenario that was not passed."""
    if arguments == ["--check"]:
        why = table.stale()
        if why:
            print(f"docs/clients.md: {why}: run `make conformance`", file=sys.stderr)
        return 1 if why else 0
    with staged() as stage:
        results = play_all(stage)
    table.write(results)
    return 0 if set(results.values()) == {table.PASSED} else 1


def play_all(stage: Stage) -> Results:
    """Every scenario with every client that this machine can run."""
    results: Results = {}
    for language, side in table.columns():
        if language.missing:
            print(f"{language} ({side}): {language.missing} is missing, skipped")
            continue
        for scenario in load_scenarios():
            if side in scenario.sides:
                print(f"{language} ({side}): {scenario.name}", flush=True)
                try:
                    stage.play(scenario, language, side)
                    result = table.PASSED
                except Exception as failed:  # noqa: BLE001 - whatever it is, it is told, and the others are played
                    print(f"  {failed}", file=sys.stderr)
                    result = table.FAILED
                results[language.name, side, scenario.name] = result
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
