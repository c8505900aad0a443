"""The Node client as it is built and as it is installed, and a sidecar for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.built import built as client_built
from tests.support.running import RunningSidecar, running_sidecar

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "clients" / "node"
QUIETLY = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefer-offline")


def npm(folder: Path, *words: str) -> str:
    """Run npm there; its standard output. Fails with what it said."""
    done = subprocess.run(["npm", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built() -> Path:
    """The client's folder, built."""
    return client_built("node")


@pytest.fixture(scope="session")
def project(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project with what `npm pack` gives, and Express for the example."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text(json.dumps({"name": "empty", "private": True, "type": "module"}))
    packed = json.loads(npm(built, "pack", "--json", "--ignore-scripts", "--pack-destination", str(folder)))
    (archive,) = packed if isinstance(packed, list) else packed.values()
    npm(folder, "install", *QUIETLY, f"./{archive['filename']}", "express@^5.2.0")
    return folder


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With its default settings; each test has users of its own."""
    with running_sidecar(tmp_path_factory.mktemp("clients-node")) as running:
        yield running
