"""What a message costs the server on each way of sending one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NamedTuple

from benchmarks import acks
from benchmarks.acks import AckingClient
from benchmarks.calls import Calls
from benchmarks.load import Load, UnaryLoad, deliver_load
from benchmarks.measure import Comparison, Window, compare
from benchmarks.results import Result, compared_windows
from benchmarks.servers import SQLITE, Server, running_floor, running_sidecar
from benchmarks.sockets import Client, ClientOf
from benchmarks.works.plan import Plan
from benchmarks.works.side import LoadedBy, Side, side, with_users

USERS = 100
UNARY_IN_FLIGHT = 50
OWN_TRIPLES = 5
"""So many where the sidecar is compared with itself, to be told only."""

LoadOf = Callable[[Side], AbstractAsyncContextManager[Load]]


class Way(NamedTuple):
    """One way of sending: what it is, how a side is loaded with it, and how many messages a window has.

    The sidecar's settings besides its defaults, its users' clients, and how late comes what they do.
    """

    title: str
    load_of: LoadOf
    messages: int
    settings: str = ""
    client: ClientOf = Client
    late_s: float = 0.0


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

PROFILED: Final = WAYS | {
    "unary-acks": WAYS["unary"]._replace(client=AckingClient, late_s=acks.LATE_S),
    "deliver-100-acks": WAYS["deliver-100"]._replace(client=AckingClient, late_s=acks.LATE_S),
    "deliver-sqlite": WAYS["deliver-100"]._replace(settings=SQLITE, client=AckingClient, late_s=acks.LATE_S),
}
"""What `--profile` takes of them."""


async def compare_way(plan: Plan, name: str) -> list[Result]:
    """The same load on both, in turn, with the same users connected all along."""
    way = WAYS[name]
    async with side(running_floor(), USERS) as floor, side(running_sidecar(), USERS) as ours:
        comparison = await compare_sides(plan.triples(), way, messages_of(plan, way), floor, ours)
    return [compared_windows(name, way.title, comparison)]


async def compare_acks(plan: Plan, name: str) -> list[Result]:
    """The same, but the sidecar's clients acknowledge: beside the floor, whose do not, and beside itself without."""
    way = WAYS[name]
    messages = messages_of(plan, way)
    async with (
        side(running_sidecar(), USERS, AckingClient, acks.LATE_S) as ours,
        side(running_floor(), USERS) as floor,
        side(running_sidecar(), USERS) as silent,
    ):
        comparison = await compare_sides(plan.triples(), way, messages, floor, ours)
        own = await compare_sides(plan.triples(OWN_TRIPLES), way, messages, silent, ours)
        await Calls(ours.channel).check_acknowledged(ours.crowd.routes)
    tally = ours.crowd.tally
    what, _, cost = way.title.partition(":")
    note = (
        "the floor's clients acknowledge nothing, each of the sidecar's what came in one read, at most "
        f"{acks.ACKS_PER_SECOND} times a second, {tally.acks / tally.count:.2f} times a message; "
        f"the sidecar beside itself without: {own.ratio.median:.2f} × ({own.ratio.low:.2f}–{own.ratio.high:.2f})"
    )
    return [compared_windows(f"{name}-acks", f"{what}, acknowledged:{cost}", comparison, note=note)]


async def compare_sides(triples: int, way: Way, messages: int, floor: Side, ours: Side) -> Comparison[Window]:
    """That load on two sides, in turn."""
    async with way.load_of(floor) as floor_load, way.load_of(ours) as our_load:
        return await compare(
            triples, lambda: floor.measure(floor_load, messages), lambda: ours.measure(our_load, messages)
        )


def loaded_by(way: Way) -> LoadedBy:
    """Its load, to be profiled under."""

    @asynccontextmanager
    async def loaded(server: Server, plan: Plan) -> AsyncIterator[Callable[[], Awaitable[Window]]]:
        async with with_users(server, USERS, way.client, way.late_s) as ours, way.load_of(ours) as load:
            yield lambda: ours.measure(load, messages_of(plan, way))

    return LoadedBy(loaded, way.settings)


def messages_of(plan: Plan, way: Way) -> int:
    """How many messages a window has; a frame at least."""
    return max(plan.count(way.messages), 100)
