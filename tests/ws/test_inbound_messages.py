"""What clients say to agents over their sockets, what they cancel, and what agents hear of their coming and going."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.frames import Close as Frame

from sidecar.core.deliveries import Delivery
from sidecar.core.message import ContentType, StreamPlace, StreamState
from sidecar.core.ports import AuditEvent
from sidecar.core.workers import AgentWorker, Subscription
from tests.support.agents import read
from tests.ws.conftest import MakeHarness
from tests.ws.harness import Client, Harness, closed, masked


class Agent:
    """A worker of everything, or of what it says; it takes whatever there is when it is asked."""

    def __init__(self, edge: Harness, *subscriptions: Subscription, **options: Any) -> None:
        self._edge = edge
        values: dict[str, Any] = {"tenants": None, "credits_left": 1_000_000, "ack_timeout_s": 60.0} | options
        self._woken = asyncio.Event()
        self.broken = False
        self.worker = AgentWorker(
            "w", "support", subscriptions or (Subscription(None, None),), wake=self._wake, **values
        )
        edge.factory.agents.register(self.worker)

    def _wake(self) -> None:
        if self.broken:
            raise RuntimeError("text that nobody is to see")
        self._woken.set()

    async def take(self, count: int) -> list[Delivery]:
        """The next so many events."""
        taken: list[Delivery] = []
        async with asyncio.timeout(5):
            while len(taken) < count:
                delivery = self._edge.factory.agents.next(self.worker, self._edge.now())
                if delivery is None:
                    self._woken.clear()
                    await self._woken.wait()
                else:
                    taken.append(delivery)
        return taken

    async def told(self, count: int) -> list[str]:
        return [read(delivery) for delivery in await self.take(count)]

    async def cancelled(self) -> tuple[str, str]:
        """The (stream, message) of the next cancel."""
        async with asyncio.timeout(5):
            while (event := self.worker.next_cancelled()) is None:
                self._woken.clear()
                await self._woken.wait()
        return event.stream_id, event.message_id

    def acknowledge(self, *deliveries: Delivery) -> None:
        self._edge.factory.agents.acknowledge(self.worker, [delivery.delivery_id for delivery in deliveries])


async def resumed(edge: Harness, client: Client, attempt: int = 1) -> Client:
    again = await edge.client()
    resume = {"token": client.welcome["resume_token"], "last_sequence": 0, "attempt": attempt}
    welcome = await again.hello(token=edge.token(), resume=resume)
    assert welcome["connection_id"] == client.welcome["connection_id"]
    return again


# What the client says


@pytest.mark.parametrize("data", [None, True, [1, 2.5, "grüße"], {"a": {"b": [None]}}, 2**53 - 1, ""])
async def test_a_message_is_handed_over_then_accepted(edge: Harness, data: object) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    assert await client.ask(type="message", id="m-1", data=data) == {"type": "accepted", "id": "m-1"}
    opened, delivery = await agent.take(2)
    message = delivery.message
    assert message is not None
    assert (message.message_id, message.event_type, message.content_type) == ("m-1", "message", ContentType.JSON)
    assert json.loads(message.payload) == data
    assert (read(opened), delivery.queue.isolation_key) == ("alice opened", client.key)


async def test_a_message_goes_to_whom_takes_its_event_and_nobody_else(edge: Harness) -> None:
    Agent(edge, Subscription("default", "ask"))
    client = await edge.welcomed()
    assert (await client.ask(type="message", id="m-1", event="ask", data=1))["type"] == "accepted"
    assert (await client.ask(type="message", id="m-2", data=1))["reason"] == "NO_AGENT"
    stranger = await edge.welcomed(tenant_id="other")
    assert (await stranger.ask(type="message", id="m-1", event="ask", data=1))["reason"] == "NO_AGENT"


async def test_the_client_is_told_that_its_agent_is_busy_frame_by_frame(edge: Harness) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    for number in range(66):
        await client.send(type="message", id=f"m-{number}", data=number)
    answers = [await client.receive() for _ in range(66)]
    assert [answer["type"] for answer in answers] == ["accepted"] * 64 + ["error"] * 2
    assert [(answer["id"], answer["reason"]) for answer in answers[64:]] == [
        ("m-64", "AGENT_BUSY"),
        ("m-65", "AGENT_BUSY"),
    ]
    _, first, *others = await agent.take(65)
    assert len(others) == 63
    agent.acknowledge(first)
    assert (await client.ask(type="message", id="m-65", data=65))["type"] == "accepted"
    assert await agent.told(1) == ["alice m-65"]


@pytest.mark.parametrize("fragments", [1, 2])
async def test_a_short_message_overtakes_no_long_one(edge: Harness, fragments: int) -> None:
    """Short ones are taken as they are read, unless one that was not waits before them."""
    agent = Agent(edge)
    client = await edge.welcomed()
    long = b'{"type":"message","id":"m-1","data":"%b"}' % (b"x" * 2_000)
    first, rest = (long, b"") if fragments == 1 else (long[:100], long[100:])
    frames = masked(0x1, first, fin=fragments == 1) + (masked(0x0, rest) if rest else b"")
    for number in (2, 3):
        frames += masked(0x1, b'{"type":"message","id":"m-%d","data":1}' % number)
    client.connection.transport.write(frames)
    assert await agent.told(4) == ["alice opened", "alice m-1", "alice m-2", "alice m-3"]
    assert [(await client.receive())["id"] for _ in range(3)] == ["m-1", "m-2", "m-3"]


async def test_a_message_behind_a_refresh_waits_for_it(edge: Harness) -> None:
    Agent(edge)
    client = await edge.welcomed()
    edge.trail.hold()
    refresh = json.dumps({"type": "refresh", "token": edge.token()}).encode()
    message = b'{"type":"message","id":"m-1","data":1}'
    client.connection.transport.write(masked(0x1, refresh) + masked(0x1, message))
    await edge.trail.until(lambda: edge.trail.waiting)
    edge.trail.release()
    assert [(await client.receive())["type"] for _ in range(2)] == ["refreshed", "accepted"]


async def test_a_bug_costs_its_socket_and_is_logged_without_its_text(edge: Harness) -> None:
    """Also where the message is taken as it is read, in the transport's own call."""
    agent = Agent(edge)
    client, other = await edge.welcomed(), await edge.welcomed("bob")
    agent.broken = True
    with capture_logs() as logs:
        await client.send(type="message", id="m-1", data=1)
        assert await client.closed() == Frame(1001, "going_away")
    assert [(log["event"], log["error"]) for log in logs] == [("session failed", "RuntimeError")]
    agent.broken = False
    assert await other.ask(type="message", id="m-1", data=1) == {"type": "accepted", "id": "m-1"}
    assert len(edge.factory) == 2


