"""Rounds through an agent, on the relay and on the sidecar, and what must not pass for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest

from benchmarks.agents import CREDITS, LaneMessage, SidecarAgent, answer_frames, answer_to, taking_frames
from benchmarks.asking import AskingClient, Rounds, SidecarAskingClient, question
from benchmarks.load import PAYLOAD_BYTES, opening_frame
from benchmarks.relay import GATHER
from benchmarks.servers import AGENTS, Route, RunFailed, Server, running_relay, running_sidecar
from benchmarks.sockets import Crowd, Opcode, Tally, client_frame
from benchmarks.works.agent_round import company
from sidecar.api.v1 import agent_service_pb2 as agent_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types
from sidecar_client.agent_stream import GATHER_UP_TO, MAX_FRAME_EVENTS

Running = Callable[[], AbstractAsyncContextManager[Server]]
Event = agent_pb.AttachResponse.Event
SIDES = [
    (running_relay, AskingClient),
    (lambda: running_relay(GATHER), AskingClient),
    (lambda: running_sidecar(settings=AGENTS), SidecarAskingClient),
]
OPENED = Event(delivery_id="d-1", isolation_key="k", context_token="t", opened=agent_pb.AttachResponse.Opened())
ASKED = Event(
    delivery_id="d-2",
    isolation_key="k",
    message=agent_pb.AttachResponse.Inbound(message_id="q-7", payload=b'"what?"'),
)


@pytest.mark.parametrize(("running", "client"), SIDES, ids=["relay", "gathering", "sidecar"])
async def test_every_round_is_asked_answered_and_timed(running: Running, client: type[AskingClient]) -> None:
    async with company(running(), client, users=3) as among:
        measured = await among.measure(3, 30)
        assert (measured.operations, len(measured.latencies_s)) == (30, 30)
        assert min(measured.latencies_s) > 0
        alone = await among.measure(1, 3, 0.01)
        assert alone.wall_s > 0.03
        assert among.agent.asked == 33


async def test_a_message_that_no_agent_takes_fails_the_run() -> None:
    members: list[SidecarAskingClient] = []

    def made(request: bytes, hello: bytes, tally: Tally) -> SidecarAskingClient:
        members.append(SidecarAskingClient(request, hello, tally))
        return members[-1]

    async with running_sidecar() as server:
        crowd = Crowd(server, made)
        await crowd.join(["alice"])
        members[0].ask(Rounds(1))
        with pytest.raises(RunFailed, match=r"a user's message was refused: .*NO_AGENT"):
            await crowd.tally.reach(1)


# The agent


class Stream:
    """A call on which that can be read, and then nothing more until it ends; `written` is what was said on it."""

    def __init__(self, *answers: Any, ends: bool = False) -> None:
        self._answers = [*answers, grpc.aio.EOF] if ends else list(answers)
        self.written: list[bytes] = []

    async def read(self) -> Any:
        return self._answers.pop(0) if self._answers else await asyncio.Event().wait()

    async def write(self, frame: bytes) -> None:
        self.written.append(frame)


def told(*events: Event) -> list[agent_pb.AttachResponse]:
    return [agent_pb.AttachResponse(event=event) for event in events]


def agent(events: Any, answers: Any) -> SidecarAgent:
    return SidecarAgent(events, answers, MAX_FRAME_EVENTS)


async def work(of: SidecarAgent, until: Callable[[], bool] = lambda: False) -> None:
    """Let it work until then, or until it fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in of.tasks()]
        while not until():  # noqa: ASYNC110 - what it waits for is the agent's
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()


async def test_an_agent_opens_a_lane_answers_there_and_acknowledges() -> None:
    events, answers = Stream(*told(OPENED, ASKED)), Stream()
    await work(agent(events, answers), lambda: len(answers.written) == 2 and bool(events.written))
    answer = pb.DeliverRequest.FromString(answers.written[1]).messages.items[0]
    assert answers.written[0] == opening_frame(0, Route("k", "t"))
    assert (answer.lane, answer.message.payload, answer.message.reply_to) == (0, b'"what?"', "q-7")
    taken = [agent_pb.AttachRequest.FromString(frame).acknowledge.delivery_ids for frame in events.written]
    assert [each for some in taken for each in some] == ["d-1", "d-2"]


async def test_the_events_of_one_frame_are_answered_in_one() -> None:
    frame = agent_pb.AttachResponse(events=agent_pb.AttachResponse.Events(items=[OPENED, *[ASKED] * 3]))
    events, answers = Stream(frame), Stream()
    at_work = agent(events, answers)
    await work(at_work, lambda: len(answers.written) == 2)
    assert len(pb.DeliverRequest.FromString(answers.written[1]).messages.items) == at_work.asked == 3


async def test_acknowledgements_gather_as_the_clients_do() -> None:
    events = Stream(*told(OPENED, *[ASKED] * (2 * GATHER_UP_TO - 1)))
    await work(agent(events, Stream()), lambda: bool(events.written))
    taken = agent_pb.AttachRequest.FromString(events.written[0]).acknowledge.delivery_ids
    assert len(taken) >= GATHER_UP_TO


