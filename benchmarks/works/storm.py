"""Everybody is cut off at once, and comes back while messages go on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Protocol

import grpc

from benchmarks.calls import Batches, Calls, batch_of, reason_of
from benchmarks.measure import quantile
from benchmarks.results import Result
from benchmarks.resuming import ResumingUser, join_all
from benchmarks.servers import Route, RunFailed, running_sidecar
from benchmarks.sockets import NotLetIn, Tally
from benchmarks.works.plan import Plan
from sidecar.api.v1 import types_pb2 as types

USERS = 2_000
STORMS = 3
BATCHES = 20
"""So many batches reach everybody."""

INTERVAL_S = 0.05
"""From batch to batch: everybody is sent a message a second."""

CALM_S = 1.0
BASE_S, CAP_S = 0.25, 30.0
"""The clients' back-off, as the project's own Python client has it."""

SEED = 1
STORM_TIMEOUT_S = 60.0


async def storm(plan: Plan) -> list[Result]:
    """From the cut (RST) to the last welcome; every message arrives once and in order, whoever was away."""
    async with (
        running_sidecar() as server,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        tally = Tally()
        users = [ResumingUser(server, f"user-{number}", number, tally) for number in range(plan.count(USERS))]
        await join_all(users)
        sender = Sender(Calls(channel), users)
        storms = _Storms(users)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(sender.send_on())
            for _ in range(plan.triples(STORMS)):
                await asyncio.sleep(plan.settle_s / 2)
                await storms.one()
            sender.finish()
            await sending
        await tally.reach(sender.accepted)
    return [_result(storms, sender, len(users))]


class Recipient(Protocol):
    """Somebody who is sent to, and may be away."""

    route: Route
    away: bool


class _Storms:
    """How long everybody was away, storm after storm, and how often each tried."""

    def __init__(self, users: Sequence[ResumingUser]) -> None:
        self.longest: list[float] = []
        self.away: list[float] = []
        self.tries = 0
        self._users = users
        self._dice = random.Random(SEED)

    async def one(self) -> None:
        """Cut them all, and return when they are all back."""
        for user in self._users:
            user.cut()
        cut = time.perf_counter()

        async def come_back(user: ResumingUser) -> float:
            bound_s = BASE_S
            while user.away:
                await asyncio.sleep(bound_s * self._dice.random())
                bound_s = min(CAP_S, 2 * bound_s)
                await self._try(user)
            return time.perf_counter() - cut

        async with asyncio.timeout(STORM_TIMEOUT_S):
            away = await asyncio.gather(*(come_back(user) for user in self._users))
        self.longest.append(max(away))
        self.away += away

    async def _try(self, user: ResumingUser) -> None:
        self.tries += 1
        try:
            await user.come_back()
        except (NotLetIn, OSError, TimeoutError):
            user.cut()


class Sender:
    """Sends to everybody in turn, whether there or away. Refusals are counted, and allowed while a user is away."""

    def __init__(self, calls: Batches, users: Sequence[Recipient], batches: int = BATCHES) -> None:
        self.accepted = self.queued = self.refused = 0
        self.slowest_s = 0.0
        self._calls = calls
        self._shares = [users[place::batches] for place in range(batches)]
        self._finished = False

    def finish(self) -> None:
        """Send no further batch."""
        self._finished = True

    async def send_on(self) -> None:
        """A batch an interval, one at a time, until `finish`."""
        batches = [(share, batch_of([user.route for user in share])) for share in self._shares]
        due = time.perf_counter()
        for share, batch in cycle(batches):
            if self._finished:
                return
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due += INTERVAL_S
            were_away = [user.away for user in share]
            started = time.perf_counter()
            results = await self._calls.send(batch)
            self.slowest_s = max(self.slowest_s, time.perf_counter() - started)
            for user, was_away, result in zip(share, were_away, results, strict=True):
                if result.HasField("receipt"):
                    self.accepted += 1
                    self.queued += result.receipt.state == types.DELIVERY_STATE_QUEUED
                elif was_away or user.away:
                    self.refused += 1
                else:
                    raise RunFailed(f"a user was there, and a message was refused: {reason_of(result.error)}")


def _result(storms: _Storms, sender: Sender, users: int) -> Result:
    away = sorted(storms.away)
    p50, p99 = quantile(away, 0.5), quantile(away, 0.99)
    note = (
        f"the slowest of them; a user was away for {p50:.1f} s at p50, {p99:.1f} s at p99, and tried "
        f"{storms.tries / len(away):.2f} times; meanwhile one message a second to each: {sender.accepted:,} accepted, "
        f"{sender.queued:,} of them for users away, {sender.refused:,} refused; "
        f"the slowest batch took {sender.slowest_s:.2f} s"
    )
    title = f"{users:,} users cut off at once: all are back"
    return Result("storm", title, "s", ours=max(storms.longest), samples=len(storms.longest), note=note)
