"""What it costs to keep every message on disk before it is answered."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from benchmarks.acks import AckingClient
from benchmarks.calls import Calls
from benchmarks.disk import SYNCED_BYTES, sync_s
from benchmarks.load import Load, deliver_load
from benchmarks.measure import Comparison, Spread, Window, compare
from benchmarks.results import Result, compared_windows
from benchmarks.servers import BUILD, SQLITE, running_sidecar
from benchmarks.sockets import Client, ClientOf
from benchmarks.works.delivery import USERS
from benchmarks.works.plan import Plan
from benchmarks.works.side import Side, side
from sidecar.api.v1 import types_pb2 as types

MESSAGES = 10_000
MESSAGES_A_FRAME, IN_FLIGHT = 100, 8
LATE_S = 0.25
"""Acknowledgements and what they make superfluous are written 0.2 s later at the latest."""

WHAT = f"Deliver, {MESSAGES_A_FRAME} messages a frame, {IN_FLIGHT} frames in flight, SQLite"


async def sqlite(plan: Plan) -> list[Result]:
    """Two sidecars side by side, one with its contexts in memory; with clients that acknowledge, then without."""
    comparison = await _compare(plan, plan.triples(), AckingClient)
    silent = await _compare(plan, plan.triples(), Client)
    sync = f"fdatasync of {SYNCED_BYTES // 1000} KB takes {sync_s(BUILD) * 1e3:.2f} ms on that disk"
    return [
        compared_windows("sqlite", f"{WHAT}, acknowledged: CPU a message", comparison, floor_is="memory", note=sync),
        _rate("sqlite-rate", f"{WHAT}, acknowledged: messages a second", comparison),
        compared_windows("sqlite-silent", f"{WHAT}, not acknowledged: CPU a message", silent, floor_is="memory"),
        _rate("sqlite-silent-rate", f"{WHAT}, not acknowledged: messages a second", silent),
    ]


def _rate(key: str, what: str, comparison: Comparison[Window]) -> Result:
    rate = Spread.of([window.rate for window in comparison.ours])
    note = f"10–90 %: {rate.low:,.0f}–{rate.high:,.0f} /s; every receipt said DISK"
    return Result(key, what, "/s", ours=rate.median, samples=len(comparison.triples), note=note)


async def _compare(plan: Plan, triples: int, client: ClientOf) -> Comparison[Window]:
    messages = plan.count(MESSAGES)
    async with (
        side(running_sidecar(), USERS, client, LATE_S) as memory,
        side(running_sidecar(settings=SQLITE), USERS, client, LATE_S) as disk,
        _deliver(memory, types.DURABILITY_MEMORY) as memory_load,
        _deliver(disk, types.DURABILITY_DISK) as disk_load,
    ):
        comparison = await compare(
            triples, lambda: memory.measure(memory_load, messages), lambda: disk.measure(disk_load, messages)
        )
        if client is AckingClient:
            await Calls(memory.channel).check_acknowledged(memory.crowd.routes)
            await Calls(disk.channel).check_acknowledged(disk.crowd.routes)
    return comparison


def _deliver(to: Side, durability: int) -> AbstractAsyncContextManager[Load]:
    return deliver_load(
        to.channel,
        to.crowd.routes,
        messages_a_frame=MESSAGES_A_FRAME,
        in_flight=IN_FLIGHT,
        durability=durability,
    )
