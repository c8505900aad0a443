"""The running sidecar that the tests of the pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.running import RunningSidecar, running_sidecar


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With its default settings; each test has users of its own."""
    with running_sidecar(tmp_path_factory.mktemp("docs")) as running:
        yield running
