"""What a message and a connection cost when many more are connected than are spoken to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import grpc

from benchmarks.load import Load, deliver_load
from benchmarks.measure import Comparison, Spread, Window, compare
from benchmarks.results import Result, compared_windows
from benchmarks.servers import Server, running_floor, running_sidecar
from benchmarks.sockets import Crowd
from benchmarks.works.memory import weigh
from benchmarks.works.plan import Plan
from benchmarks.works.side import Side

FEW, MANY = 1_000, 15_000
MESSAGES = 20_000
MESSAGES_A_FRAME, IN_FLIGHT = 100, 8
COST = f"CPU a message, Deliver, {MESSAGES_A_FRAME} a frame"


class Rise(NamedTuple):
    """What many connections cost one kind of server, against few of them on another process of the same kind."""

    active: Comparison[Window]
    spread: Comparison[Window]
    few_bytes: float
    many_bytes: float


async def crowd(plan: Plan) -> list[Result]:
    """Two sidecars, few and many connected; first to the same few users, then spread over all. Then two floors."""
    ours = await _rise(plan, running_sidecar)
    floors = await _rise(plan, running_floor)
    few, many = f"{plan.count(FEW):,}", f"{plan.count(MANY):,}"
    floor_is = f"{few} connected"
    return [
        compared_windows(
            "crowd-active",
            f"{many} connected, the same {few} active: {COST}",
            ours.active,
            floor_is=floor_is,
            ours_is=f"{many} connected",
            note=_beside("the floor rises", floors.active.ratio),
        ),
        compared_windows(
            "crowd-spread",
            f"{many} connected, all active: {COST}",
            ours.spread,
            floor_is=floor_is,
            ours_is=f"{many} connected",
            note=_beside("the floor rises", floors.spread.ratio),
        ),
        _memory(ours, floors, f"{many} connected, idle: memory each", floor_is),
    ]


async def _rise(plan: Plan, running: Callable[[], AbstractAsyncContextManager[Server]]) -> Rise:
    few, many, messages = plan.count(FEW), plan.count(MANY), max(plan.count(MESSAGES), MESSAGES_A_FRAME)
    async with (
        _weighed(running(), few, plan.settle_s) as (small, few_bytes),
        _weighed(running(), many, plan.settle_s) as (large, many_bytes),
        _deliver(small, few) as small_load,
    ):
        async with _deliver(large, few) as large_load:
            active = await _compare(plan, (small, small_load), (large, large_load), messages)
        async with _deliver(large, many) as large_load:
            spread = await _compare(plan, (small, small_load), (large, large_load), messages)
    return Rise(active, spread, few_bytes, many_bytes)


async def _compare(plan: Plan, small: tuple[Side, Load], large: tuple[Side, Load], messages: int) -> Comparison[Window]:
    return await compare(
        plan.triples(), lambda: small[0].measure(small[1], messages), lambda: large[0].measure(large[1], messages)
    )


@asynccontextmanager
async def _weighed(
    running: AbstractAsyncContextManager[Server], users: int, settle_s: float
) -> AsyncIterator[tuple[Side, float]]:
    """A server with so many users, and the bytes that each of them takes before a message was sent."""
    async with running as server, grpc.aio.insecure_channel(server.grpc_target) as channel:
        connected = Crowd(server)
        each = await weigh(server, connected, users, settle_s)
        yield Side(server, connected, channel), each


def _deliver(to: Side, users: int) -> AbstractAsyncContextManager[Load]:
    return deliver_load(to.channel, to.crowd.routes[:users], messages_a_frame=MESSAGES_A_FRAME, in_flight=IN_FLIGHT)


def _memory(ours: Rise, floors: Rise, title: str, floor_is: str) -> Result:
    """Weighed once each: the same process weighs the same within a percent."""
    ratio, floors_ratio = ours.many_bytes / ours.few_bytes, floors.many_bytes / floors.few_bytes
    return Result(
        "crowd-memory",
        title,
        "kB",
        ours=ours.many_bytes / 1e3,
        floor=ours.few_bytes / 1e3,
        floor_is=floor_is,
        ratio=Spread(ratio, ratio, ratio),
        samples=1,
        note=f"the floor has {floors_ratio:.2f} × here",
    )


def _beside(what: str, ratio: Spread) -> str:
    return f"{what} {ratio.median:.2f} × ({ratio.low:.2f}–{ratio.high:.2f}) here"
