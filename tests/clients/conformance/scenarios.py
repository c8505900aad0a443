"""The conformance list as it is read from clients/conformance: scenarios, their sides and their steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from clients.conformance.languages import SERVICE, USER

FOLDER: Final = Path(__file__).resolve().parents[3] / "clients" / "conformance"


@dataclass(frozen=True)
class Scenario:
    """One scenario. `settings` is TOML of a sidecar of its own; None: it shares one with others."""

    name: str
    about: str
    sides: tuple[str, ...]
    steps: tuple[dict[str, Any], ...]
    settings: str | None
    theme: str

    def __str__(self) -> str:
        return self.name


def load_scenarios() -> tuple[Scenario, ...]:
    """All of them, in their order in the files. Raises ValueError for one that is no scenario."""
    found = [_scenario(said, path.stem) for path in _files() for said in yaml.safe_load(path.read_text("utf-8"))]
    names = [scenario.name for scenario in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two scenarios of one name: {sorted(names)}")
    return tuple(found)


def _files() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def _scenario(said: dict[str, Any], theme: str) -> Scenario:
    sides = tuple(said["sides"])
    unknown = said.keys() - {"scenario", "about", "sides", "sidecar", "steps"}
    if unknown or not sides or not set(sides) <= {SERVICE, USER}:
        raise ValueError(f"{said['scenario']}: {sorted(unknown)}, sides {sides}")
    return Scenario(said["scenario"], said["about"], sides, tuple(said["steps"]), said.get("sidecar"), theme)
