"""Fixtures of the operations edge's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sidecar.ops.development import DevelopmentSite
from sidecar.ops.edge import OpsEdge, OpsSettings

MakeEdge = Callable[..., Awaitable[OpsEdge]]


@pytest.fixture
async def make_edge() -> AsyncIterator[MakeEdge]:
    """Makes edges that listen on a free port of loopback; closes them."""
    made: list[OpsEdge] = []

    async def make(**arguments: Any) -> OpsEdge:
        edge = OpsEdge(OpsSettings("127.0.0.1", 0), **({"alive": lambda: True, "ready": lambda: True} | arguments))
        made.append(edge)
        await edge.start()
        return edge

    yield make
    for edge in made:
        await edge.close()


@pytest.fixture
def site() -> DevelopmentSite:
    """A site whose tokens say whom they are for."""
    return DevelopmentSite("ws://127.0.0.1:8080/v1/connect", lambda subject: f"token-of-{subject}")
