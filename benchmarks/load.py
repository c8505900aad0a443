"""The services' side of the load: calls and streams, as many under way at once as a work says, to users at random.

Requests are serialised beforehand, since only the server is measured. All waiting is on answers and arrivals.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from benchmarks.servers import Route, RunFailed
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2 as types

if TYPE_CHECKING:  # grpc's classes are generic to the type checker only
    Call = grpc.aio.StreamStreamCall[bytes, pb.DeliverResponse]
else:
    Call = grpc.aio.StreamStreamCall

PAYLOAD_BYTES = 128
PAYLOAD = json.dumps({"text": "x" * (PAYLOAD_BYTES - len('{"text": ""}'))}).encode()
MESSAGE = types.Message(payload=PAYLOAD)
SEED = 1
LANES_A_STREAM = 1_000
FRAMES_PREPARED = 50
"""So many different frames a stream, sent again and again."""

SEND_TO_USER = "/sidecar.api.v1.DeliveryService/SendToUser"
DELIVER = "/sidecar.api.v1.DeliveryService/Deliver"


class Load(Protocol):
    """A way to send messages."""

    async def send(self, messages: int) -> list[float]:
        """Send so many; seconds that each call or frame took to its receipt."""


class UnaryLoad:
    """SendToUser, one message a call."""

    def __init__(self, channel: grpc.aio.Channel, routes: Sequence[Route], in_flight: int) -> None:
        self._call: Any = channel.unary_unary(SEND_TO_USER)
        self._in_flight = in_flight
        self._choose = random.Random(SEED).choice
        self._requests = [unary_request(route) for route in routes]

    async def send(self, messages: int) -> list[float]:
        """Send so many; seconds of each call."""
        latencies: list[float] = []
        left = iter(range(messages))

        async def call_on() -> None:
            for _ in left:
                request, metadata = self._choose(self._requests)
                started = time.perf_counter()
                await self._call(request, metadata=metadata)
                latencies.append(time.perf_counter() - started)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._in_flight):
                group.create_task(call_on())
        return latencies


def unary_request(route: Route) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """A SendToUser, serialised, and its metadata."""
    request = pb.SendToUserRequest(isolation_key=route.isolation_key, message=MESSAGE)
    return request.SerializeToString(), metadata_of(route)


def metadata_of(route: Route) -> tuple[tuple[str, str], ...]:
    """A unary call's metadata: the context token, where there is one."""
    return (("x-context-token", route.context_token),) if route.context_token else ()


class DeliverLoad:
    """`Deliver`: frames of so many messages each, in turn on as many streams as the users' lanes need."""

    def __init__(self, streams: Sequence[DeliverStream], messages_a_frame: int) -> None:
        self._streams = streams
        self._messages_a_frame = messages_a_frame

    async def send(self, messages: int) -> list[float]:
        """Send so many, in whole frames; seconds of each frame until its last receipt."""
        frames = messages // self._messages_a_frame
        latencies: list[float] = []
        async with asyncio.TaskGroup() as group:
            for place, stream in enumerate(self._streams):
                share = len(range(place, frames, len(self._streams)))
                group.create_task(stream.read_receipts(share * self._messages_a_frame, latencies))
            group.create_task(self._write(frames))
        return latencies

    async def _write(self, frames: int) -> None:
        for number in range(frames):
            await self._streams[number % len(self._streams)].write()


class DeliverStream:
    """One `Deliver` call with a lane for each of its users."""

    def __init__(
        self, call: Call, users: int, messages_a_frame: int, window: asyncio.Semaphore, durability: int | None
    ) -> None:
        self._call = call
        self._durability = durability
        self._messages_a_frame = messages_a_frame
        self._window = window
        self._written: deque[float] = deque()
        dice = random.Random(SEED)
        self._frames = deque(_frame(dice, users, messages_a_frame) for _ in range(FRAMES_PREPARED))

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    async def write(self) -> None:
        """Write the next frame, once the window has room for it."""
        await self._window.acquire()
        self._frames.rotate()
        self._written.append(time.perf_counter())
        await self._call.write(self._frames[0])

    async def read_receipts(self, messages: int, latencies: list[float]) -> None:
        """Read until so many messages have their receipt. Receipts come in the order of the frames."""
        answered = 0
        while answered < messages:
            receipts = receipts_of(await self._call.read(), self._durability)
            full_before = answered // self._messages_a_frame
            answered += len(receipts)
            now = time.perf_counter()
            for _ in range(answered // self._messages_a_frame - full_before):
                latencies.append(now - self._written.popleft())
                self._window.release()


async def open_lanes(call: Call, routes: Sequence[Route]) -> None:
    """Open a lane a user, numbered from 0, on a call that has none. Raises RunFailed when one does not open."""
    for lane, route in enumerate(routes):
        await call.write(opening_frame(lane, route))
    for _ in routes:
        answer = await call.read()
        if not isinstance(answer, pb.DeliverResponse) or not answer.HasField("lane_opened"):
            raise RunFailed(f"a lane did not open: {answer!r}")


def opening_frame(lane: int, route: Route) -> bytes:
    """What opens a lane to that user, serialised."""
    opening = pb.DeliverRequest.OpenLane(
        lane=lane, isolation_key=route.isolation_key, context_token=route.context_token
    )
    return pb.DeliverRequest(open_lane=opening).SerializeToString()


def receipts_of(answer: object, durability: int | None = None) -> Sequence[pb.DeliverResponse.LaneReceipt]:
    """The receipts that were read. Raises RunFailed unless all are of new messages, and of that durability if any."""
    if not isinstance(answer, pb.DeliverResponse) or not answer.HasField("receipts"):
        raise RunFailed(f"no receipts but {answer!r}")
    for item in answer.receipts.items:
        if not item.HasField("receipt") or item.receipt.duplicate:
            raise RunFailed(f"a message was refused: {item!r}")
        if durability is not None and item.receipt.durability != durability:
            raise RunFailed(f"a message is kept elsewhere: {item!r}")
    return answer.receipts.items


def _frame(dice: random.Random, users: int, messages: int) -> bytes:
    items = [pb.DeliverRequest.LaneMessage(lane=dice.randrange(users), message=MESSAGE) for _ in range(messages)]
    return pb.DeliverRequest(messages=pb.DeliverRequest.Messages(items=items)).SerializeToString()


@asynccontextmanager
async def deliver_load(
    channel: grpc.aio.Channel,
    routes: Sequence[Route],
    *,
    messages_a_frame: int,
    in_flight: int,
    durability: int | None = None,
) -> AsyncIterator[DeliverLoad]:
    """Streams with a lane for every user, open until the block ends; `in_flight` frames in all of them together.

    Every receipt must say that durability, if one is given.
    """
    window = asyncio.Semaphore(in_flight)
    method: Any = channel.stream_stream(DELIVER, response_deserializer=pb.DeliverResponse.FromString)
    streams = []
    for start in range(0, len(routes), LANES_A_STREAM):
        some = routes[start : start + LANES_A_STREAM]
        call = method()
        stream = DeliverStream(call, len(some), messages_a_frame, window, durability)
        await open_lanes(call, some)
        streams.append(stream)
    try:
        yield DeliverLoad(streams, messages_a_frame)
    finally:
        for stream in streams:
            stream.cancel()
