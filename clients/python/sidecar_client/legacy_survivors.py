"""Which contexts outlived a break of the attachment: the sidecar is asked; those of a former process ended unheard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

from sidecar_client.agent_context import AgentContext
from sidecar_client.errors import IsolationViolation, ManagerGone, SidecarError, TokenError
from sidecar_client.legacy_contexts import UserContexts
from sidecar_client.values import ContextFacts

AT_ONCE: Final = 16
"""So many are asked about at a time, beside those that calls wait for."""
AGAIN_S: Final = 5.0
"""When to ask again about those of which there was no answer."""

logger = logging.getLogger("sidecar_client")


class Survivors:
    """Asks about the contexts that are in doubt, each by its own token, and forgets those that are gone.

    A context whose token is refused is forgotten too: nobody can say that it lives, and nothing could be sent there.
    Where it lives it is known again as soon as the sidecar tells of it, with another token.
    """

    def __init__(
        self,
        contexts: UserContexts,
        get_context: Callable[[str], Awaitable[ContextFacts]],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`get_context`: what a token opens, within a deadline. `pause`: waits so many seconds."""
        self._contexts = contexts
        self._get_context = get_context
        self._pause = pause
        self._asking: dict[tuple[str, int], asyncio.Task[None]] = {}
        """By context and attachment: many who wait for one context ask once."""
        self._sweeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def attached(self) -> None:
        """To be called at each attachment, before what is told on it: what is known is in doubt, and asked about."""
        self._contexts.attached()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = self._own(self._sweep())

    async def ask(self, contexts: Iterable[AgentContext]) -> None:
        """Return when there was an answer about each, or none in time; that one stays in doubt. Safe to cancel."""
        asking = [self._task_of(context) for context in contexts]
        if not asking:
            return
        await asyncio.wait(asking)
        for task in asking:
            if not task.cancelled():
                task.result()

    async def close(self) -> None:
        """Ask no more. Idempotent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sweep(self) -> None:
        """Until none is in doubt."""
        while in_doubt := self._contexts.in_doubt():
            for start in range(0, len(in_doubt), AT_ONCE):
                # What was answered meanwhile, by an event or for a call, is not asked again.
                some = in_doubt[start : start + AT_ONCE]
                await self.ask(context for context in some if self._contexts.is_in_doubt(context))
            if self._contexts.in_doubt():
                await self._pause(AGAIN_S)

    def _task_of(self, context: AgentContext) -> asyncio.Task[None]:
        name = context.isolation_key, self._contexts.attachment
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = self._own(self._ask(context, self._contexts.attachment))
            task.add_done_callback(lambda _: self._asking.pop(name))
        return task

    async def _ask(self, context: AgentContext, attachment: int) -> None:
        try:
            lives = _is_of(await context.call(self._get_context), context)
        except (ManagerGone, TokenError, IsolationViolation):
            lives = False
        except SidecarError as error:
            logger.debug("a context stays in doubt: %s", error.reason or error.code.name)
            return
        if not lives:
            self._contexts.closed(context)
        elif self._contexts.attachment == attachment:  # else it was lost again meanwhile, and is asked about once more
            self._contexts.confirmed(context)


def _is_of(facts: ContextFacts, context: AgentContext) -> bool:
    """Whether the token opens what it was handed out for."""
    opened = facts.isolation_key, facts.context.tenant_id, facts.context.user_id
    return opened == (context.isolation_key, context.user.tenant_id, context.user.user_id)
