"""The running sidecar and the clients that the tests of the Python client share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sidecar_client import AsyncSidecarClient
from tests.support.running import RunningSidecar, running_sidecar


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With its default settings; each test has users of its own."""
    with running_sidecar(tmp_path_factory.mktemp("clients-python")) as running:
        yield running


@pytest.fixture
async def client(sidecar: RunningSidecar) -> AsyncIterator[AsyncSidecarClient]:
    async with AsyncSidecarClient(endpoint=sidecar.grpc_target, service_token=sidecar.service_token) as made:
        yield made
