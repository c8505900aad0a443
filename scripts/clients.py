"""Builds, checks and generates the clients with their languages' own tools: `python scripts/clients.py check [go …]`.

A client whose tools are missing is passed over by name; with SIDECAR_TEST_NO_SKIP=1 that is a failure.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = ROOT / "build" / "clients"
Commands = tuple[tuple[str, ...], ...]
NPM_CI: Final = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")


@dataclass(frozen=True)
class Client:
    """One client: the programs it needs, and what its commands run in its folder, one after the other."""

    tools: tuple[str, ...]
    build: Commands
    check: Commands
    generate: Commands = ()

    @property
    def missing(self) -> str:
        """The first tool that this machine does not have, or nothing."""
        return next((tool for tool in self.tools if shutil.which(tool) is None), "")


_NODE: Final = ("node", "npm")
CLIENTS: Final = {
    "go": Client(
        tools=("go",),
        build=(("go", "build", "-o", "build/bin/conformance", "./conformance"),),
        check=(("sh", "check.sh"), ("sh", "generate.sh", "--check")),
        generate=(("sh", "generate.sh"),),
    ),
    "node": Client(
        tools=_NODE,
        build=(NPM_CI, ("npm", "run", "--silent", "build")),
        # Its examples are linted against what is built.
        check=(
            NPM_CI,
            ("npm", "run", "--silent", "build"),
            ("npm", "run", "--silent", "lint"),
            ("npm", "run", "--silent", "generate:check"),
        ),
        generate=(NPM_CI, ("npm", "run", "--silent", "generate")),
    ),
    "java": Client(
        tools=("java", "javac", "mvn"),
        build=(("mvn", "--quiet", "--batch-mode", "--file", "reactor.xml", "package", "-DskipTests"),),
        check=(("mvn", "--quiet", "--batch-mode", "-P", "lint", "verify", "-DskipTests"),),
    ),
    "web": Client(
        tools=_NODE,
        build=(NPM_CI, ("node", "scripts/build.mjs", "--test")),
        check=(
            NPM_CI,
            ("node", "scripts/build.mjs", "--test"),
            ("npm", "run", "--silent", "lint"),
            ("npm", "run", "--silent", "generate:check"),
        ),
        generate=(NPM_CI, ("npm", "run", "--silent", "generate")),
    ),
}
COMMANDS: Final = ("build", "check", "generate")


def build(name: str) -> Path:
    """Build one client and its conformance runner; quick where nothing has changed. Returns the client's folder.

    Raises CalledProcessError.
    """
    _run(name, "build")
    return ROOT / "clients" / name


@contextmanager
def building(name: str) -> Iterator[None]:
    """One process at a time builds a client: the others wait for it."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(name: str, command: str) -> None:
    folder = ROOT / "clients" / name
    with building(name):
        for words in getattr(CLIENTS[name], command):
            if words != NPM_CI or not _npm_is_current(folder):
                subprocess.run(words, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def _npm_is_current(folder: Path) -> bool:
    """Whether what is installed is what the lock file says: npm writes down what it has installed, and when."""
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    return installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime


def main(command: str, names: list[str]) -> int:
    """Run the command for those clients, or all; the exit status."""
    nothing_skipped = os.environ.get("SIDECAR_TEST_NO_SKIP") == "1"
    status = 0
    for name in names or list(CLIENTS):
        missing = CLIENTS[name].missing
        if missing:
            print(f"clients/{name}: {missing} is missing{'' if nothing_skipped else ', skipped'}", file=sys.stderr)
            status |= nothing_skipped
            continue
        try:
            _run(name, command)
        except subprocess.CalledProcessError as failed:
            print(f"clients/{name}: {' '.join(failed.cmd)} failed", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS or not set(sys.argv[2:]) <= CLIENTS.keys():
        sys.exit(f"usage: python scripts/clients.py {'|'.join(COMMANDS)} [{'|'.join(CLIENTS)}] …")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
