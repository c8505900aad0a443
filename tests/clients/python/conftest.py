"""The running sidecar and the clients that the tests of the Python client share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sidecar_client import AsyncSidecarClient
from tests.clients.python.both import KINDS, opened
from tests.support.running import RunningSidecar, running_sidecar


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With its default settings; each test has users of its own."""
    with running_sidecar(tmp_path_factory.mktemp("clients-python")) as running:
        yield running


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """One whose store does what a payload says."""
    folder = tmp_path_factory.mktemp("clients-python-faulty")
    with running_sidecar(folder, module="tests.support.faulty_sidecar") as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(sidecar: RunningSidecar, kind: str) -> AsyncIterator[Any]:
    """A client of either kind; its calls are awaited."""
    async with opened(kind, endpoint=sidecar.grpc_target, service_token=sidecar.service_token) as made:
        yield made


@pytest.fixture
def open_client(kind: str) -> Callable[..., Any]:
    """Opens a client of either kind, for as long as a block lasts."""
    return lambda **settings: opened(kind, **settings)


@pytest.fixture
async def service(sidecar: RunningSidecar) -> AsyncIterator[AsyncSidecarClient]:
    """A service that may send to the users of `sidecar`."""
    async with AsyncSidecarClient(endpoint=sidecar.grpc_target, service_token=sidecar.service_token) as made:
        yield made
