"""An agent attached to a real sidecar: what it is told, what it answers, what becomes of its handlers."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

import pytest

from sidecar_client import Agent, AgentContext, Closed, InboundMessage, Message, Opened, Subscription
from sidecar_client.errors import ManagerGone, SubscriptionTaken, TokenError, TransportError
from tests.clients.python.agents import agent_for, answer_of, attached, text_of, user_of, within
from tests.support.running import RunningSidecar


async def test_an_answer_is_a_stream_that_ends_with_its_block(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        assert (context.user.user_id, message.event) == ("alice", "message")
        async with message.reply(event_type="answer") as stream:
            await stream.send(text="it is ")
            await stream.send(json={"warm": message.data}, headers={"unit": "C"})
            await stream.send(binary=b"\x00")

    async with attached(agent), user_of(sidecar, "alice") as alice:
        await alice.send(21, id="q-1")
        chunks = await answer_of(alice)
    assert [chunk.data for chunk in chunks] == ["it is ", {"warm": 21}, b"\x00", None]
    assert [(chunk.stream.index, chunk.stream.state) for chunk in chunks if chunk.stream] == [
        (0, "open"),
        (1, "open"),
        (2, "open"),
        (3, "end"),
    ]
    assert {(chunk.event, chunk.reply_to) for chunk in chunks} == {("answer", "q-1")}
    assert chunks[1].headers == {"unit": "C"}


async def test_the_last_chunk_may_say_something(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        async with message.reply(stream_id="s-1") as stream:
            if message.data == "well":
                await stream.end(json={"words": 0})
            else:
                await stream.fail(text="no idea")
            with pytest.raises(RuntimeError):
                await stream.send(text="more")

    async with attached(agent), user_of(sidecar, "alice") as alice, user_of(sidecar, "bob") as bob:
        await alice.send("well")
        await bob.send("badly")
        (said,), (failed,) = await answer_of(alice), await answer_of(bob)
    assert said.stream is not None
    assert failed.stream is not None
    assert (said.data, said.stream.id, said.stream.state) == ({"words": 0}, "s-1", "end")
    assert (failed.data, failed.stream.state) == ("no idea", "error")


async def test_it_is_told_of_a_contexts_life_in_order(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)
    told: asyncio.Queue[tuple[str, AgentContext]] = asyncio.Queue()

    @agent.on_opened
    async def opened(context: AgentContext) -> None:
        told.put_nowait(("opened", context))

    @agent.on_away
    async def away(context: AgentContext) -> None:
        told.put_nowait(("away", context))

    @agent.on_back
    async def back(context: AgentContext) -> None:
        told.put_nowait(("back", context))

    @agent.on_closed
    async def closed(context: AgentContext, closed: Closed) -> None:
        told.put_nowait((f"{closed.code} {closed.reason}", context))

    async with attached(agent):
        async with user_of(sidecar, "alice") as alice:
            first = await within(told.get())
            state = await alice.detach()
        second = await within(told.get())
        async with user_of(sidecar, "alice", resume=state) as alice:
            third = await within(told.get())
        fourth = await within(told.get())
    assert [name for name, _ in (first, second, third, fourth)] == ["opened", "away", "back", "1000 client_closed"]
    context = first[1]
    assert all(each is context for _, each in (second, third, fourth))
    assert (context.ended, context.user.user_id, context.isolation_key) == (True, "alice", alice.isolation_key)
    assert context.context_token not in repr(context)


async def test_what_a_context_can_do(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)
    done = asyncio.Event()

    @agent.on_message
    async def act(context: AgentContext, message: InboundMessage) -> None:
        await context.send(json="hello", reply_to=message.id)
        await context.emit_critical_event("alarm", {"n": 1})
        await context.send(json="read", wait_for_ack_s=10)
        assert await context.close(code=4900, reason="done") == 1
        with pytest.raises(ManagerGone):
            await context.send(json="too late")
        assert context.ended
        done.set()

    async with attached(agent), sidecar.user("alice") as alice:
        await alice.socket.send('{"type":"message","id":"q-1","data":"go"}')
        frames = [await alice.frame() for _ in range(4)]
        await alice.socket.send('{"type":"ack","sequence":3}')
        await within(done.wait())
        await alice.socket.wait_closed()
    said = [frame["data"] for frame in frames if frame["type"] == "message"]
    assert said == ["hello", {"n": 1}, "read"]
    assert (alice.socket.close_code, alice.socket.close_reason) == (4900, "done")


async def test_each_event_has_its_handler_and_the_rest_goes_to_the_other_service(sidecar: RunningSidecar) -> None:
    orders, rest = agent_for(sidecar, "orders"), agent_for(sidecar, "rest")

    def echo(agent: Agent, name: str, *events: str) -> None:
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            await context.send(json=[name, message.event, message.data])

        for event in events:
            agent.on_message(event)(answer)
        if not events:
            agent.on_message(answer)

    echo(orders, "orders", "buy", "sell")
    echo(rest, "rest")
    async with attached(orders, rest), user_of(sidecar, "alice") as alice:
        said = []
        for event in ("buy", "chat", "sell"):
            await alice.send(1, event=event)
            message = await within(anext(alice))
            said.append(message.data)
    assert said == [["orders", "buy", 1], ["rest", "chat", 1], ["orders", "sell", 1]]


@pytest.mark.parametrize("by", ["message", "stream"])
async def test_a_cancel_ends_that_handler_and_no_other(sidecar: RunningSidecar, by: str) -> None:
    agent = agent_for(sidecar)
    ends: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    go_on = asyncio.Event()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        user = context.user.user_id
        try:
            async with message.reply(stream_id=f"s-{user}-{message.id}") as stream:
                await stream.send(text="begun")
                await go_on.wait()
        except asyncio.CancelledError:
            assert message.cancelled
            ends.put_nowait((user, "cancelled"))
            raise
        ends.put_nowait((user, "answered"))

    async with attached(agent), user_of(sidecar, "alice") as alice, user_of(sidecar, "bob") as bob:
        for user in (alice, bob):
            await user.send("why?", id="q-1")
            assert (await within(anext(user))).data == "begun"
        alice.cancel(**({"id": "q-1"} if by == "message" else {"stream_id": "s-alice-q-1"}))
        assert await within(ends.get()) == ("alice", "cancelled")
        go_on.set()
        assert await within(ends.get()) == ("bob", "answered")
        assert [chunk.stream.state for chunk in await answer_of(bob) if chunk.stream] == ["end"]
        await alice.send("and now?", id="q-2")
        assert (await within(anext(alice))).reply_to == "q-2"
        assert await within(ends.get()) == ("alice", "answered")


async def test_a_cancelled_stream_is_seen_at_the_next_chunk_too(sidecar: RunningSidecar) -> None:
    """A handler that never waits for anything but its own sends."""
    agent = agent_for(sidecar)
    ended: asyncio.Queue[str] = asyncio.Queue()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        try:
            async with message.reply() as stream:
                while True:
                    await stream.send(text="on and ")
        except asyncio.CancelledError:
            ended.put_nowait("cancelled")
            raise

    async with attached(agent), user_of(sidecar, "alice") as alice:
        await alice.send("talk", id="q-1")
        assert isinstance(await within(anext(alice)), Message)
        alice.cancel(id="q-1")
        assert await within(ended.get()) == "cancelled"


async def test_what_is_cancelled_before_its_turn_is_not_begun(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)
    begun: list[Any] = []
    go_on = asyncio.Event()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        begun.append(message.data)
        await context.send(json=f"begun {message.data}")
        await go_on.wait()

    async with attached(agent), sidecar.user("alice") as alice, user_of(sidecar, "bob") as bob:
        for number in (1, 2, 3):
            await alice.socket.send(f'{{"type":"message","id":"q-{number}","data":{number}}}')
        while (await alice.frame())["type"] != "message":
            """Accepted, too."""
        await alice.socket.send('{"type":"cancel","id":"q-2"}')
        await alice.frames_before_answer_to("probe")
        # The agent is told of a cancel before it is given anything that came after it.
        await bob.send("bob")
        await within(anext(bob))
        go_on.set()
        while (frame := await alice.frame())["type"] != "message":
            """Accepted, too."""
        assert frame["data"] == "begun 3"
    assert begun == [1, "bob", 3]


async def test_a_client_that_leaves_ends_the_answer_that_is_streamed_to_it(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar)
    ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    never = asyncio.Event()

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        try:
            async with message.reply() as stream:
                await stream.send(text="begun")
                while message.data == "talk":
                    await stream.send(text="on and on")
                await never.wait()
        except (ManagerGone, asyncio.CancelledError) as end:
            ended.put_nowait((context.user.user_id, type(end).__name__))
            raise

    async with attached(agent):
        for subject, question in (("alice", "talk"), ("bob", "think")):
            async with user_of(sidecar, subject) as user:
                await user.send(question)
                await within(anext(user))
            who, how = await within(ended.get())
            assert who == subject
            assert how in {"ManagerGone", "CancelledError"}


async def test_a_handler_that_fails_fails_its_stream_and_nothing_else(
    sidecar: RunningSidecar, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_for(sidecar)

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        async with message.reply() as stream:
            await stream.send(text="let me see")
            if message.data == "bad":
                raise LookupError("a secret of the agent's")

    async with attached(agent), user_of(sidecar, "alice") as alice:
        await alice.send("bad")
        failed = await answer_of(alice)
        await alice.send("good")
        answered = await answer_of(alice)
    assert [chunk.stream.state for chunk in failed if chunk.stream] == ["open", "error"]
    assert "secret" not in text_of(failed)
    assert [chunk.stream.state for chunk in answered if chunk.stream] == ["open", "end"]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "InboundMessage" in record.getMessage()


async def test_one_context_is_handled_in_order_and_all_together_within_the_credits(sidecar: RunningSidecar) -> None:
    agent = agent_for(sidecar, credits=3)
    begun: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()
    most = 0

    @agent.on_message
    async def answer(context: AgentContext, message: InboundMessage) -> None:
        nonlocal most
        user = context.user.user_id
        assert user not in running
        running.add(user)
        most = max(most, len(running))
        begun[user].append(message.data)
        for _ in range(20):
            await asyncio.sleep(0)
        running.discard(user)
        await context.send(json=message.data)

    users = [user_of(sidecar, f"user-{number}") for number in range(8)]
    async with attached(agent):

        async def ask(user: Any) -> list[Any]:
            async with user:
                for number in range(10):
                    await user.send(number)
                return [(await within(anext(user))).data for _ in range(10)]

        answers = await asyncio.gather(*map(ask, users))
    assert answers == [list(range(10))] * 8
    assert list(begun.values()) == [list(range(10))] * 8
    assert 2 <= most <= 3


async def test_events_can_be_read_instead(sidecar: RunningSidecar) -> None:
    kinds: list[str] = []
    async with agent_for(sidecar) as agent:
        await agent.wait_attached(15)
        async with user_of(sidecar, "alice") as alice:
            await alice.send("hello", id="q-1")
            async for event in agent:
                kinds.append(type(event).__name__)
                if isinstance(event, InboundMessage):
                    async with event.reply() as stream:
                        await stream.send(text="well")
                    await alice.detach()
                elif not isinstance(event, Opened):
                    break
    assert kinds == ["Opened", "InboundMessage", "Away"]


async def test_reading_ends_when_the_agent_is_stopped(sidecar: RunningSidecar) -> None:
    async with agent_for(sidecar) as agent:
        await agent.wait_attached(15)
        reading = asyncio.create_task(anext(agent, None))
        await asyncio.sleep(0)
        await agent.stop()
        assert await within(reading) is None


async def do_nothing(context: AgentContext) -> None:
    """A handler."""


async def test_what_is_refused_for_good_is_raised(sidecar: RunningSidecar) -> None:
    first = agent_for(sidecar, "first", subscriptions=["ask"])
    second = agent_for(sidecar, "second", subscriptions=[Subscription("ask", "default")], grace_s=0.0)
    stranger = agent_for(sidecar, "stranger", service_token="no such token")
    for agent in (first, second, stranger):
        agent.on_opened(do_nothing)
    async with attached(first):
        with pytest.raises(SubscriptionTaken):
            await within(second.run())
        with pytest.raises(SubscriptionTaken):
            await second.wait_attached()
    with pytest.raises(TokenError):
        await within(stranger.run())
    with pytest.raises(TokenError):
        async with agent_for(sidecar, "stranger", service_token="x") as reading:
            await within(anext(reading))


async def test_without_a_sidecar_it_goes_on_trying(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with Agent("answers", endpoint="127.0.0.1:1", service_token="t", uniform=lambda: 0.0) as agent:
        with pytest.raises(TransportError):
            await agent.wait_attached(0.2)
    assert "not attached" in caplog.text
