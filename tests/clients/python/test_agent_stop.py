"""A stop in order: the agent leaves first, so that others have the rest, then ends what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar_client import Agent, AgentContext, InboundMessage
from sidecar_client.errors import TransportError
from tests.clients.python.agents import agent_for, answer_of, attached, text_of, user_of, within
from tests.clients.python.scripted_attach import Scripted, event, question, scripted
from tests.support.running import RunningSidecar

LONG_S = 600.0
"""A grace that no test lives to see the end of."""


class Held:
    """A handler of one agent's messages: answers in a stream that it ends when it is let go."""

    def __init__(self, agent: Agent) -> None:
        self.begun: list[str] = []
        self.taken = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        agent.on_message(self._answer)

    async def _answer(self, context: AgentContext, message: InboundMessage) -> None:
        self.begun.append(message.id)
        try:
            async with message.reply(stream_id=f"to-{message.id}") as stream:
                await stream.send(text="begun")
                self.taken.set()
                await self.go_on.wait()
        except asyncio.CancelledError:
            assert message.cancelled
            self.cancelled.set()
            raise


@asynccontextmanager
async def stopping(agent: Agent) -> AsyncIterator[asyncio.Task[None]]:
    """It stops with a long grace beside the block, and has when that ends."""
    stop = asyncio.create_task(agent.stop(grace_s=LONG_S))
    try:
        yield stop
        await within(stop)
    finally:
        await agent.stop(grace_s=0.0)


async def test_it_leaves_before_its_handlers_end_and_begins_nothing_that_waited() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for number in range(3):
            await call.write(question(f"d-{number}", f"q-{number}"))
        await server.read_on(call)

    async with scripted(script) as (server, agent):
        held = Held(agent)
        async with agent:
            ids = await server.said(acknowledged=1, credit=2)  # of what waits: it has come
            await within(held.taken.wait())
            async with stopping(agent) as stop:
                await within(server.half_closed.wait())
                assert not stop.done()
                held.go_on.set()
        states = [server.chunks.get_nowait().stream.state for _ in range(server.chunks.qsize())]
    assert ids == ["d-0"]
    assert held.begun == ["q-0"]
    assert states == [1, 2]


async def test_what_has_waited_for_half_of_its_ack_timeout_is_acknowledged_and_begun_though_it_stops() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for number in range(3):
            await call.write(question(f"d-{number}", f"q-{number}"))
        await server.read_on(call)

    async with scripted(script, ack_timeout_s=0.2) as (server, agent):
        held = Held(agent)
        async with agent:
            assert await server.said(acknowledged=3, credit=2) == ["d-0", "d-1", "d-2"]
            async with stopping(agent):
                await within(server.half_closed.wait())
                assert held.begun == ["q-0"]
                held.go_on.set()
    assert held.begun == ["q-0", "q-1", "q-2"]


async def test_what_waits_when_the_call_breaks_is_not_begun_unless_it_comes_again() -> None:
    """Another worker may have it by then."""

    async def script(server: Scripted, call: Any) -> None:
        if server.calls == 1:
            for number in range(3):
                await call.write(question(f"d-{number}", f"q-{number}"))
            while (await call.read()).credit.credits == 0:
                pass
            await call.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        await call.write(question("d-2", "q-2", redelivered=True))
        await server.read_on(call)

    async with scripted(script) as (server, agent):
        held = Held(agent)
        async with agent:
            assert await server.said(acknowledged=0, credit=1) == []  # q-2 has come again, and waits
            held.go_on.set()
            assert await server.said(acknowledged=1, credit=1) == ["d-2"]
            async with stopping(agent):
                pass
    assert held.begun == ["q-0", "q-2"]


async def test_what_was_under_way_when_it_left_goes_to_another() -> None:
    async def script(server: Scripted, call: Any) -> None:
        await call.write(question("d-1", "q-1"))
        await server.read_on(call)
        await call.write(event("d-2", opened=pb.AttachResponse.Opened()))
        await call.write(question("d-3", "q-3"))

    async with scripted(script) as (server, agent):
        held = Held(agent)
        async with agent:
            await within(held.taken.wait())
            async with stopping(agent):
                await within(server.half_closed.wait())
                held.go_on.set()
        assert await server.said(acknowledged=1, credit=0) == ["d-1"]
        assert server.frames.empty()
    assert held.begun == ["q-1"]


async def test_it_does_not_attach_again_though_the_call_that_it_leaves_breaks() -> None:
    async def script(server: Scripted, call: Any) -> None:
        await call.write(question("d-1", "q-1"))
        await server.read_on(call)
        await call.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with scripted(script) as (server, agent):
        held = Held(agent)
        async with agent:
            await within(held.taken.wait())
            async with stopping(agent):
                await within(server.half_closed.wait())
                held.go_on.set()
        assert server.calls == 1


