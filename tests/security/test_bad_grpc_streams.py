"""Bad frames, lanes and items on Deliver streams of a running sidecar: what is bad fails alone, or ends its own stream.

Each case: the exact refusal, the records that it adds, nothing appended, and a bystander whose traffic goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import status_pb2

from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from tests.rpc.rig import MESSAGE, TIMEOUT_S, DeliverCall, Refused, Request, ended_with
from tests.support.stage import Caller, Stage, check_status, staged
from tests.support.ways import as_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

DELIVER = "/sidecar.api.v1.DeliveryService/Deliver"
NOT_OPEN = Refused("FAILED_PRECONDITION", "LANE_NOT_OPEN")
VIOLATION = Refused("PERMISSION_DENIED", "ISOLATION_VIOLATION")
MAX_LANES, MAX_ITEMS = 1_024, 1_000


def bad(name: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "BAD_REQUEST", field=name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("streams")) as stage:
        yield stage


def deliver(caller: Caller) -> DeliverCall:
    return DeliverCall(caller.delivery.Deliver(timeout=TIMEOUT_S))


async def lane_error(stream: DeliverCall, lane: int) -> Refused:
    """The next frame, which is that lane's error."""
    answer = await stream.read()
    assert answer.WhichOneof("frame") == "lane_error", answer
    assert answer.lane_error.lane == lane
    return check_status(answer.lane_error.error)


def outcomes(items: list[Any]) -> list[Any]:
    """(lane, number, OK or reason) of each receipt."""
    return [
        (item.lane, item.number, "OK" if item.WhichOneof("result") == "receipt" else check_status(item.error).reason)
        for item in items
    ]


# Frames that end their stream, once all before them is answered


def messages(count: int) -> bytes:
    items = [Request.LaneMessage(lane=1, message=MESSAGE)] * count
    return Request(messages=Request.Messages(items=items)).SerializeToString()


@dataclass(frozen=True)
class BadFrame:
    """The bytes of one frame, and the field that the stream's end names."""

    id: str
    data: bytes
    field: str


FRAMES = (
    BadFrame("no tag", b"\xff", "request"),
    BadFrame("cut short", b"\x0a\x05a", "request"),
    BadFrame("a lone surrogate for a key", b"\x0a\x05\x12\x03\xed\xa0\x80", "request"),
    BadFrame("empty", b"", "frame"),
    BadFrame("unknown fields only", b"\xfa\x7f\x03abc", "frame"),
    BadFrame("1,001 items", messages(MAX_ITEMS + 1), "messages.items"),
)


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case.id)
async def test_a_bad_frame_ends_its_stream(stage: Stage, case: BadFrame) -> None:
    """What stood before it is accepted and answered; of the frame itself and what stands behind it nothing is."""
    good = stage.attempt(stage.carol)
    opening = Request(
        open_lane=Request.OpenLane(lane=1, isolation_key=good.key, context_token=good.token)
    ).SerializeToString()
    async with stage.caller() as caller, stage.seen():
        stream = caller.channel.stream_stream(DELIVER)(timeout=TIMEOUT_S)
        for data in (opening, messages(1), case.data, messages(1)):
            await stream.write(data)
        assert pb.DeliverResponse.FromString(await stream.read()).lane_opened.lane == 1
        answer = pb.DeliverResponse.FromString(await stream.read())
        assert outcomes(list(answer.receipts.items)) == [(1, 0, "OK")]
        assert check_status(await ended_with(stream), good.token, good.key) == bad(case.field)
        await stage.went_to(stage.carol, 1)


