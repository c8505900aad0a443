"""What an agent says on its Attach call. A script does what the real sidecar does after minutes, or by accident."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar_client import AgentContext, InboundMessage, Opened, Subscription
from sidecar_client.agent_stream import GATHER_S, GATHER_UP_TO, MAX_FRAME_EVENTS, AgentStream, Registration
from tests.clients.python.agents import within
from tests.clients.python.scripted_attach import Scripted, event, question, scripted


async def test_it_registers_as_it_was_told() -> None:
    async with (
        scripted(Scripted.read_on, subscriptions=["ask", Subscription("*", "acme")], credits=7, ack_timeout_s=90.0) as (
            server,
            agent,
        ),
        agent,
    ):
        await agent.wait_attached(10)
    (register,) = server.registered
    assert (register.service_name, register.credits, register.ack_timeout.seconds) == ("answers", 7, 90)
    assert [(each.tenant_id, each.event) for each in register.subscriptions] == [("", "ask"), ("acme", "*")]
    assert server.tokens == ["secret"]


async def test_what_comes_again_is_acknowledged_and_not_handled_again() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for frame in (
            event("d-1", opened=pb.AttachResponse.Opened()),
            question("d-2", "q-1"),
            event("d-1", opened=pb.AttachResponse.Opened(), redelivered=True),
            question("d-2", "q-1", redelivered=True),
            question("e-9", "q-1", redelivered=True),
        ):
            await call.write(frame)
        await server.read_on(call)

    handled: list[str] = []
    async with scripted(script) as (server, agent):

        @agent.on_opened
        async def opened(context: AgentContext) -> None:
            handled.append("opened")

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            handled.append(message.id)

        async with agent:
            ids = await server.said(acknowledged=5, credit=5)
    assert sorted(ids) == ["d-1", "d-1", "d-2", "d-2", "e-9"]
    assert handled == ["opened", "q-1"]


async def test_the_events_of_one_frame_are_taken_in_their_order_each_with_its_credit() -> None:
    async def script(server: Scripted, call: Any) -> None:
        cancelled = pb.AttachResponse.Cancelled(message_id="q-2")
        frames = [event("", cancelled=cancelled), *(question(f"d-{n}", f"q-{n}") for n in range(4))]
        await call.write(pb.AttachResponse(events=pb.AttachResponse.Events(items=[each.event for each in frames])))
        await call.write(question("d-4", "q-4"))
        await server.read_on(call)

    handled: list[str] = []
    async with scripted(script) as (server, agent):

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            handled.append(message.id)

        async with agent:
            assert sorted(await server.said(acknowledged=5, credit=5)) == ["d-0", "d-1", "d-2", "d-3", "d-4"]
    assert handled == ["q-0", "q-1", "q-3", "q-4"]
    assert [register.max_frame_events for register in server.registered] == [MAX_FRAME_EVENTS]


async def test_an_event_of_a_later_version_is_acknowledged_and_passed_over() -> None:
    async def script(server: Scripted, call: Any) -> None:
        await call.write(event("d-1"))
        await server.read_on(call)

    async with scripted(script) as (server, agent), agent:
        assert await server.said(acknowledged=1, credit=1) == ["d-1"]


async def test_a_cancel_that_comes_before_its_message() -> None:
    async def script(server: Scripted, call: Any) -> None:
        await call.write(event("", cancelled=pb.AttachResponse.Cancelled(message_id="q-1")))
        await call.write(question("d-1", "q-1"))
        await call.write(question("d-2", "q-2"))
        await server.read_on(call)

    handled: list[str] = []
    async with scripted(script) as (server, agent):

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            handled.append(message.id)

        async with agent:
            assert sorted(await server.said(acknowledged=2, credit=2)) == ["d-1", "d-2"]
    assert handled == ["q-2"]


async def test_after_a_break_it_registers_for_what_it_has_room_for() -> None:
    go_on = asyncio.Event()

    async def script(server: Scripted, call: Any) -> None:
        if server.calls == 1:
            await call.write(question("d-1", "q-1"))
            frame = await call.read()
            assert list(frame.acknowledge.delivery_ids) == ["d-1"]
            await call.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        go_on.set()
        await server.read_on(call)

    async with scripted(script, credits=3) as (server, agent):

        @agent.on_message
        async def answer(context: AgentContext, message: InboundMessage) -> None:
            await go_on.wait()

        async with agent:
            await server.said(acknowledged=0, credit=1)
    assert [register.credits for register in server.registered] == [3, 2]


async def test_the_newest_token_is_the_one_that_is_used() -> None:
    async def script(server: Scripted, call: Any) -> None:
        for number in (1, 2):
            opened = pb.AttachResponse.Opened()
            await call.write(event(f"d-{number}", context_token=f"token-{number}", opened=opened))
        await server.read_on(call)

    async with scripted(script) as (_, agent), agent:
        first = await within(anext(agent))
        second = await within(anext(agent))
        assert isinstance(first, Opened)
        assert first.context is second.context
        assert first.context.context_token == "token-2"


# When what is to be said is said


class Line:
    """A call: what comes on it is the test's to say, what was said on it is kept."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[Any] = asyncio.Queue()
        self.said: list[pb.AttachRequest] = []
        self.half_closed = False

    async def read(self) -> Any:
        return await self.coming.get()

    async def write(self, frame: pb.AttachRequest) -> None:
        self.said.append(frame)

    async def done_writing(self) -> None:
        self.half_closed = True
        self.coming.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        """Nothing waits for it."""


