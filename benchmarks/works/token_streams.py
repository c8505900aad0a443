"""What an agent's tokens cost that go to many users at once at an even pace, and how many a second there may be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import grpc

from benchmarks.acks import ACKS_PER_SECOND
from benchmarks.load import DELIVER, Call, open_lanes, receipts_of
from benchmarks.measure import Comparison, Window, compare, median_cost, quantile, window
from benchmarks.results import Result, compared_windows
from benchmarks.servers import RunFailed, Server, running_floor, running_sidecar
from benchmarks.sockets import Crowd
from benchmarks.tokens import AckingTokenClient, Arrivals, Schedule, TokenClient, TokenFrames
from benchmarks.works.plan import Plan
from sidecar.api.v1 import delivery_service_pb2 as pb

USERS: Final = 1_000
PER_USER: Final = 20.0
"""Messages a second to each."""

TICK_S: Final = 0.005
"""What is due within it goes in one frame."""

MOST_A_FRAME: Final = 1_000
WINDOW_S: Final = 1.0
QUICK_WINDOW_S: Final = 0.25
ON_TIME: Final = 0.95
"""Windows whose median pace is below this share of the rate were another load: the note says so."""

PROBE_S, HOLD_S = 3.0, 30.0
QUICK_PROBE_S, QUICK_HOLD_S = 0.25, 3.0
FIRST, STEP_UP, STEPS_DOWN = 0.35, 1.1, (0.9, 0.75, 0.5)
"""The first rate, of what the CPU without acknowledgements allows; then up, and down to below the last good one.

Where that is not held for long the machine is not quiet: two large steps more, each 30 s, and no further.
"""
SATURATED: Final = 0.97
"""The share of its core that a server with nothing to spare takes."""

LATE_S: Final = 1.0
STEPS, QUICK_STEPS = 20, 0


class Held(NamedTuple):
    """How a rate went. The shares are of a core each, the server's and the load's."""

    rate: float
    reached: float
    share: float
    load_share: float
    p50_s: float
    p99_s: float

    @property
    def good(self) -> bool:
        """The server's core had time left, and users had their messages within a second."""
        return self.share < SATURATED and self.p99_s <= LATE_S


@dataclass(slots=True)
class Tokens:
    """A server with its users, a `Deliver` stream with a lane to each, and how many rounds they have had."""

    server: Server
    crowd: Crowd
    call: Call
    arrivals: Arrivals
    frames: TokenFrames
    rounds: int = 0
    frames_written: int = 0

    @property
    def users(self) -> int:
        """How many there are."""
        return len(self.crowd.routes)

    async def measure(self, rate: float, seconds: float) -> Window:
        """Send at that rate, evenly, for about so long; every chunk arrived in order, and every receipt is an OK."""
        rounds = max(1, round(rate * seconds / self.users))
        messages = rounds * self.users
        goal = self.crowd.tally.count + messages
        latencies = self.arrivals.latencies_s = []

        async def send() -> list[float]:
            async with asyncio.timeout(2 * seconds + 60):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read_receipts(messages))
                    await self._write(messages, rate)
                await self.crowd.tally.reach(goal)
            return latencies

        measured = await window(self.server.pid, messages, send)
        self.rounds += rounds
        return measured

    async def hold(self, rate: float, seconds: float) -> Held:
        """The same, to see how it goes."""
        before = time.process_time()
        measured = await self.measure(rate, seconds)
        waits = sorted(measured.latencies_s)
        share, load_share = measured.cpu_s / measured.wall_s, (time.process_time() - before) / measured.wall_s
        return Held(rate, measured.rate, share, load_share, quantile(waits, 0.5), quantile(waits, 0.99))

    async def _write(self, messages: int, rate: float) -> None:
        """What is due goes out; what should have gone before goes with it."""
        loop, first = asyncio.get_running_loop(), self.rounds * self.users
        started = time.perf_counter()
        self.arrivals.schedule = Schedule(started, self.rounds, self.users, rate)
        tick = loop.time()
        sent = 0
        while sent < messages:
            tick = max(tick + TICK_S, loop.time())
            await asyncio.sleep(tick - loop.time())
            due = min(messages, int((time.perf_counter() - started) * rate), sent + MOST_A_FRAME)
            if due > sent:
                await self.call.write(self.frames.frame(first + sent, first + due))
                self.frames_written += 1
                sent = due

    async def _read_receipts(self, messages: int) -> None:
        answered = 0
        while answered < messages:
            answered += len(receipts_of(await self.call.read()))
        if answered != messages:
            raise RunFailed(f"{answered} receipts of {messages} messages")


