"""The built Java client, its examples, and the running sidecar that they are tried against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.built import built as client_built
from tests.support.running import RunningSidecar, running_sidecar


@pytest.fixture(scope="session")
def built() -> None:
    """The client, its conformance runner and the examples, packaged."""
    client_built("java")


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    with running_sidecar(tmp_path_factory.mktemp("clients-java")) as running:
        yield running
