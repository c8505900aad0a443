"""Agents for tests: made for a running sidecar and attached for as long as a block lasts; users who read answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

from sidecar_client import Agent, Message, UserConnection, connect
from tests.support.running import RunningSidecar

ATTACH_TIMEOUT_S = 15.0
_numbers = count(1)


def agent_for(sidecar: RunningSidecar, name: str = "", **settings: Any) -> Agent:
    """An agent of that sidecar's, not started; of a service of its own, which has nothing left over from another."""
    return Agent(
        name or f"answers-{next(_numbers)}",
        **({"endpoint": sidecar.grpc_target, "service_token": sidecar.service_token} | settings),
    )


@asynccontextmanager
async def attached(*agents: Agent) -> AsyncIterator[None]:
    """All of them attached at the beginning of the block, and stopped after it."""
    async with AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(agent)
        for agent in agents:
            await agent.wait_attached(ATTACH_TIMEOUT_S)
        yield


def user_of(sidecar: RunningSidecar, subject: str, **options: Any) -> UserConnection:
    """A user's connection, to be entered."""
    return connect(sidecar.websocket_url, token=lambda: sidecar.user_token(subject), **options)


async def answer_of(user: UserConnection) -> list[Message]:
    """The chunks up to the end of a stream, whichever way it ends."""
    chunks: list[Message] = []
    while True:
        event = await asyncio.wait_for(anext(user), 20)
        assert isinstance(event, Message), event
        chunks.append(event)
        if event.stream is not None and event.stream.state != "open":
            return chunks


def text_of(chunks: list[Message]) -> str:
    """What the chunks say together."""
    return "".join(str(chunk.data) for chunk in chunks if chunk.data is not None)


async def within(awaitable: Any) -> Any:
    """Its result, in time."""
    return await asyncio.wait_for(awaitable, 20)
