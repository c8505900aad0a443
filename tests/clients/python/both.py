"""Both clients by one face, so that each test holds for both: the one for threads is called in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

from sidecar_client import AsyncSidecarClient, SidecarClient

KINDS: Final = ("aio", "threads")


class InThreads:
    """Calls the methods of something in threads, so that they can be awaited."""

    def __init__(self, inner: Any, pool: ThreadPoolExecutor) -> None:
        self._inner = inner
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if not callable(inner):
            return inner
        if name == "sender":
            return lambda **settings: InThreads(inner(**settings), self._pool)
        return lambda *given, **named: asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: inner(*given, **named)
        )

    async def __aenter__(self) -> InThreads:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@asynccontextmanager
async def opened(kind: str, **settings: Any) -> AsyncIterator[Any]:
    """A client of that kind, closed in the end."""
    if kind == "aio":
        async with AsyncSidecarClient(**settings) as client:
            yield client
        return
    with ThreadPoolExecutor(64) as pool:
        async with InThreads(SidecarClient(**settings), pool) as client:
            yield client
