"""Fixtures of the gRPC edge's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.rig import Rig

MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    """Makes running edges, with `limits`, `store`, `services` and RpcSettings by name; ends them."""
    running: list[Rig] = []

    async def make(**arguments: Any) -> Rig:
        rig = Rig(tmp_path, **arguments)
        await rig.start()
        running.append(rig)
        return rig

    yield make
    for rig in running:
        await rig.close()


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    """A running edge with default settings."""
    return await make_rig()
