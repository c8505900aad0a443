"""Agents, the sidecar and both sides of them killed and stopped in mid-work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar_client import Agent, AgentContext, InboundMessage, Message, Tuning
from sidecar_client.errors import SidecarError
from tests.clients.python.agents import agent_for, answer_of, attached, text_of, user_of, within
from tests.support.restarting import restarting_sidecar
from tests.support.running import RunningSidecar, running_sidecar

PROGRAM = Path(__file__).with_name("agent_process.py")
ON_DISK = '[storage]\nkind = "sqlite"\npath = "{0}/outbox.db"\nkey_file = "{0}/outbox.key"\n'


@asynccontextmanager
async def agent_process(sidecar: RunningSidecar, name: str) -> AsyncIterator[Process]:
    """One that has attached."""
    before = len(await sidecar.audit_records("agent_attached"))
    environment = os.environ | {
        "SIDECAR_GRPC_ENDPOINT": sidecar.grpc_target,
        "SIDECAR_SERVICE_TOKEN": sidecar.service_token,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, PROGRAM, name, env=environment)
    try:
        while len(await sidecar.audit_records("agent_attached")) == before:
            assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_when_one_agent_is_killed_the_other_answers(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with (
            agent_process(sidecar, "one") as one,
            agent_process(sidecar, "two") as two,
            user_of(sidecar, "alice") as alice,
        ):
            await alice.send("who are you?")
            first = text_of(await answer_of(alice))
            await alice.send("stay")
            assert (await within(anext(alice))).data == first
            await alice.send("whose is what waits?", id="q-3")
            victim, other = (one, "two") if first == "one" else (two, "one")
            victim.kill()
            await victim.wait()
            await alice.send("and now?", id="q-4")
            answers = [await answer_of(alice) for _ in range(2)]
            if answers[0][0].reply_to not in ("q-3", "q-4"):  # it was killed before it had said that this was its own
                answers = [*answers[1:], await answer_of(alice)]
            assert [(text_of(answer), answer[0].reply_to) for answer in answers] == [(other, "q-3"), (other, "q-4")]


async def test_a_program_ends_on_sigterm_and_its_users_see_an_end(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, "[streams]\nidle_timeout_s = 60\n") as sidecar:
        async with agent_process(sidecar, "one") as one, user_of(sidecar, "alice") as alice:
            await alice.send("hello")
            await answer_of(alice)
            one.send_signal(signal.SIGTERM)
            assert await within(one.wait()) == 0
        assert len(await sidecar.audit_records("agent_detached")) == 1


@pytest.mark.timeout(120)
async def test_an_answer_goes_on_where_it_was_when_the_sidecar_is_killed(tmp_path: Path) -> None:
    words = [f"{number} " for number in range(60)]
    async with restarting_sidecar(tmp_path, ON_DISK.format(tmp_path)) as lives:
        agent = agent_for(lives.running, uniform=lambda: 0.1)
        go_on = asyncio.Event()

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            async with message.reply() as stream:
                for number, word in enumerate(words):
                    if number == len(words) // 2:
                        await go_on.wait()
                    await stream.send(text=word)

        tuning = Tuning(uniform=lambda: 0.0)
        async with attached(agent), user_of(lives.running, "alice", tuning=tuning) as alice:
            await alice.send("count")
            chunks = [await within(anext(alice))]
            await lives.kill()
            go_on.set()
            await lives.start()
            chunks += await asyncio.wait_for(answer_of(alice), 40)
            assert all(isinstance(chunk, Message) for chunk in chunks)
            assert text_of(chunks) == "".join(words)
            assert [chunk.stream.index for chunk in chunks if chunk.stream] == list(range(len(words) + 1))
            # The agent is back, too.
            await agent.wait_attached(20)
            go_on.set()
            await alice.send("again")
            assert text_of(await answer_of(alice)) == "".join(words)


@pytest.mark.timeout(120)
async def test_without_a_store_the_handler_ends_and_the_agent_comes_back(tmp_path: Path) -> None:
    ended: asyncio.Queue[BaseException] = asyncio.Queue()
    async with restarting_sidecar(tmp_path) as lives:
        agent = agent_for(lives.running, uniform=lambda: 0.1)

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            try:
                async with message.reply() as stream:
                    while message.data == "talk":
                        await stream.send(text="on")
            except (SidecarError, asyncio.CancelledError) as end:
                ended.put_nowait(end)
                raise

        tuning = Tuning(uniform=lambda: 0.0)
        async with attached(agent), user_of(lives.running, "alice", tuning=tuning) as alice:
            await alice.send("talk")
            await within(anext(alice))
            await lives.kill()
            await lives.start()
            assert getattr(await asyncio.wait_for(ended.get(), 40), "reason", "") == "MANAGER_GONE"
            await agent.wait_attached(20)
            async with user_of(lives.running, "bob") as bob:
                await bob.send("short")
                assert [chunk.data for chunk in await answer_of(bob)] == [None]


async def test_a_stop_under_load_ends_what_was_taken_and_leaves_the_rest_to_others(sidecar: RunningSidecar) -> None:
    leaving, staying = (agent_for(sidecar, "stopped-under-load", credits=8) for _ in range(2))
    taken = asyncio.Event()
    go_on = asyncio.Event()
    began: dict[str, list[str]] = {"leaving": [], "staying": []}

    def handle(name: str, agent: Agent) -> None:
        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            began[name].append(message.id)
            async with message.reply() as stream:
                await stream.send(text=message.data)
                if name == "leaving":
                    taken.set()
                    await go_on.wait()

    handle("leaving", leaving)
    handle("staying", staying)

    async def ask(user: Any) -> list[str]:
        """The last answer of the one that leaves may come beside the first of the one that stays."""
        answers: dict[str, list[Message]] = {f"q-{number}": [] for number in range(5)}
        async with user:
            for number, question in enumerate(answers):
                await user.send(f"{number}", id=question)
            ends = 0
            while ends < len(answers):
                chunk = await within(anext(user))
                answers[chunk.reply_to].append(chunk)
                ends += chunk.stream.state == "end"
        return [text_of(chunks) for chunks in answers.values()]

    async with attached(leaving):
        asking = [asyncio.create_task(ask(user_of(sidecar, f"loader-{number}"))) for number in range(12)]
        await within(taken.wait())
        async with attached(staying):
            stopping = asyncio.create_task(leaving.stop(grace_s=20))
            await asyncio.sleep(0)
            go_on.set()
            await within(stopping)
            answers = await asyncio.gather(*map(within, asking))
    assert answers == [[f"{number}" for number in range(5)]] * 12
    assert began["leaving"]
    assert began["staying"]
    assert len(began["leaving"]) + len(began["staying"]) == 60


async def test_a_handler_that_outlasts_the_grace_is_cancelled_and_its_user_told(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)
    ended = asyncio.Event()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        try:
            async with message.reply() as stream:
                await stream.send(text="wait")
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert not message.cancelled
            ended.set()
            raise

    async with attached(agent), user_of(sidecar, "alice") as alice:
        await alice.send("hello")
        await within(anext(alice))
        await within(agent.stop(grace_s=0.05))
        assert ended.is_set()
        (last,) = await answer_of(alice)
        assert last.stream is not None
        assert last.stream.state == "error"
        await agent.stop()


async def test_cancelled_it_stops_without_grace(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar, grace_s=60)

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        await context.send(json="begun")
        await asyncio.Event().wait()

    running = asyncio.create_task(agent.run())
    await asyncio.sleep(0)
    await agent.wait_attached(15)
    async with user_of(sidecar, "alice") as alice:
        await alice.send("hello")
        await within(anext(alice))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(running)
