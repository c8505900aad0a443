"""The running sidecar that the tests of the web client share, and the client as its own tools build it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.built import built
from tests.support.running import RunningSidecar, running_sidecar

ORIGIN = "http://app.example"


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With its default settings, for pages of ORIGIN; each test has users of its own."""
    folder = tmp_path_factory.mktemp("clients-web")
    with running_sidecar(folder, SIDECAR_WEBSOCKET__ALLOWED_ORIGINS=f'["{ORIGIN}"]') as running:
        yield running


@pytest.fixture(scope="session")
def web() -> Path:
    """The folder of the client, built."""
    return built("web")
