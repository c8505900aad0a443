"""Which refusals of a send a work takes for right answers, and which fail the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from benchmarks.servers import Route, RunFailed
from benchmarks.works.stalled import MOST_ROUNDS, fill_some
from benchmarks.works.storm import Sender
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types


class Answers:
    """Answers each batch with the next of these, and the last of them from then on; `then` is called with each."""

    def __init__(self, *answers: Sequence[pb.SendBatchResult], then: Callable[[], None] = lambda: None) -> None:
        self._answers = list(answers)
        self.then = then
        self.batches: list[pb.SendBatchRequest] = []

    async def send(self, batch: bytes) -> Sequence[pb.SendBatchResult]:
        self.batches.append(pb.SendBatchRequest.FromString(batch))
        self.then()
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@dataclass
class User:
    route: Route
    away: bool = False


def accepted(state: types.DeliveryState.ValueType = types.DELIVERY_STATE_WRITTEN) -> pb.SendBatchResult:
    return pb.SendBatchResult(receipt=types.Receipt(state=state))


def refused(reason: str) -> pb.SendBatchResult:
    detail = Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason))
    return pb.SendBatchResult(error=status_pb2.Status(code=8, details=[detail]))


ALICE, BOB = Route("alice", ""), Route("bob", "")


async def test_a_reader_is_sent_to_until_its_outbox_is_full() -> None:
    calls = Answers([accepted(), accepted()], [accepted(), refused("OUTBOX_FULL")], [refused("OUTBOX_FULL")])
    assert await fill_some(calls, [ALICE, BOB]) == 3
    assert [[item.isolation_key for item in batch.items] for batch in calls.batches] == [
        ["alice", "bob"], ["alice", "bob"], ["alice"],
    ]  # fmt: skip


async def test_another_refusal_or_a_reader_that_reads_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="USER_LIMIT"):
        await fill_some(Answers([refused("USER_LIMIT")]), [ALICE])
    reading = Answers([accepted()])
    with pytest.raises(RunFailed, match="stalled not"):
        await fill_some(reading, [ALICE])
    assert len(reading.batches) == MOST_ROUNDS


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
async def test_a_send_to_somebody_away_may_be_refused_and_is_counted(before: bool, after: bool) -> None:
    users = [User(ALICE), User(BOB, before)]
    results = [accepted(), refused("OUTBOX_FULL")]

    def then() -> None:
        users[1].away = after
        sender.finish()

    sender = Sender(Answers(results, then=then), users, batches=1)
    await sender.send_on()
    assert (sender.accepted, sender.queued, sender.refused) == (1, 0, 1)


async def test_a_send_to_somebody_there_may_not_be_refused() -> None:
    with pytest.raises(RunFailed, match="a user was there, and a message was refused: OUTBOX_FULL"):
        await Sender(Answers([refused("OUTBOX_FULL")]), [User(ALICE)], batches=1).send_on()


async def test_what_is_queued_for_somebody_away_is_accepted() -> None:
    calls = Answers([accepted(types.DELIVERY_STATE_QUEUED)])
    sender = Sender(calls, [User(ALICE, True)], batches=1)
    calls.then = sender.finish
    await sender.send_on()
    assert (sender.accepted, sender.queued, sender.refused) == (1, 1, 0)
