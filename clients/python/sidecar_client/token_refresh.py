"""Keeps the tokens of living contexts good: of those that the agent or its caller still holds, each before it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final
from weakref import WeakSet, ref

from sidecar_client.agent_context import AgentContext
from sidecar_client.errors import ManagerGone, SidecarError, TokenError
from sidecar_client.values import ContextToken

AGAIN_S: Final = 5.0
"""When to try again what failed for now; a token has minutes left then."""

logger = logging.getLogger("sidecar_client")


class TokenRefresh:
    """See the module. `now` is monotonic seconds; `wait` returns when an event is set, or after so many seconds."""

    def __init__(
        self,
        refresh: Callable[[str], Awaitable[ContextToken]],
        now: Callable[[], float],
        wait: Callable[[asyncio.Event, float], Awaitable[None]],
    ) -> None:
        self._refresh = refresh
        self._now = now
        self._wait = wait
        self._due: list[tuple[float, int, ref[AgentContext]]] = []
        self._lapsed: WeakSet[AgentContext] = WeakSet()
        """Those whose token was refused, until an event brings another."""
        self._order = count()
        self._sooner = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def keep(self, context: AgentContext) -> None:
        """Refresh that context's token as long as somebody holds the context. Once a context."""
        self._push(context, context.refresh_at)

    def renewed(self, context: AgentContext) -> None:
        """An event has come for a context that is kept, perhaps with another token than one that was refused."""
        if context in self._lapsed and context.refresh_at > self._now():
            self._lapsed.discard(context)
            self.keep(context)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            now = self._now()
            while self._due and self._due[0][0] <= now:
                _, _, held = heappop(self._due)
                context = held()
                if context is not None and not context.ended:
                    await self._look_at(context, now)
                del context  # what nobody else holds is not held here either
            self._sooner.clear()
            await self._wait(self._sooner, self._due[0][0] - now if self._due else inf)

    async def _look_at(self, context: AgentContext, now: float) -> None:
        again_at = context.refresh_at
        if again_at <= now:
            again_at = await self._renew(context)
        self._push(context, again_at)

    async def _renew(self, context: AgentContext) -> float:
        asked = context.context_token
        try:
            token = await self._refresh(asked)
        except ManagerGone:
            context.ended = True
            return inf
        except TokenError:
            if context.context_token != asked:  # an event has brought another meanwhile
                return context.refresh_at
            self._lapsed.add(context)  # it is good no more; the next event brings another
            return inf
        except SidecarError as error:
            logger.warning("a context token could not be refreshed: %s", error.reason or error.code.name)
            return self._now() + AGAIN_S
        context.renew(token.text)
        return context.refresh_at

    def _push(self, context: AgentContext, at: float) -> None:
        if at < inf:
            heappush(self._due, (at, next(self._order), ref(context)))
            self._sooner.set()


async def wait_until(event: asyncio.Event, timeout_s: float) -> None:
    """Return when the event is set, or after so many seconds."""
    try:
        async with asyncio.timeout(None if timeout_s == inf else timeout_s):
            await event.wait()
    except TimeoutError:
        return
