"""Outbox stores that a test leads: one that answers when it is told to, one with a bug."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.core.message import Durability
from sidecar.storage.memory import MemoryOutboxStore
from tests.support.doubles import LaterStore


class ToldStore(LaterStore):
    """Answers later, and tells the test when it was asked."""

    def __init__(self) -> None:
        super().__init__(Durability.DISK)
        self._asked = asyncio.Event()

    def append(self, *arguments: Any) -> bool:
        self._asked.set()
        return super().append(*arguments)

    async def asked(self, count: int) -> None:
        """Once so many appends wait."""
        async with asyncio.timeout(10):
            while len(self.waiting) < count:
                self._asked.clear()
                await self._asked.wait()


class BrokenStore(MemoryOutboxStore):
    """Has a bug, and the text of its error holds what nobody may see; but for the keys that are spared."""

    def __init__(self) -> None:
        self._spared: set[str] = set()

    def spare(self, isolation_key: str) -> None:
        self._spared.add(isolation_key)

    def append(self, isolation_key: str, *arguments: Any) -> bool:
        if isolation_key not in self._spared:
            raise RuntimeError(f"a bug with {isolation_key} and {arguments}")
        return True
