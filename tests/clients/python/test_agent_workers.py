"""Workers of one service side by side, and contexts that are held for longer than a token lives."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

from sidecar_client import Agent, AgentContext, InboundMessage
from tests.clients.python.agents import agent_for, attached, user_of, within
from tests.support.running import RunningSidecar, running_sidecar


async def test_a_context_stays_with_one_of_several_workers_and_all_have_some(sidecar: RunningSidecar) -> None:
    workers = [agent_for(sidecar, "several-workers") for _ in range(3)]
    by_worker: dict[int, set[str]] = defaultdict(set)

    def handle(number: int, worker: Agent) -> None:
        @worker.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            by_worker[number].add(context.user.user_id)
            await context.send(json=[number, message.data])

    for number, worker in enumerate(workers):
        handle(number, worker)

    async def ask(user: Any) -> list[Any]:
        async with user:
            for number in range(5):
                await user.send(number)
            return [(await within(anext(user))).data for _ in range(5)]

    async with attached(*workers):
        answers = await asyncio.gather(*(ask(user_of(sidecar, f"asker-{number}")) for number in range(40)))
    assert [[number for _, number in each] for each in answers] == [list(range(5))] * 40
    assert all(len({worker for worker, _ in each}) == 1 for each in answers)
    assert len(by_worker) == len(workers)
    assert sum(map(len, by_worker.values())) == 40


async def test_a_context_that_is_held_can_be_sent_to_when_its_first_token_has_ended(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, SIDECAR_CONTEXT_TOKENS__TTL_S="1") as sidecar:
        agent = agent_for(sidecar)
        held: asyncio.Queue[AgentContext] = asyncio.Queue()

        @agent.on_opened
        async def opened(context: AgentContext) -> None:
            held.put_nowait(context)

        async with attached(agent), sidecar.user("alice") as alice, sidecar.service() as service:
            context = await within(held.get())
            seen = {context.context_token}
            while len(seen) < 4:  # each is refreshed at 0.4 of its second
                await service.factory_stats()
                seen.add(context.context_token)
            await context.send(json="still here")
            while (frame := await alice.frame())["type"] != "message":
                """The user's own token is renewed, too."""
            assert frame["data"] == "still here"