async def test_ids_are_idempotent_across_resumes(edge: Harness) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    assert await client.ask(type="message", id="m-1", data=1) == {"type": "accepted", "id": "m-1"}
    client.connection.transport.abort()
    again = await resumed(edge, client)
    assert await again.ask(type="message", id="m-1", data=1) == {"type": "accepted", "id": "m-1", "duplicate": True}
    assert (await again.ask(type="message", id="m-1", data=2))["reason"] == "MESSAGE_ID_REUSED"
    assert (await again.ask(type="message", id="m-1", event="other", data=1))["reason"] == "MESSAGE_ID_REUSED"
    assert await again.ask(type="message", id="m-2", data=2) == {"type": "accepted", "id": "m-2"}
    assert await agent.told(3) == ["alice opened", "alice m-1", "alice m-2"]


async def test_two_clients_may_use_the_same_ids(edge: Harness) -> None:
    agent = Agent(edge)
    for name in ("alice", "bob"):
        client = await edge.welcomed(name)
        assert await client.ask(type="message", id="m-1", data=name) == {"type": "accepted", "id": "m-1"}
    assert sorted(await agent.told(4)) == ["alice m-1", "alice opened", "bob m-1", "bob opened"]


async def test_a_mirror_has_nobody_to_talk_to(edge: Harness) -> None:
    agent = Agent(edge)
    primary = await edge.welcomed()
    mirror = await edge.client()
    await mirror.hello(token=edge.token(), mirror={"token": primary.welcome["resume_token"]})
    assert (await mirror.ask(type="message", id="m-1", data=1))["reason"] == "NO_AGENT"
    await mirror.send(type="cancel", stream_id="s-1")
    assert (await mirror.ask(type="unheard"))["type"] == "error"  # so the cancel was read
    assert await primary.ask(type="message", id="m-1", data=1) == {"type": "accepted", "id": "m-1"}
    assert await agent.told(2) == ["alice opened", "alice m-1"]
    assert agent.worker.next_cancelled() is None


# What it cancels, and the answers


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"stream_id": "s-1"}, ("s-1", "")),
        ({"id": "m-1"}, ("", "m-1")),
        ({"stream_id": "s-1", "id": "m-1"}, ("s-1", "m-1")),
    ],
)
async def test_a_cancel_is_told_before_the_first_chunk(
    edge: Harness, members: dict[str, str], told: tuple[str, str]
) -> None:
    agent = Agent(edge, credits_left=0)
    client = await edge.welcomed()
    for _ in range(2):
        await client.send(type="cancel", **members)
    assert await agent.cancelled() == told
    await client.ask(type="unheard")
    assert agent.worker.next_cancelled() is None  # a repeat is nothing new


async def test_chunks_come_with_their_place_and_what_they_answer(edge: Harness) -> None:
    client = await edge.welcomed()
    manager = edge.manager(client.key)
    for index, state in enumerate((StreamState.OPEN, StreamState.END)):
        place = StreamPlace("s-1", index, state)
        edge.send(manager, b"" if index else b'"a"', stream=place, reply_to="m-1", event_type="token")
    frames = [await client.receive() for _ in range(2)]
    assert [frame["stream"] for frame in frames] == [
        {"id": "s-1", "index": 0, "state": "open"},
        {"id": "s-1", "index": 1, "state": "end"},
    ]
    assert [(frame["reply_to"], frame["event"], frame["data"]) for frame in frames] == [
        ("m-1", "token", "a"),
        ("m-1", "token", None),
    ]


# Coming and going


async def test_a_context_is_open_once_its_client_was_welcomed(edge: Harness) -> None:
    agent = Agent(edge)
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    await edge.trail.until(lambda: edge.trail.waiting)
    assert len(edge.factory) == 1
    assert not agent.worker.queues
    edge.trail.release()
    assert (await client.receive())["type"] == "welcome"
    assert await agent.told(1) == ["alice opened"]


async def test_a_client_that_goes_before_its_welcome_was_never_there(edge: Harness) -> None:
    agent = Agent(edge)
    edge.trail.hold()
    client = await edge.client()
    await client.send(type="hello", token=edge.token())
    await edge.trail.until(lambda: edge.trail.waiting)
    client.connection.transport.abort()
    await edge.trail.seen(AuditEvent.SOCKET_CLOSED)
    edge.trail.release()
    await edge.trail.seen(AuditEvent.CONTEXT_CLOSED)
    assert not agent.worker.queues


async def test_a_life(edge: Harness) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    assert await agent.told(1) == ["alice opened"]
    client.connection.transport.abort()
    assert await agent.told(1) == ["alice away"]
    again = await resumed(edge, client)
    assert await agent.told(1) == ["alice back"]
    await again.connection.close(1000)
    (end,) = await agent.take(1)
    assert end.closing == (1000, "client_closed")


async def test_a_resume_that_overtakes_the_loss_of_its_socket_is_nothing_to_tell(edge: Harness) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    assert await agent.told(1) == ["alice opened"]
    for attempt in range(1, 4):
        client = await resumed(edge, client, attempt)
    await client.ask(type="message", id="m-1", data=1)
    assert await agent.told(1) == ["alice m-1"]


async def test_the_end_of_the_resume_window_has_no_code(edge: Harness) -> None:
    agent = Agent(edge)
    client = await edge.welcomed()
    client.connection.transport.abort()
    assert await agent.told(2) == ["alice opened", "alice away"]
    edge.advance(edge.limits.outbox.resume_window_s)
    (end,) = await agent.take(1)
    assert end.closing == (0, "resume_window_over")


# Raw clients


async def test_what_a_raw_client_says_is_handed_over_without_an_id(edge: Harness) -> None:
    agent = Agent(edge)
    connection = await edge.raw()
    for data in ("grüße", b"\x00\xff", "grüße"):
        await connection.send(data)
    _, *deliveries = await agent.take(4)
    messages = [delivery.message for delivery in deliveries]
    assert [(message.payload, message.content_type) for message in messages if message is not None] == [
        ("grüße".encode(), ContentType.TEXT),
        (b"\x00\xff", ContentType.BINARY),
        ("grüße".encode(), ContentType.TEXT),
    ]
    assert {(message.message_id, message.event_type) for message in messages if message} == {("", "message")}
    await connection.close(1000)
    assert await agent.told(1) == ["alice closed"]


async def test_a_raw_client_without_an_agent_is_told_nothing(edge: Harness) -> None:
    connection = await edge.raw()
    await connection.send("anybody?")
    await connection.close(1000)
    end = await closed(connection)
    assert end is not None
    assert end.code == 1000


async def test_a_message_of_the_limit_and_one_past_it(make_edge: MakeHarness) -> None:
    edge = await make_edge(max_inbound_bytes=1_024)
    agent = Agent(edge)
    client = await edge.welcomed()
    shell = len(json.dumps({"type": "message", "id": "m-1", "data": ""}))
    assert (await client.ask(type="message", id="m-1", data="x" * (1_024 - shell)))["type"] == "accepted"
    await client.send(type="message", id="m-2", data="x" * (1_025 - shell))
    end = await client.closed()
    assert end is not None
    assert end.code == 1009
    assert await agent.told(3) == ["alice opened", "alice m-1", "alice away"]