Registered = tuple[AgentStream, Line]
NEVER_S = 3_600.0


@asynccontextmanager
async def registered(credits: int = 100, gather_s: float = NEVER_S) -> AsyncIterator[Registered]:
    """A stream on which something was said just now."""
    line = Line()
    stream = AgentStream(line, lambda: None, lambda _: None, gather_s)
    running = asyncio.create_task(stream.run(Registration("answers", (), None).frame(credits)))
    assert await said_on(line) == [("", credits)]
    stream.acknowledge("d-alone")
    assert await said_on(line) == [("d-alone", 0)]  # at once: nothing was said before
    yield stream, line
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def said_on(line: Line) -> list[tuple[str, int]]:
    """The ids and the credits of each frame since this was last asked, once everything has come to rest."""
    for _ in range(5):
        await asyncio.sleep(0)
    said, line.said = line.said, []
    return [(" ".join(each.acknowledge.delivery_ids), each.credit.credits or each.register.credits) for each in said]


async def test_acknowledgements_and_credits_gather_and_leave_together() -> None:
    async with registered() as (stream, line):
        for number in range(GATHER_UP_TO - 1):
            stream.acknowledge(f"d-{number}")
            stream.credit(1)
        assert await said_on(line) == []
        stream.acknowledge("d-7")
        assert await said_on(line) == [("d-0 d-1 d-2 d-3 d-4 d-5 d-6 d-7", 0), ("", 7)]
        stream.credit(GATHER_UP_TO)
        assert await said_on(line) == [("", GATHER_UP_TO)]


async def test_what_gathers_is_said_after_a_moment() -> None:
    async with registered(gather_s=0.001) as (stream, line):
        for name in ("d-1", "d-2"):
            stream.acknowledge(name)
            async with asyncio.timeout(10):
                while not line.said:  # noqa: ASYNC110 - the moment is the loop's own
                    await asyncio.sleep(0)
            assert await said_on(line) == [(name, 0)]


@pytest.mark.parametrize(("credits", "events"), [(1, 1), (4, 2), (6, 3)])
async def test_a_credit_goes_at_once_where_few_are_left(credits: int, events: int) -> None:
    async with registered(credits=credits) as (stream, line):
        for number in range(events):
            line.coming.put_nowait(question(f"d-{number}", "q-1"))
            line.coming.put_nowait(event("", cancelled=pb.AttachResponse.Cancelled(message_id="q")))  # uses none
            assert await said_on(line) == []
        for _ in range(events - 1):
            stream.credit(1)
            assert await said_on(line) == []
        stream.credit(1)
        assert await said_on(line) == [("", events)]


async def test_who_leaves_says_everything_first() -> None:
    async with registered() as (stream, line):
        stream.acknowledge("d-1")
        stream.leave()
        stream.acknowledge("d-2")
        assert await said_on(line) == [("d-1 d-2", 0)]
        assert line.half_closed


async def test_what_is_not_said_when_the_call_ends_is_said_no_more() -> None:
    async with registered(gather_s=0.0) as (stream, line):
        stream.acknowledge("d-1")
        line.coming.put_nowait(grpc.aio.EOF)
        assert await said_on(line) in ([], [("d-1", 0)])
        stream.acknowledge("d-2")
        assert await said_on(line) == []


@pytest.mark.parametrize(("timeout_s", "gather_s"), [(None, GATHER_S), (60.0, GATHER_S), (0.02, 0.002)])
def test_no_acknowledgement_waits_for_what_its_time_out_is(timeout_s: float | None, gather_s: float) -> None:
    assert Registration("answers", (), timeout_s).gather_s == pytest.approx(gather_s)