async def test_1000_items_of_a_frame(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = deliver(caller)
        await stream.opened(1, stage.attempt(stage.carol))
        await stream.send(*[(1, MESSAGE)] * MAX_ITEMS)
        assert outcomes(await stream.receipts(MAX_ITEMS)) == [(1, number, "OK") for number in range(MAX_ITEMS)]
        await stage.went_to(stage.carol, MAX_ITEMS)
        assert await stream.finish() == []


async def test_a_frame_over_the_size_is_grpcs_own_to_refuse(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = caller.channel.stream_stream(DELIVER)(timeout=TIMEOUT_S)
        await stream.write(b"\xff" * (4 * 1024 * 1024 + 1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_says_nothing_is_answered_nothing(stage: Stage) -> None:
    async with stage.caller() as caller, stage.seen():
        stream = deliver(caller)
        await stream.send()
        await stream.close_lane(9)
        assert await stream.finish() == []


# Lanes


async def test_1024_lanes_and_one_more(stage: Stage) -> None:
    """The one more is refused alone; a closed lane makes room for it."""
    attempt = stage.attempt(stage.carol)
    async with stage.caller() as caller, stage.seen():
        stream = deliver(caller)
        for lane in range(MAX_LANES):
            await stream.open(lane, attempt)
        for lane in range(MAX_LANES):
            assert (await stream.read()).lane_opened.lane == lane
        await stream.open(MAX_LANES, attempt)
        assert await lane_error(stream, MAX_LANES) == bad("open_lane.lane")
        await stream.send((MAX_LANES, MESSAGE), (0, MESSAGE))
        first, second = await stream.receipts(2)
        assert outcomes([first, second]) == [(MAX_LANES, 0, "LANE_NOT_OPEN"), (0, 0, "OK")]
        await stage.went_to(stage.carol, 1)
        await stream.close_lane(5)
        await stream.opened(2**32 - 1, attempt)
        assert await stream.finish() == []


async def test_lanes_that_are_not_open(stage: Stage) -> None:
    """Never opened, closed, or refused: each message has its place and its refusal, and none is recorded."""
    alice = stage.attempt()
    async with stage.caller() as caller, stage.seen(isolation_violation=1):
        stream = deliver(caller)
        await stream.open(2, replace(alice, key="0" * 64))
        assert await lane_error(stream, 2) == VIOLATION
        await stream.opened(3, alice)
        await stream.close_lane(3)
        await stream.send(*((lane, MESSAGE) for lane in (0, 2, 3, 3, 2**32 - 1)))
        items = await stream.receipts(5)
        assert outcomes(items) == [
            (lane, number, "LANE_NOT_OPEN") for lane, number in ((0, 0), (2, 0), (3, 0), (3, 1), (2**32 - 1, 0))
        ]
        assert {check_status(item.error, alice.token, alice.key) for item in items} == {NOT_OPEN}
        assert await stream.finish() == []


@dataclass(frozen=True)
class BadRenewal:
    """What is presented for a lane that is open for Carol, and the refusal, which leaves the lane as it was."""

    id: str
    key: Callable[[Stage], str]
    token: Callable[[Stage], str]
    expected: Refused
    event: str


RENEWALS = (
    BadRenewal(
        "another's key and token",
        lambda stage: stage.alice.isolation_key,
        lambda stage: stage.alice.context_token,
        VIOLATION,
        "isolation_violation",
    ),
    BadRenewal(
        "another's token",
        lambda stage: stage.carol.isolation_key,
        lambda stage: stage.alice.context_token,
        VIOLATION,
        "isolation_violation",
    ),
    BadRenewal(
        "garbage",
        lambda stage: stage.carol.isolation_key,
        lambda stage: "garbage",
        Refused("UNAUTHENTICATED", "TOKEN_INVALID"),
        "token_denied",
    ),
    BadRenewal(
        "an ended context's",
        lambda stage: stage.gone.isolation_key,
        lambda stage: stage.tokens[stage.gone.isolation_key],
        Refused("NOT_FOUND", "MANAGER_GONE"),
        "token_denied",
    ),
)


@pytest.mark.parametrize("case", RENEWALS, ids=lambda case: case.id)
async def test_a_bad_renewal_changes_nothing(stage: Stage, case: BadRenewal) -> None:
    good = stage.attempt(stage.carol)
    async with stage.caller() as caller, stage.seen(**{case.event: 1}):
        stream = deliver(caller)
        await stream.opened(1, good)
        await stream.open(1, replace(good, key=case.key(stage), token=case.token(stage)))
        assert await lane_error(stream, 1) == case.expected
        await stream.send((1, MESSAGE))
        assert outcomes(await stream.receipts(1)) == [(1, 0, "OK")]
        await stage.went_to(stage.carol, 1)
        assert await stream.finish() == []


async def test_a_lane_whose_token_is_taken_back(stage: Stage) -> None:
    """One lane_error and one record, however many messages still come; lanes of other tokens go on."""
    token = await stage.exchange(stage.alice, "send")
    await stage.trail.mark()
    async with stage.caller() as caller, stage.seen(token_revoked=1, token_denied=1):
        stream = deliver(caller)
        await stream.opened(1, replace(stage.attempt(), token=token))
        await stream.opened(2, stage.attempt(stage.carol))
        await caller.context.RevokeContextToken(context_pb.RevokeContextTokenRequest(), **as_client(token))
        await stream.send((1, MESSAGE), (2, MESSAGE), (1, MESSAGE))
        assert await lane_error(stream, 1) == Refused("UNAUTHENTICATED", "TOKEN_REVOKED")
        items = await stream.receipts(3)
        assert outcomes(items) == [(1, 0, "LANE_NOT_OPEN"), (2, 0, "OK"), (1, 1, "LANE_NOT_OPEN")]
        await stage.went_to(stage.carol, 1)
        assert await stream.finish() == []


async def test_a_lane_whose_context_ends(stage: Stage) -> None:
    """Told at once, though nothing is sent; opening it anew is refused and recorded."""
    async with stage.sidecar.user("dave") as dave, stage.caller() as caller:
        token = await stage.know(dave)
        await stage.trail.mark()
        async with stage.seen(socket_closed=1, context_closed=1, token_denied=1):
            stream = deliver(caller)
            await stream.opened(1, stage.attempt(dave))
            close = pb.CloseManagerRequest(isolation_key=dave.isolation_key, code=4999)
            assert (await caller.delivery.CloseManager(close, **as_client(token))).connections == 1
            assert await lane_error(stream, 1) == Refused("NOT_FOUND", "MANAGER_GONE")
            await stream.send((1, MESSAGE))
            assert outcomes(await stream.receipts(1)) == [(1, 0, "LANE_NOT_OPEN")]
            await stream.open(1, stage.attempt(dave))
            assert await lane_error(stream, 1) == Refused("NOT_FOUND", "MANAGER_GONE")
            assert await stream.finish() == []
        await dave.socket.wait_closed()
        assert dave.socket.close_code == 4999


@pytest.mark.parametrize("way", ["cancelled", "cut off"])
async def test_a_client_that_goes_leaves_its_messages_and_nothing_else(stage: Stage, way: str) -> None:
    async with stage.seen():
        async with stage.caller() as caller:
            stream = deliver(caller)
            await stream.opened(1, stage.attempt(stage.carol))
            await stream.send(*[(1, MESSAGE)] * 10)
            await stage.went_to(stage.carol, 10)
            if way == "cancelled":
                stream.call.cancel()
        async with stage.caller() as caller:
            stream = deliver(caller)
            await stream.opened(1, stage.attempt(stage.carol))
            assert await stream.finish() == []


async def test_each_refusal_is_told_in_full_in_a_mixed_frame(stage: Stage) -> None:
    """Details of one item are not another's."""
    from sidecar.api.v1 import types_pb2

    async with stage.caller() as caller, stage.seen():
        stream = deliver(caller)
        await stream.opened(1, stage.attempt(stage.carol))
        bad_json, too_durable = types_pb2.Message(payload=b"{"), types_pb2.Message(payload=b"{}", min_durability=2)  # type: ignore[arg-type]
        await stream.send((1, bad_json), (1, MESSAGE), (1, too_durable), (8, MESSAGE))
        statuses: list[status_pb2.Status] = [item.error for item in await stream.receipts(4)]
        assert check_status(statuses[0]) == bad("message.payload")
        assert statuses[1] == status_pb2.Status()
        assert check_status(statuses[2]) == Refused("FAILED_PRECONDITION", "DURABILITY_UNAVAILABLE")
        assert check_status(statuses[3]) == NOT_OPEN
        await stage.went_to(stage.carol, 1)
        assert await stream.finish() == []
