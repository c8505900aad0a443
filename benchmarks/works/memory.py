"""What an idle connection weighs."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from benchmarks.measure import Amount, compare, memory_bytes
from benchmarks.results import Result, compared
from benchmarks.servers import Server, running_floor, running_sidecar
from benchmarks.sockets import Crowd
from benchmarks.works.plan import Plan

CONNECTIONS = 5_000
TRIPLES = 3
FIRST_USERS = 5


async def memory(plan: Plan) -> list[Result]:
    """5,000 idle connections, beside the bare WebSocket server that pings every 60 s."""
    connections = plan.count(CONNECTIONS)
    comparison = await compare(
        plan.triples(TRIPLES),
        lambda: _weigh(running_floor(), connections, plan.settle_s),
        lambda: _weigh(running_sidecar(), connections, plan.settle_s),
        warm_up=False,  # each sample is a new process
    )
    title = f"{connections:,} connected, idle: memory each"
    note = "RssAnon, less what the process had before"
    return [compared("memory", title, comparison, unit="kB", units_of_cost=1e-3, note=note)]


async def _weigh(running: AbstractAsyncContextManager[Server], connections: int, settle_s: float) -> Amount:
    async with running as server:
        return Amount(await weigh(server, Crowd(server), connections, settle_s))


async def weigh(server: Server, crowd: Crowd, connections: int, settle_s: float) -> float:
    """Let so many users join a crowd still empty. Bytes of memory a connection, (with N − with none) / N."""
    await _pay_once(server)
    await asyncio.sleep(settle_s)
    before = memory_bytes(server.pid, "RssAnon")
    await crowd.join([f"user-{number}" for number in range(connections)])
    await asyncio.sleep(settle_s)
    return (memory_bytes(server.pid, "RssAnon") - before) / connections


async def _pay_once(server: Server) -> None:
    """A few users come and go: what the first of all makes for everybody is nobody's weight."""
    first = Crowd(server)
    await first.join([f"first-{number}" for number in range(FIRST_USERS)])
    await first.leave()