async def test_an_agent_that_is_not_attached_stops_attaching_and_ends_what_it_has() -> None:
    broken = asyncio.Event()

    async def script(server: Scripted, call: Any) -> None:
        await call.write(question("d-1", "q-1"))
        await call.read()
        await call.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    def uniform() -> float:
        broken.set()
        return 0.99  # a wait that is over long before the grace is

    async with scripted(script, uniform=uniform) as (server, agent):
        held = Held(agent)
        async with agent:
            await within(held.taken.wait())
            await within(broken.wait())
            async with stopping(agent):
                await asyncio.sleep(0)
                with pytest.raises(TransportError, match="not registered"):
                    await within(agent.wait_attached())
                held.go_on.set()
        assert server.calls == 1
    assert held.begun == ["q-1"]


async def test_a_reader_is_handed_what_was_acknowledged_before_it_ends() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for number in range(3):
            await call.write(question(f"d-{number}", f"q-{number}"))
        await server.read_on(call)

    read: list[str] = []
    async with scripted(script, ack_timeout_s=0.2) as (server, agent), agent:
        await server.said(acknowledged=3, credit=2)
        async with stopping(agent):
            await within(server.half_closed.wait())

            async def read_on() -> None:
                async for each in agent:
                    assert isinstance(each, InboundMessage)
                    read.append(each.id)

            await within(read_on())
    assert read == ["q-0", "q-1", "q-2"]


async def test_what_a_reader_has_not_asked_for_when_it_leaves_is_others() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for number in range(3):
            await call.write(question(f"d-{number}", f"q-{number}", isolation_key=f"key-{number}"))
        await server.read_on(call)

    async with scripted(script) as (server, agent):
        async with agent:
            first = await within(anext(agent))
            assert isinstance(first, InboundMessage)
            assert await server.said(acknowledged=1, credit=0) == ["d-0"]
        await within(server.half_closed.wait())
        assert first.id == "q-0"
        assert server.frames.empty()


async def test_what_a_reader_has_not_asked_for_when_the_call_breaks_comes_again() -> None:
    again = asyncio.Event()

    async def script(server: Scripted, call: Any) -> None:
        if server.calls == 1:
            for number in range(2):
                await call.write(question(f"d-{number}", f"q-{number}", isolation_key=f"key-{number}"))
            await call.read()
            await call.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        again.set()
        await call.write(question("d-1", "q-1", isolation_key="key-1", redelivered=True))
        await server.read_on(call)

    async with scripted(script) as (server, agent), agent:
        read = [await within(anext(agent))]
        await within(again.wait())
        read.append(await within(anext(agent)))
        assert [each.id for each in read if isinstance(each, InboundMessage)] == ["q-0", "q-1"]
        assert await server.said(acknowledged=1, credit=1) == ["d-1"]  # q-0 is dealt with


async def test_run_serves_until_the_grace_that_was_given_is_over() -> None:
    async def script(server: Scripted, call: Any) -> None:
        await call.write(question("d-1", "q-1"))
        await server.read_on(call)

    async with scripted(script, grace_s=0.0) as (server, agent):
        held = Held(agent)
        running = asyncio.create_task(agent.run())
        await within(held.taken.wait())
        async with stopping(agent):
            await within(server.half_closed.wait())
            assert not running.done()
            held.go_on.set()
        await within(running)
        assert not held.cancelled.is_set()


async def test_while_one_stops_another_has_its_users_at_once_and_a_cancel_still_reaches_it(
    sidecar: RunningSidecar,
) -> None:
    leaving, staying = (agent_for(sidecar, "left-first") for _ in range(2))
    held, other = Held(leaving), Held(staying)
    other.go_on.set()
    welcomed: asyncio.Queue[str] = asyncio.Queue()

    @leaving.on_opened
    async def opened(context: AgentContext) -> None:
        welcomed.put_nowait(context.user.user_id)

    async with (
        attached(leaving),
        user_of(sidecar, "stays-long") as alice,
        user_of(sidecar, "drops-in") as bob,
    ):
        assert {await within(welcomed.get()) for _ in range(2)} == {"stays-long", "drops-in"}
        async with attached(staying):  # it takes over nothing: both contexts stick to the first
            await alice.send("long", id="q-1")
            await within(held.taken.wait())
            async with stopping(leaving) as stop:
                await bob.send("short", id="q-2")
                assert text_of(await answer_of(bob)) == "begun"
                assert (held.begun, other.begun) == (["q-1"], ["q-2"])
                assert not stop.done()
                alice.cancel(stream_id="to-q-1")
                await within(held.cancelled.wait())
