"""Somebody who has nothing to do with it, and whose traffic must go on through whatever others do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.running import RunningSidecar, Service, User


class Bystander:
    """A user who is sent one message after another, each when the one before has arrived."""

    def __init__(self, user: User, service: Service) -> None:
        self.user = user
        self._service = service
        self._arrived = 0
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._converse())

    async def _converse(self) -> None:
        while True:
            payload = {"owner": self.user.subject, "number": self._arrived + 1}
            receipt = await self._service.send(
                self.user.isolation_key, self.user.context_token, json.dumps(payload).encode()
            )
            assert receipt.sequence == self._arrived + 1
            frame = await self.user.frame()
            assert frame["type"] == "message"
            assert frame["sequence"] == self._arrived + 1
            assert frame["data"] == payload
            self._arrived += 1
            self._moved.set()

    async def goes_on(self, further: int = 2) -> None:
        """Returns once so many further messages made their whole way; fails when one was lost, strayed or held up."""
        goal = self._arrived + further
        async with asyncio.timeout(10):
            while self._arrived < goal:
                self._moved.clear()
                moved = asyncio.create_task(self._moved.wait())
                await asyncio.wait((moved, self._task), return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
                if self._task.done():
                    self._task.result()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def bystander(sidecar: RunningSidecar, subject: str = "bystander") -> AsyncIterator[Bystander]:
    """A bystander's traffic around a block; on the way out it must still go on, without a gap or a repeat."""
    async with sidecar.user(subject) as user, sidecar.service() as service:
        other = Bystander(user, service)
        try:
            await other.goes_on()
            yield other
            await other.goes_on()
        finally:
            await other.stop()