async def test_credits_are_given_back_when_half_of_them_are_used() -> None:
    events = Stream(*told(OPENED, *[ASKED] * (CREDITS // 2 - 1)))
    await work(agent(events, Stream()), lambda: len(events.written) >= 2)
    assert agent_pb.AttachRequest.FromString(events.written[-1]).credit.credits == CREDITS // 2


REDELIVERED = Event()
REDELIVERED.CopyFrom(ASKED)
REDELIVERED.redelivered = True
AWAY = Event(isolation_key="k", away=agent_pb.AttachResponse.Away())
REFUSED = pb.DeliverResponse()
REFUSED.receipts.items.add(lane=0).error.message = "no"
REPEATED = pb.DeliverResponse()
REPEATED.receipts.items.add(lane=0).receipt.duplicate = True
LANE_ERROR = pb.DeliverResponse(lane_error=pb.DeliverResponse.LaneError(lane=0))


@pytest.mark.parametrize(
    ("events", "answers", "why"),
    [
        (Stream(*told(OPENED, REDELIVERED)), Stream(), "an agent was told message, again: True"),
        (Stream(*told(AWAY)), Stream(), "an agent was told away"),
        (Stream(ends=True), Stream(), "an agent's stream has ended"),
        (Stream(), Stream(REFUSED), "a message was refused"),
        (Stream(), Stream(REPEATED), "a message was refused"),
        (Stream(), Stream(LANE_ERROR), "no receipts but lane_error"),
    ],
)
async def test_what_an_agent_should_not_be_told_fails_the_run(events: Stream, answers: Stream, why: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(RunFailed, match=why)):
        await work(agent(events, answers))


async def test_an_agent_that_is_not_registered_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="an agent was not registered"):
        await agent(Stream(ends=True), Stream()).register()


def test_an_answer_is_a_whole_stream() -> None:
    answer = answer_to(ASKED, 3)
    assert answer.lane == 3
    assert answer.message.stream == types.Stream(stream_id="a-q-7", state=types.STREAM_STATE_END)


def test_openings_go_first_and_all_answers_in_one_frame() -> None:
    one, other = LaneMessage(lane=1), LaneMessage(lane=2)
    *openings, frame = answer_frames([one, b"opens 2", other])
    assert openings == [b"opens 2"]
    assert list(pb.DeliverRequest.FromString(frame).messages.items) == [one, other]
    assert answer_frames([b"opens"]) == [b"opens"]


def test_acknowledgements_are_one_frame_and_credits_another() -> None:
    taken, credit = (agent_pb.AttachRequest.FromString(frame) for frame in taking_frames(["d-1", 500, "d-2"]))
    assert list(taken.acknowledge.delivery_ids) == ["d-1", "d-2"]
    assert credit.credit.credits == 500
    assert len(taking_frames(["d-1"])) == 1


# The users


class Wire(asyncio.Transport):
    """Records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.frames.append(bytes(data))


def joined(tally: Tally) -> tuple[SidecarAskingClient, Wire]:
    client, wire = SidecarAskingClient(b"request", b"hello", tally), Wire()
    client.connection_made(wire)
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x07welcome")
    wire.frames.clear()
    return client, wire


def text(payload: bytes) -> bytes:
    return b"\x81\x7e" + len(payload).to_bytes(2) + payload


def answered(number: int) -> bytes:
    return text(b'{"type":"message","data":' + question(number) + b"}")


async def test_a_user_asks_again_when_answered_as_long_as_there_are_rounds() -> None:
    tally, rounds = Tally(), Rounds(2)
    user, wire = joined(tally)
    rounds.next(user)
    asked = b'{"type":"message","id":"q-1","event":"question","data":' + question(1) + b"}"
    assert wire.frames == [client_frame(Opcode.TEXT, asked)]
    user.data_received(text(b'{"type":"accepted","id":"q-1"}'))
    assert (len(wire.frames), user.accepted) == (1, 1)
    user.data_received(answered(1))
    assert len(wire.frames) == 2
    user.data_received(answered(2))
    assert len(wire.frames) == 2
    await tally.reach(2)
    assert len(rounds.latencies_s) == 2


@pytest.mark.parametrize("came", [answered(2), answered(1) * 2, text(b'{"type":"gap","from":1}')])
async def test_an_answer_that_is_not_the_user_s_fails_the_run(came: bytes) -> None:
    tally = Tally()
    user, _ = joined(tally)
    Rounds(1).next(user)
    user.data_received(came)
    with pytest.raises(RunFailed, match=r"\d answers, of which the last is"):
        await tally.reach(1)


def test_a_question_is_as_long_as_a_service_s_message() -> None:
    assert {len(question(number)) for number in (1, 9_999_999)} == {PAYLOAD_BYTES}
