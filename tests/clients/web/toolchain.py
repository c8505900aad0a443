"""The web client's own tools: what they need, and what they have built."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from tests.support.tools import lacking

ROOT: Final = Path(__file__).resolve().parents[3]
FOLDER: Final = ROOT / "clients" / "web"
NPM_CI: Final = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")


def installed() -> Path:
    """The client's folder, with what its lock file names in node_modules. Skips where Node or npm is missing."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            lacking(tool)
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        run(*NPM_CI)
    return FOLDER


@cache
def built() -> Path:
    """The client's folder, with the client, its tests and its runner built: once, whoever asks at the same time."""
    locks = ROOT / "build" / "clients"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / "web.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed()
        run("node", "scripts/build.mjs", "--test")
    return FOLDER


def run(*command: str, folder: Path = FOLDER, **environment: str) -> str:
    """What the command says; fails with all of it unless its status is 0."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout
