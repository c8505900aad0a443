"""The load's agent: answers each user's message with one chunk, the whole of a stream, that says what it was asked.

With generated stubs alone, and as lean as an agent can be: what it has to say gathers while a write is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from benchmarks import relay
from benchmarks.load import DELIVER, opening_frame, receipts_of
from benchmarks.servers import Route, RunFailed, Server
from benchmarks.sockets import Tally
from sidecar.api.v1 import agent_service_pb2 as agent_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types
from sidecar_client.agent_stream import GATHER_S, GATHER_UP_TO, MAX_FRAME_EVENTS

if TYPE_CHECKING:  # grpc's classes are generic to the type checker only
    Call = grpc.aio.StreamStreamCall[bytes, Any]
else:
    Call = grpc.aio.StreamStreamCall

ATTACH: Final = "/sidecar.api.v1.AgentService/Attach"
SERVICE_TOKEN: Final = "x-service-token"
CREDITS: Final = 1_000
"""So many events may be under way; half of them are given at once when they were used."""

LaneMessage = pb.DeliverRequest.LaneMessage


class Outlet:
    """What is to be said on a call; it gathers while a write is under way, and is made into as few frames as may be.

    With `enough` it gathers until there is so much of it, or it is `gather_s` since something was said.
    """

    def __init__(
        self, call: Call, frames_of: Callable[[list[Any]], list[bytes]], enough: int = 1, gather_s: float = 0.0
    ) -> None:
        self._call = call
        self._frames_of = frames_of
        self._enough, self._gather_s = enough, gather_s
        self._gathering: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._items: list[Any] = []
        self._ready = asyncio.Event()

    def put(self, item: Any) -> None:
        """Say that, with whatever else waits."""
        self._items.append(item)
        if len(self._items) >= self._enough:
            self._ready.set()
        elif self._gathering is None:
            self._gathering = self._loop.call_at(self._next_at, self._ready.set)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            if self._gathering is not None:
                self._gathering.cancel()
                self._gathering = None
            self._next_at = self._loop.time() + self._gather_s
            items, self._items = self._items, []
            for frame in self._frames_of(items):
                await self._call.write(frame)


class Agent:
    """Opens a lane for each context of which it is told, and answers there.

    `asked` counts the messages that came. `opened` and `receipts` count what the sidecar said of lanes and answers.
    """

    def __init__(self, events: Call, answers: Call) -> None:
        self.asked = 0
        self.opened, self.receipts = Tally(), Tally()
        self._events = events
        self._answers = answers
        self._outlet = Outlet(answers, answer_frames)
        self._lanes: dict[str, int] = {}

    async def register(self) -> None:
        """Attach; the relay asks for no more than the call."""

    def tasks(self) -> list[Any]:
        """What it does at once, until cancelled. Raises RunFailed for whatever should not have come."""
        return [self._outlet.run(), self._read_events()]

    async def _read_events(self) -> None:
        while isinstance(answer := await self._events.read(), agent_pb.AttachResponse):
            for event in answer.events.items if answer.HasField("events") else (answer.event,):
                self._take(event)
        raise RunFailed("an agent's stream has ended")

    def _take(self, event: agent_pb.AttachResponse.Event) -> None:
        kind = event.WhichOneof("kind")
        if event.redelivered or kind not in {"opened", "message"}:
            raise RunFailed(f"an agent was told {kind}, again: {event.redelivered}")
        if kind == "message":
            self.asked += 1
            self._outlet.put(answer_to(event, self._lanes[event.isolation_key]))
        else:
            self._open(event)
        self._took(event.delivery_id)

    def _open(self, event: agent_pb.AttachResponse.Event) -> None:
        lane = self._lanes[event.isolation_key] = len(self._lanes)
        self._outlet.put(opening_frame(lane, Route(event.isolation_key, event.context_token)))

    def _took(self, delivery_id: str) -> None:
        """An event was dealt with."""


class SidecarAgent(Agent):
    """Attached to the sidecar: acknowledges what it is told, and wants a receipt for each answer."""

    def __init__(self, events: Call, answers: Call, max_frame_events: int) -> None:
        super().__init__(events, answers)
        self._max_frame_events = max_frame_events
        self._used = 0
        self._acknowledgements = Outlet(events, taking_frames, GATHER_UP_TO, GATHER_S)

    def tasks(self) -> list[Any]:
        return [*super().tasks(), self._acknowledgements.run(), self._read_answers()]

    async def register(self) -> None:
        """Attach, for whatever any user says."""
        register = agent_pb.AttachRequest.Register(
            service_name="bench", credits=CREDITS, max_frame_events=self._max_frame_events
        )
        register.subscriptions.add(event="*")
        await self._events.write(agent_pb.AttachRequest(register=register).SerializeToString())
        answer = await self._events.read()
        if not isinstance(answer, agent_pb.AttachResponse) or not answer.HasField("registered"):
            raise RunFailed(f"an agent was not registered: {answer!r}")

    def _took(self, delivery_id: str) -> None:
        self._acknowledgements.put(delivery_id)
        self._used += 1
        if self._used >= CREDITS // 2:
            self._acknowledgements.put(self._used)
            self._used = 0

    async def _read_answers(self) -> None:
        while True:
            answer = await self._answers.read()
            if isinstance(answer, pb.DeliverResponse) and answer.HasField("lane_opened"):
                self.opened.add(1)
            else:
                self.receipts.add(len(receipts_of(answer)))


def answer_to(event: agent_pb.AttachResponse.Event, lane: int) -> LaneMessage:
    """The whole answer to a message: one chunk with the message's own payload. The relay's have no id."""
    asked = event.message
    stream = types.Stream(stream_id=f"a-{asked.message_id}", state=types.STREAM_STATE_END)
    message = types.Message(event_type="answer", payload=asked.payload, reply_to=asked.message_id, stream=stream)
    return LaneMessage(lane=lane, message=message)


def answer_frames(items: Sequence[bytes | LaneMessage]) -> list[bytes]:
    """What opens lanes, each in its own frame, and then every answer in one."""
    frames = [item for item in items if isinstance(item, bytes)]
    answers = [item for item in items if isinstance(item, LaneMessage)]
    if answers:
        frames.append(pb.DeliverRequest(messages=pb.DeliverRequest.Messages(items=answers)).SerializeToString())
    return frames


def taking_frames(items: Sequence[str | int]) -> list[bytes]:
    """All delivery ids in one frame, all credits in another."""
    taken = agent_pb.AttachRequest.Acknowledge(delivery_ids=[item for item in items if isinstance(item, str)])
    frames = [agent_pb.AttachRequest(acknowledge=taken)]
    returned = sum(item for item in items if isinstance(item, int))
    if returned:
        frames.append(agent_pb.AttachRequest(credit=agent_pb.AttachRequest.Credit(credits=returned)))
    return [frame.SerializeToString() for frame in frames]


@asynccontextmanager
async def attached(
    server: Server, channel: grpc.aio.Channel, max_frame_events: int = MAX_FRAME_EVENTS
) -> AsyncIterator[Agent]:
    """An agent at work on that server, the sidecar where it may attach, else the relay, until the block ends."""
    if server.service_token:
        events = _call(channel, ATTACH, agent_pb.AttachResponse, ((SERVICE_TOKEN, server.service_token),))
        answers = _call(channel, DELIVER, pb.DeliverResponse)
        agent: Agent = SidecarAgent(events, answers, max_frame_events)
    else:
        events = answers = _call(channel, relay.ATTACH, agent_pb.AttachResponse)
        agent = Agent(events, answers)
    await agent.register()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in agent.tasks()]
        yield agent
        for task in tasks:
            task.cancel()
    events.cancel()
    answers.cancel()


def _call(channel: grpc.aio.Channel, method: str, response: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Call:
    call: Call = channel.stream_stream(method, response_deserializer=response.FromString)(metadata=metadata)
    return call
