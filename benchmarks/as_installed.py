"""Runs the sidecar as where requirements.lock alone is installed: `python -m benchmarks.as_installed NAMES ARGUMENTS`.

Libraries import what they find (structlog, for one, a renderer that the linters bring along), and users do not have it.
NAMES are the top-level packages, between commas, that are not to be found; ARGUMENTS are the sidecar's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

OWN = {"ws-sidecar", "ws-sidecar-api", "ws-sidecar-client"}


class Absent(MetaPathFinder):
    """Finds none of these packages, though they are there."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for those; leave the others to those who find them."""
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def packages_beyond(lock: Path) -> frozenset[str]:
    """The installed top-level packages of which no distribution stands in that lock file."""
    locked = OWN | set(re.findall(r"^([a-z0-9._-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    normal = {
        name: {re.sub(r"[-_.]+", "-", one).lower() for one in of} for name, of in packages_distributions().items()
    }
    return frozenset(name for name, of in normal.items() if not of & locked)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent(frozenset(sys.argv.pop(1).split(","))))

    from sidecar.cli import main

    main(prog_name="sidecar")
