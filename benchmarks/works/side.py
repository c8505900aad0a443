"""One side of a comparison: a running server, the users connected to it, and a service's channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import grpc

from benchmarks.load import Load
from benchmarks.measure import Window, window
from benchmarks.servers import Server
from benchmarks.sockets import Crowd

WINDOW_TIMEOUT_S = 120.0
"""Many times what a window takes: an answer that never comes is a failure, not a wait."""


@dataclass(frozen=True, slots=True)
class Side:
    """A server with its users."""

    server: Server
    crowd: Crowd
    channel: grpc.aio.Channel

    async def measure(self, load: Load, messages: int) -> Window:
        """Send so many messages, and wait until every one has arrived at a socket."""
        tally = self.crowd.tally
        goal = tally.count + messages

        async def send() -> list[float]:
            async with asyncio.timeout(WINDOW_TIMEOUT_S):
                latencies = await load.send(messages)
            await tally.reach(goal)
            return latencies

        return await window(self.server.pid, messages, send)


@asynccontextmanager
async def side(running: AbstractAsyncContextManager[Server], users: int) -> AsyncIterator[Side]:
    """A server with so many users connected."""
    async with running as server, grpc.aio.insecure_channel(server.grpc_target) as channel:
        crowd = Crowd(server)
        await crowd.join([f"user-{number}" for number in range(users)])
        yield Side(server, crowd, channel)
