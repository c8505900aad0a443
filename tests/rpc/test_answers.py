"""When a stream's answers leave: at once, or gathered for a moment while the client has several frames in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.errors import BadRequest
from sidecar.core.message import Receipt
from sidecar.rpc.answers import ENOUGH, MAX_LOOKS, MAX_RECEIPTS, QUIET_S, Answers
from sidecar.rpc.wire import lane_field

LANE = lane_field(1)
OPENED = pb.DeliverResponse(lane_opened=pb.DeliverResponse.LaneOpened(lane=1)).SerializeToString()


class Later:
    """The loop's `call_later`, whose time comes when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __call__(self, delay_s: float, call: Callable[[], None]) -> Any:
        assert delay_s == QUIET_S
        self.waiting.append(call)
        return self

    def cancel(self) -> None:
        self.waiting.clear()

    def come(self) -> None:
        (call,) = self.waiting
        self.waiting.clear()
        call()


class Stream:
    """Answers, a client that reads them or does not, and what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.reports: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.later = Later()
        self.answers = Answers(self._write, self._take_reports, self.later)
        self._place = 0

    async def _write(self, data: bytes) -> None:
        answer = pb.DeliverResponse.FromString(data)
        self.told.append(f"{len(answer.receipts.items)}" if answer.HasField("receipts") else "opened")
        await self.reads.wait()

    def _take_reports(self) -> list[bytes]:
        reports, self.reports = self.reports, []
        return reports

    def frame(self, messages: int = 1) -> None:
        """A frame of messages comes, and they are accepted."""
        self.answers.asked()
        for _ in range(messages):
            self._place += 1
            self.answers.add_receipt(LANE, self._place, Receipt(f"m-{self._place}", self._place, 2, 1, 1, False, 1.0))
        self.answers.receipts_ready()

    async def rest(self) -> list[str]:
        """What was told by the time that everything has come to rest."""
        for _ in range(5):
            await asyncio.sleep(0)
        told, self.told = self.told, []
        return told

    async def with_several_in_flight(self) -> None:
        """Two frames come at once: from here on their receipts gather."""
        self.frame()
        self.frame()
        assert await self.rest() == ["2"]


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    made = Stream()
    running = asyncio.create_task(made.answers.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert made.answers.drained.is_set()
    assert not made.later.waiting


async def test_who_waits_for_each_receipt_has_each_at_once(stream: Stream) -> None:
    for _ in range(3):
        stream.frame()
        assert await stream.rest() == ["1"]
    assert not stream.later.waiting


async def test_receipts_gather_while_several_frames_are_in_flight(stream: Stream) -> None:
    await stream.with_several_in_flight()
    stream.frame()
    stream.frame(2)
    assert await stream.rest() == []
    stream.later.come()
    assert await stream.rest() == []
    stream.later.come()  # nothing was asked since
    assert await stream.rest() == ["3"]
    stream.frame()
    assert await stream.rest() == []
    stream.later.come()
    assert await stream.rest() == ["1"]
    stream.frame()  # the last waited in vain
    assert await stream.rest() == ["1"]


async def test_receipts_gather_on_while_frames_come(stream: Stream) -> None:
    await stream.with_several_in_flight()
    stream.frame()
    for _ in range(MAX_LOOKS - 1):
        stream.frame()
        stream.later.come()
        assert await stream.rest() == []
    stream.frame()
    stream.later.come()
    assert await stream.rest() == [str(MAX_LOOKS + 1)]
    assert not stream.later.waiting


async def test_a_frame_that_comes_while_one_is_answered_is_one_of_several(stream: Stream) -> None:
    stream.reads.clear()
    stream.frame()
    assert await stream.rest() == ["1"]
    stream.frame()
    stream.reads.set()
    assert await stream.rest() == []
    stream.later.come()
    assert await stream.rest() == ["1"]


async def test_enough_receipts_wait_for_no_others(stream: Stream) -> None:
    await stream.with_several_in_flight()
    stream.frame(ENOUGH - 1)
    assert await stream.rest() == []
    stream.frame()
    assert await stream.rest() == [str(ENOUGH)]
    assert not stream.later.waiting


async def test_what_is_no_receipt_leaves_at_once_and_takes_those_before_it_along(stream: Stream) -> None:
    await stream.with_several_in_flight()
    stream.frame()
    stream.answers.put([OPENED])
    stream.frame()
    assert stream.answers.unsent == 3
    assert await stream.rest() == ["1", "opened", "1"]
    assert stream.answers.unsent == 0


async def test_reports_stand_behind_receipts(stream: Stream) -> None:
    await stream.with_several_in_flight()
    stream.frame()
    stream.reports.append(OPENED)
    stream.answers.wake()
    assert await stream.rest() == ["1", "opened"]


async def test_a_frame_has_so_many_receipts_at_most(stream: Stream) -> None:
    stream.frame(MAX_RECEIPTS + 1)
    assert await stream.rest() == [str(MAX_RECEIPTS), "1"]


async def test_a_refusal_is_a_receipt_too(stream: Stream) -> None:
    stream.answers.add_receipt(LANE, 0, BadRequest("message.payload", "not one JSON value (RFC 8259)"))
    stream.answers.receipts_ready()
    assert await stream.rest() == ["1"]


async def test_a_frame_without_receipts_wakes_nobody(stream: Stream) -> None:
    stream.frame(0)
    assert await stream.rest() == []


async def test_the_end_waits_for_what_is_owed() -> None:
    stream = Stream()
    running = asyncio.create_task(stream.answers.run())
    stream.answers.owed = 1
    stream.answers.finish()
    assert await stream.rest() == []
    stream.answers.owed = 0
    stream.frame()
    await running
    assert stream.told == ["1"]
