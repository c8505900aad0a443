"""Response streams against a real sidecar: chunks in order and once, whatever becomes of a send or of the reader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar_client import AgentContext, InboundMessage, Message, ReplyStream
from sidecar_client.errors import BadRequest, OutboxFull, StreamCancelled, StreamEnded
from tests.clients.python.agents import agent_for, answer_of, attached, text_of, user_of, within
from tests.support.running import RunningSidecar, running_sidecar

Body = Callable[[ReplyStream], Awaitable[None]]
SMALL = "[outbox]\nmax_messages = 20\n[streams]\nidle_timeout_s = 1\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    """With an outbox of twenty messages, and streams that may be silent for a second."""
    with running_sidecar(tmp_path_factory.mktemp("replies"), SMALL) as running:
        yield running


@asynccontextmanager
async def answering(sidecar: RunningSidecar, body: Body, **reply: Any) -> AsyncIterator[asyncio.Queue[Any]]:
    """An agent whose handler does `body` in a stream; what came of each is put into the queue."""
    agent = agent_for(sidecar)
    outcomes: asyncio.Queue[Any] = asyncio.Queue()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        try:
            async with message.reply(**reply) as stream:
                await body(stream)
        except BaseException as error:
            outcomes.put_nowait(error)
            raise
        outcomes.put_nowait(None)

    async with attached(agent):
        yield outcomes


async def test_an_answer_of_nothing_has_an_end(sidecar: RunningSidecar) -> None:
    async def nothing(stream: ReplyStream) -> None:
        assert "next_index=0, open" in repr(stream)

    async with answering(sidecar, nothing), user_of(sidecar, "alice") as alice:
        await alice.send("why?")
        (end,) = await answer_of(alice)
    assert end.stream is not None
    assert (end.stream.index, end.stream.state) == (0, "end")


async def test_chunks_of_many_tasks_are_each_sent_once(sidecar: RunningSidecar) -> None:
    async def many(stream: ReplyStream) -> None:
        await asyncio.gather(*(stream.send(json=number) for number in range(50)))

    async with answering(sidecar, many), user_of(sidecar, "alice") as alice:
        await alice.send("count")
        chunks = await answer_of(alice)
    assert [chunk.data for chunk in chunks] == [*range(50), None]


async def test_a_send_that_is_cut_short_is_made_up_for_before_the_next(sidecar: RunningSidecar) -> None:
    async def impatient(stream: ReplyStream) -> None:
        for number in range(30):
            sending = asyncio.create_task(stream.send(json=number))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await stream.send(json="last")

    async with answering(sidecar, impatient), user_of(sidecar, "alice") as alice:
        await alice.send("count")
        said = [chunk.data for chunk in await answer_of(alice)]
    assert said[-2:] == ["last", None]
    numbers = said[:-2]
    assert numbers == sorted(set(numbers))
    assert numbers


async def test_what_the_sidecar_refuses_is_raised_and_costs_no_place(sidecar: RunningSidecar) -> None:
    async def clumsy(stream: ReplyStream) -> None:
        with pytest.raises(BadRequest):
            await stream.send(text="x" * 300_000)
        with pytest.raises(BadRequest):
            await stream.send(json=float("nan"))
        with pytest.raises(BadRequest):
            await stream.send(text="\ud800")
        for contents in ({}, {"json": 1, "text": "1"}):
            with pytest.raises(TypeError):
                await stream.send(**contents)  # type: ignore[arg-type]
        await stream.send(text="well")

    async with answering(sidecar, clumsy), user_of(sidecar, "alice") as alice:
        await alice.send("why?")
        assert text_of(await answer_of(alice)) == "well"


async def test_a_slow_client_slows_its_own_answer_and_gets_all_of_it(small: RunningSidecar) -> None:
    """Away with a full outbox, the agent waits; the user comes back and reads on where it was."""

    async def count(stream: ReplyStream) -> None:
        for number in range(60):
            await stream.send(json=number)

    async with answering(small, count) as outcomes:
        async with user_of(small, "alice") as alice:
            await alice.send("count")
            first = await within(anext(alice))
            assert isinstance(first, Message)
            alice.acknowledge()
            state = await alice.detach()
        assert outcomes.empty()
        async with user_of(small, "alice", resume=state) as alice:
            chunks = [first, *await answer_of(alice)]
            # While the user is there: one who leaves on the last word may be told of before its receipt is.
            assert await within(outcomes.get()) is None
    assert [chunk.data for chunk in chunks] == [*range(60), None]


async def test_a_client_that_stays_away_costs_its_own_answer(small: RunningSidecar) -> None:
    async def count(stream: ReplyStream) -> None:
        while True:
            await stream.send(json=0)

    async with answering(small, count, timeout_s=0.5) as outcomes, user_of(small, "alice") as alice:
        await alice.send("count")
        await within(anext(alice))
        alice.acknowledge()
        await alice.detach()
        assert isinstance(await within(outcomes.get()), OutboxFull)


async def test_in_another_task_a_cancel_is_an_error_and_the_handler_is_cancelled(sidecar: RunningSidecar) -> None:
    seen: asyncio.Queue[BaseException] = asyncio.Queue()

    async def talk(stream: ReplyStream) -> None:
        try:
            while True:
                await stream.send(text="on and ")
        except StreamCancelled as cancelled:
            seen.put_nowait(cancelled)

    async def delegate(stream: ReplyStream) -> None:
        talking = asyncio.create_task(talk(stream))
        try:
            await asyncio.Event().wait()
        finally:
            await talking

    async with answering(sidecar, delegate) as outcomes, user_of(sidecar, "alice") as alice:
        await alice.send("talk", id="q-1")
        await within(anext(alice))
        alice.cancel(id="q-1")
        assert isinstance(await within(outcomes.get()), asyncio.CancelledError)
        assert isinstance(await within(seen.get()), StreamCancelled)


async def test_a_stream_that_fell_silent_is_over(small: RunningSidecar) -> None:
    """The sidecar has ended it; what the agent says afterwards must not look as if it had been delivered."""
    go_on = asyncio.Event()

    async def dawdle(stream: ReplyStream) -> None:
        await stream.send(text="well")
        await go_on.wait()
        await stream.send(text="too late")

    async with answering(small, dawdle) as outcomes, small.user("alice") as alice:
        await alice.socket.send('{"type":"message","id":"q-1","data":"why?"}')
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1].get("stream", {}).get("state") != "error":
            frames.append(await alice.frame())
            if "sequence" in frames[-1]:
                await alice.socket.send(json.dumps({"type": "ack", "sequence": frames[-1]["sequence"]}))
        go_on.set()
        assert isinstance(await within(outcomes.get()), StreamEnded)
        assert await alice.frames_before_answer_to("probe") == []
