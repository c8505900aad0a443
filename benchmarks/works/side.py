"""One side of a comparison: a running server, the users connected to it, and a service's channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from benchmarks.load import Load
from benchmarks.measure import Window, quiet, window
from benchmarks.servers import Server
from benchmarks.sockets import Client, ClientOf, Crowd
from benchmarks.works.plan import Plan

WINDOW_TIMEOUT_S = 120.0
"""Many times what a window takes: an answer that never comes is a failure, not a wait."""


@dataclass(frozen=True, slots=True)
class Side:
    """A server with its users. `late_s`: how late what the messages lead to comes, such as acknowledgements; or 0."""

    server: Server
    crowd: Crowd
    channel: grpc.aio.Channel
    late_s: float = 0.0

    async def measure(self, load: Load, messages: int) -> Window:
        """Send so many messages, and wait until every one has arrived at a socket."""
        tally = self.crowd.tally
        goal = tally.count + messages

        async def send() -> list[float]:
            async with asyncio.timeout(WINDOW_TIMEOUT_S):
                latencies = await load.send(messages)
            await tally.reach(goal)
            return latencies

        return await window(self.server.pid, messages, send, self._late if self.late_s else None)

    async def _late(self) -> None:
        await asyncio.sleep(self.late_s)
        await quiet(self.server.pid)


class LoadedBy(NamedTuple):
    """How a server is put under a work's load, and the sidecar's settings besides its defaults.

    `loaded` gives what measures one window of it, as often as it is called.
    """

    loaded: Callable[[Server, Plan], AbstractAsyncContextManager[Callable[[], Awaitable[Window]]]]
    settings: str = ""


@asynccontextmanager
async def side(
    running: AbstractAsyncContextManager[Server], users: int, client: ClientOf = Client, late_s: float = 0.0
) -> AsyncIterator[Side]:
    """A server with so many users connected."""
    async with running as server, with_users(server, users, client, late_s) as its_side:
        yield its_side


@asynccontextmanager
async def with_users(server: Server, users: int, client: ClientOf = Client, late_s: float = 0.0) -> AsyncIterator[Side]:
    """The same of a server that runs already."""
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        crowd = Crowd(server, client)
        await crowd.join([f"user-{number}" for number in range(users)])
        yield Side(server, crowd, channel, late_s)
