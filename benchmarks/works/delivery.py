"""What a message costs the server on each way of sending one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NamedTuple

from benchmarks.load import Load, UnaryLoad, deliver_load
from benchmarks.measure import compare
from benchmarks.results import Result, compared_windows
from benchmarks.servers import running_floor, running_sidecar
from benchmarks.works.plan import Plan
from benchmarks.works.side import Side, side

USERS = 100
UNARY_IN_FLIGHT = 50

LoadOf = Callable[[Side], AbstractAsyncContextManager[Load]]


class Way(NamedTuple):
    """One way of sending: what it is, how a side is loaded with it, and how many messages a window has."""

    title: str
    load_of: LoadOf
    messages: int


@asynccontextmanager
async def _unary_load(of: Side) -> AsyncIterator[Load]:
    yield UnaryLoad(of.channel, of.crowd.routes, UNARY_IN_FLIGHT)


def _deliver_load_of(messages_a_frame: int, in_flight: int) -> LoadOf:
    return lambda of: deliver_load(of.channel, of.crowd.routes, messages_a_frame=messages_a_frame, in_flight=in_flight)


WAYS: Final = {
    "unary": Way("SendToUser, 50 in flight: CPU a call", _unary_load, 1_500),
    "deliver-100": Way(
        "Deliver, 100 messages a frame, 8 frames in flight: CPU a message", _deliver_load_of(100, 8), 20_000
    ),
    "deliver-1": Way("Deliver, 1 message a frame, 64 frames in flight: CPU a message", _deliver_load_of(1, 64), 3_000),
}


async def compare_way(plan: Plan, name: str) -> list[Result]:
    """The same load on both, in turn, with the same users connected all along."""
    way = WAYS[name]
    messages = max(plan.count(way.messages), 100)  # a frame at least
    async with (
        side(running_floor(), USERS) as floor,
        side(running_sidecar(), USERS) as ours,
        way.load_of(floor) as floor_load,
        way.load_of(ours) as our_load,
    ):
        comparison = await compare(
            plan.triples(), lambda: floor.measure(floor_load, messages), lambda: ours.measure(our_load, messages)
        )
    return [compared_windows(name, way.title, comparison)]
