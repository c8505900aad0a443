"""How long a user waits for an agent's first word, beside a bare relay between a socket and a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import grpc

from benchmarks.agents import Agent, SidecarAgent, attached
from benchmarks.asking import AskingClient, Rounds, SidecarAskingClient
from benchmarks.measure import Comparison, Window, compare, median_cost, waits_at, window
from benchmarks.relay import GATHER
from benchmarks.results import Pace, Result, compared
from benchmarks.servers import AGENTS, RunFailed, Server, running_relay, running_sidecar
from benchmarks.sockets import Crowd, Tally
from benchmarks.works.plan import Plan
from sidecar_client.agent_stream import MAX_FRAME_EVENTS

USERS: Final = 50
ROUNDS: Final = 2_000
ROUNDS_ALONE: Final = 100
TOLD_TRIPLES: Final = 7
"""So many where it is to be told only."""
PAUSE_S: Final = 0.01
"""Between the rounds of one who is alone: everything has come to rest, and no socket sends 100 frames a second."""

WINDOW_TIMEOUT_S: Final = 120.0
MANY = f"Agent, {USERS} users, 1 message in flight each"
SINGLE = f"Agent that takes one event a frame, {USERS} users"
GATHERING = f"Agent, {USERS} users, beside a relay that gathers events too"
ALONE = f"Agent, 1 user, a message every {PAUSE_S * 1e3:.0f} ms"
WHAT = "message to the answer's first chunk"


@dataclass(frozen=True, slots=True)
class Company:
    """A server, its users, and the agent that answers them."""

    server: Server
    users: list[AskingClient]
    crowd: Crowd
    agent: Agent

    async def measure(self, users: int, rounds: int, pause_s: float = 0.0) -> Window:
        """So many rounds of the first of them, one at a time each. Everything was taken, answered and receipted."""
        shared = Rounds(rounds, pause_s)
        tally, agent = self.crowd.tally, self.agent
        goal, asked = tally.count + rounds, agent.asked + rounds
        accepted = self._accepted() + rounds
        receipts = agent.receipts.count + rounds

        async def ask() -> list[float]:
            for user in self.users[:users]:
                shared.next(user)
            async with asyncio.timeout(WINDOW_TIMEOUT_S):
                await tally.reach(goal)
            return shared.latencies_s

        measured = await window(self.server.pid, rounds, ask, lambda: self._receipted(receipts))
        if agent.asked != asked or (isinstance(agent, SidecarAgent) and self._accepted() != accepted):
            raise RunFailed(f"{rounds} rounds, but {agent.asked - asked} more or fewer messages at the agent")
        return measured

    async def _receipted(self, goal: int) -> None:
        if isinstance(self.agent, SidecarAgent):
            await self.agent.receipts.reach(goal)

    def _accepted(self) -> int:
        return sum(user.accepted for user in self.users)


async def agent_round(plan: Plan) -> list[Result]:
    """Many users at once, then one of them alone; the relay and the sidecar in turn, each with an agent attached.

    Then what is in that: the sidecar with an agent that takes one event a frame, and a relay that gathers them as well.
    """
    async with (
        company(running_relay(), AskingClient) as floor,
        company(running_sidecar(settings=AGENTS), SidecarAskingClient) as ours,
    ):
        many = await _compare(plan.triples(), floor, ours, USERS, plan.count(ROUNDS))
        alone = await _compare(plan.triples(), floor, ours, 1, plan.count(ROUNDS_ALONE), PAUSE_S)
    async with (
        company(running_relay(), AskingClient) as floor,
        company(running_sidecar(settings=AGENTS), SidecarAskingClient, max_frame_events=1) as ours,
    ):
        single = await _compare(plan.triples(TOLD_TRIPLES), floor, ours, USERS, plan.count(ROUNDS))
    async with (
        company(running_relay(GATHER), AskingClient) as floor,
        company(running_sidecar(settings=AGENTS), SidecarAskingClient) as ours,
    ):
        gathering = await _compare(plan.triples(TOLD_TRIPLES), floor, ours, USERS, plan.count(ROUNDS))
    return [
        *_lines("agent-round", MANY, many),
        *_lines("agent-round-alone", ALONE, alone),
        *_lines("agent-round-single", SINGLE, single),
        *_lines("agent-round-gathering", GATHERING, gathering),
    ]


async def _compare(
    triples: int, floor: Company, ours: Company, users: int, rounds: int, pause_s: float = 0.0
) -> Comparison[Window]:
    return await compare(
        triples, lambda: floor.measure(users, rounds, pause_s), lambda: ours.measure(users, rounds, pause_s)
    )


def _lines(key: str, title: str, comparison: Comparison[Window]) -> list[Result]:
    ours_cpu, floor_cpu = (median_cost(side) * 1e6 for side in (comparison.ours, comparison.floor))
    note = f"CPU a round {ours_cpu:.0f} µs, the relay's {floor_cpu:.0f} µs: {comparison.ratio.median:.2f} ×"
    paces = (Pace.of("relay", comparison.floor), Pace.of("sidecar", comparison.ours))
    p50, p99 = (
        compared(
            f"{key}-{name}",
            f"{title}: {name}, {WHAT}",
            waits_at(comparison, fraction),
            unit="ms",
            units_of_cost=1e3,
            floor_is="relay",
        )
        for name, fraction in (("p50", 0.5), ("p99", 0.99))
    )
    return [replace(p50, paces=paces, note=note), p99]


@asynccontextmanager
async def loaded(server: Server, plan: Plan) -> AsyncIterator[Callable[[], Awaitable[Window]]]:
    """A sidecar under the load of many, to be profiled."""
    async with with_agent(server, SidecarAskingClient) as ours:
        yield lambda: ours.measure(USERS, plan.count(ROUNDS))


@asynccontextmanager
async def company(
    running: AbstractAsyncContextManager[Server],
    client: type[AskingClient],
    users: int = USERS,
    max_frame_events: int = MAX_FRAME_EVENTS,
) -> AsyncIterator[Company]:
    """A server with an agent, which knows of every user, and has a lane to each."""
    async with running as server, with_agent(server, client, users, max_frame_events) as its_company:
        yield its_company


@asynccontextmanager
async def with_agent(
    server: Server, client: type[AskingClient], users: int = USERS, max_frame_events: int = MAX_FRAME_EVENTS
) -> AsyncIterator[Company]:
    """The same of a server that runs already."""
    members: list[AskingClient] = []

    def made(request: bytes, hello: bytes, tally: Tally) -> AskingClient:
        members.append(client(request, hello, tally))
        return members[-1]

    async with (
        grpc.aio.insecure_channel(server.grpc_target) as channel,
        attached(server, channel, max_frame_events) as agent,
    ):
        crowd = Crowd(server, made)
        await crowd.join([f"user-{number}" for number in range(users)])
        if isinstance(agent, SidecarAgent):
            await agent.opened.reach(users)
        yield Company(server, members, crowd, agent)