async def token_streams(plan: Plan) -> list[Result]:
    """The same messages at the same pace to both; then ever more of them to the sidecar."""
    users, seconds = plan.count(USERS), QUICK_WINDOW_S if plan.quick else WINDOW_S
    rate = users * PER_USER
    async with tokens(running_floor(), users) as floor, tokens(running_sidecar(), users) as ours:
        comparison = await compare(
            plan.triples(), lambda: floor.measure(rate, seconds), lambda: ours.measure(rate, seconds)
        )
    probe_s, hold_s, steps = (QUICK_PROBE_S, QUICK_HOLD_S, QUICK_STEPS) if plan.quick else (PROBE_S, HOLD_S, STEPS)
    async with tokens(running_sidecar(), users, AckingTokenClient) as acking:
        held, lost = await highest(acking, FIRST / median_cost(comparison.ours), probe_s, hold_s, steps)
    a_frame = ours.rounds * users / ours.frames_written
    title = f"Token streams, {users:,} users, {PER_USER:.0f} messages a second to each"
    return [
        compared_windows(
            "token-streams",
            f"{title}: CPU a message",
            comparison,
            note=f"{a_frame:.0f} messages a frame{pace(comparison, rate)}",
        ),
        _told(f"Token streams, {users:,} users", held, lost, hold_s),
    ]


def pace(comparison: Comparison[Window], rate: float) -> str:
    """What each side reached of the rate, where either fell behind it: this machine is too slow for it."""
    floor, ours = (_median_rate(windows) for windows in (comparison.floor, comparison.ours))
    if min(floor, ours) >= ON_TIME * rate:
        return ""
    return f"; of {rate:,.0f} a second the floor took {floor:,.0f} and the sidecar {ours:,.0f} here"


def _median_rate(windows: Sequence[Window]) -> float:
    return quantile(sorted(measured.rate for measured in windows), 0.5)


class Holds(Protocol):
    """What can be asked to hold a rate."""

    async def hold(self, rate: float, seconds: float) -> Held:
        """How it went for so long."""


async def highest(to: Holds, first: float, probe_s: float, hold_s: float, steps: int) -> tuple[Held, Held]:
    """The highest rate that is held, and the lowest that was too much, or the last that was tried.

    Up from the first in short steps, at most so many; then for long, and down while it is not held.
    """
    rate, lost = first, await to.hold(first, probe_s)
    for _ in range(steps):
        if not lost.good:
            break
        rate *= STEP_UP
        lost = await to.hold(rate, probe_s)
    for step in STEPS_DOWN:
        rate *= step
        held = await to.hold(rate, hold_s)
        if held.good:
            return held, lost
        lost = held
    raise RunFailed(f"no rate was held, the last {rate:,.0f} messages a second")


def _told(what: str, held: Held, lost: Held, hold_s: float) -> Result:
    limit = "" if lost.good else f"; too much was {lost.rate:,.0f} /s, {_how(lost)}"
    note = (
        f"held for {hold_s:.0f} s: {_how(held)}, from when a message is due to its arrival{limit}; clients "
        f"acknowledge, at most {ACKS_PER_SECOND} times a second"
    )
    return Result("token-streams-held", f"{what}: the highest rate", "/s", ours=held.reached, samples=1, note=note)


def _how(held: Held) -> str:
    shares = f"{held.share * 100:.0f} % of the core, {held.load_share * 100:.0f} % of the load's"
    return f"{shares}, p50 {held.p50_s * 1e3:.0f} ms, p99 {held.p99_s * 1e3:.0f} ms"


@asynccontextmanager
async def loaded(
    server: Server, plan: Plan, client: type[TokenClient] = TokenClient
) -> AsyncIterator[Callable[[], Awaitable[Window]]]:
    """A sidecar under the load of the comparison, to be profiled."""
    users = plan.count(USERS)
    async with with_lanes(server, users, client) as ours:
        yield lambda: ours.measure(users * PER_USER, QUICK_WINDOW_S if plan.quick else WINDOW_S)


@asynccontextmanager
async def tokens(
    running: AbstractAsyncContextManager[Server], users: int, client: type[TokenClient] = TokenClient
) -> AsyncIterator[Tokens]:
    """A server with so many users, each with a lane."""
    async with running as server, with_lanes(server, users, client) as its_tokens:
        yield its_tokens


@asynccontextmanager
async def with_lanes(server: Server, users: int, client: type[TokenClient] = TokenClient) -> AsyncIterator[Tokens]:
    """The same of a server that runs already."""
    arrivals = Arrivals()
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        crowd = Crowd(server, partial(client, arrivals=arrivals))
        await crowd.join([f"user-{number}" for number in range(users)])
        method: Any = channel.stream_stream(DELIVER, response_deserializer=pb.DeliverResponse.FromString)
        call: Call = method()
        await open_lanes(call, crowd.routes)
        yield Tokens(server, crowd, call, arrivals, TokenFrames(users))
        call.cancel()
