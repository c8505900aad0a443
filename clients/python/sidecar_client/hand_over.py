"""Events for one reader, instead of handlers: each is handled when the next is asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from sidecar_client.agent_events import AgentEvent

if TYPE_CHECKING:
    from sidecar_client.agent_loop import AgentLoop


class HandOver:
    """A handler that waits until a reader has taken its event and come back for more."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[AgentEvent, asyncio.Future[None]]] = deque()
        self._taken: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()

    async def handle(self, event: AgentEvent) -> None:
        """Returns when the event is dealt with. Cancelled, one that was not taken yet is passed over."""
        handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, handled))
        self._changed.set()
        await handled

    def wake(self) -> None:
        """No further event may come."""
        self._changed.set()

    async def next(self, running: AgentLoop) -> AgentEvent:
        """The next event, acknowledged with that; the one before is dealt with. Safe to cancel.

        Raises StopAsyncIteration at the end.
        """
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        while True:
            while self._waiting:
                event, self._taken = self._waiting.popleft()
                if not self._taken.done():
                    running.begun(event)
                    return event
            if running.over:
                running.raise_refusal()
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
