"""Lanes that asked to hear of acknowledgements and losses."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.rpc.boundary import CallFacts
from sidecar.rpc.lanes import MAX_UNTOLD_LOSSES, LaneReport
from tests.rpc.rig import Attempt, Client, DeliverCall, Rig


async def reporting(rig: Rig, client: Client, lane: int = 1) -> DeliverCall:
    stream = rig.deliver()
    await stream.open(lane, rig.attempt(client), report_acknowledged=True)
    assert (await stream.read()).lane_opened.lane == lane
    return stream


def acknowledge(rig: Rig, client: Client, sequence: int) -> None:
    assert client.manager.acknowledge(client.socket.attach_id, sequence, rig.at())


async def test_a_lane_hears_of_its_own_contexts_acknowledgements(rig: Rig) -> None:
    stream = await reporting(rig, rig.alice)
    for client in (rig.alice, rig.bystander):
        await rig.send(client)
        await rig.send(client)
    acknowledge(rig, rig.bystander, 2)
    acknowledge(rig, rig.alice, 1)
    answer = await stream.read()
    assert (answer.acknowledged.lane, answer.acknowledged.sequence) == (1, 1)
    acknowledge(rig, rig.alice, 2)
    assert (await stream.read()).acknowledged.sequence == 2
    await stream.finish()


async def test_the_receipt_stands_before_the_acknowledgement(rig: Rig) -> None:
    stream = await reporting(rig, rig.alice)
    await stream.send((1, rig.attempt().message))
    receipts = await stream.read()
    acknowledge(rig, rig.alice, 1)
    assert receipts.receipts.items[0].receipt.sequence == 1
    assert (await stream.read()).acknowledged.sequence == 1
    await stream.finish()


async def test_a_service_that_comes_back_is_told_where_its_client_is(rig: Rig) -> None:
    await rig.send(rig.alice)
    acknowledge(rig, rig.alice, 1)
    stream = await reporting(rig, rig.alice)
    assert (await stream.read()).acknowledged.sequence == 1
    await stream.finish()
    assert not rig.alice.manager._outcomes


async def test_a_renewal_may_begin_and_end_the_reports(rig: Rig) -> None:
    stream = rig.deliver()
    await stream.open(1, rig.attempt())
    assert (await stream.read()).lane_opened.lane == 1
    await rig.send(rig.alice)
    acknowledge(rig, rig.alice, 1)
    await stream.open(1, rig.attempt(), report_acknowledged=True)
    assert (await stream.read()).lane_opened.lane == 1
    assert (await stream.read()).acknowledged.sequence == 1
    await stream.open(1, rig.attempt(), report_acknowledged=False)
    assert (await stream.read()).lane_opened.lane == 1
    assert not rig.alice.manager._outcomes
    await stream.finish()


async def test_a_lane_hears_of_what_expired_unwritten(rig: Rig) -> None:
    stream = await reporting(rig, rig.alice)
    rig.alice.socket.paused = True
    for _ in range(3):
        await rig.send(rig.alice)
    rig.tick(121.0)
    answer = (await stream.read()).dropped
    assert (answer.lane, getattr(answer, "from"), answer.to) == (1, 1, 3)
    await stream.finish()


async def test_a_closed_lane_hears_nothing(rig: Rig) -> None:
    stream = await reporting(rig, rig.alice)
    await stream.close_lane(1)
    await stream.finish()
    assert not rig.alice.manager._outcomes


def test_what_nobody_reads_is_bounded() -> None:
    told: list[LaneReport] = []
    report = LaneReport(7, told.append)
    for number in range(MAX_UNTOLD_LOSSES):
        report.dropped(2 * number, 2 * number)
    assert report.too_many is False
    report.dropped(10_000, 10_001)
    assert report.too_many is True
    report.acknowledged(3)
    report.acknowledged(9)
    frames = [pb.DeliverResponse.FromString(frame) for frame in report.take()]
    assert [frame.WhichOneof("frame") for frame in frames] == ["dropped"] * (MAX_UNTOLD_LOSSES + 1) + ["acknowledged"]
    assert frames[-1].acknowledged.sequence == 9
    assert report.take() == []


async def test_a_service_that_does_not_read_loses_its_lane(rig: Rig) -> None:
    stream = await reporting(rig, rig.alice)
    (report,) = rig.alice.manager._watched()._listeners
    for number in range(MAX_UNTOLD_LOSSES + 1):
        report.dropped(2 * number + 1, 2 * number + 1)
    answer = await stream.read()
    assert answer.lane_error.lane == 1
    assert answer.lane_error.error.code == 8  # RESOURCE_EXHAUSTED
    assert not rig.alice.manager._outcomes
    await stream.finish()


class HeldCall:
    """A call that takes frames at once, and is written to only when a test lets it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.writable = asyncio.Event()
        self._asked: asyncio.Queue[Any] = asyncio.Queue()
        self._taken = False

    def ask(self, **frame: Any) -> None:
        self._asked.put_nowait(pb.DeliverRequest(**frame).SerializeToString())

    def ask_for_lane(self, attempt: Attempt) -> None:
        lane = pb.DeliverRequest.OpenLane(lane=1, isolation_key=attempt.key, context_token=attempt.token)
        lane.report_acknowledged = True
        self.ask(open_lane=lane)

    def finish(self) -> None:
        self._asked.put_nowait(grpc.aio.EOF)

    async def dealt_with(self) -> None:
        """Return once every frame so far was."""
        async with asyncio.timeout(10):
            await self._asked.join()

    async def read(self) -> Any:
        if self._taken:
            self._asked.task_done()
        data = await self._asked.get()
        self._taken = True
        return data

    async def write(self, data: bytes) -> None:
        await self.writable.wait()
        self.told.append(str(pb.DeliverResponse.FromString(data).WhichOneof("frame")))

    def peer(self) -> str:
        return "unix:"


async def test_what_a_lane_had_yet_to_hear_stands_before_its_next_context(rig: Rig) -> None:
    call: Any = HeldCall()
    call.ask_for_lane(rig.attempt(rig.alice))
    stream = asyncio.create_task(rig.edge._streams.deliver(call, CallFacts(call, "Deliver")))
    await call.dealt_with()
    await rig.send(rig.alice)
    acknowledge(rig, rig.alice, 1)
    call.ask(close_lane=pb.DeliverRequest.CloseLane(lane=1))
    call.ask_for_lane(rig.attempt(rig.bystander))
    await call.dealt_with()
    call.writable.set()
    call.finish()
    await stream
    assert call.told == ["lane_opened", "acknowledged", "lane_opened"]
