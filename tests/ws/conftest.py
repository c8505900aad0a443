"""Fixtures of the WebSocket edge's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sidecar.core.limits import Limits
from tests.ws.harness import Harness

MakeHarness = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def make_edge() -> AsyncIterator[MakeHarness]:
    """Makes running edges, with settings by name and the core's `limits`; ends them."""
    running: list[Harness] = []

    async def make(limits: Limits | None = None, **settings: Any) -> Harness:
        harness = Harness(settings, limits)
        await harness.start()
        running.append(harness)
        return harness

    yield make
    for harness in running:
        await harness.close()


@pytest.fixture
async def edge(make_edge: MakeHarness) -> Harness:
    """A running edge with default settings."""
    return await make_edge()
