"""What those who read nothing cost: memory, and the others' time."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import grpc

from benchmarks.acks import AckingClient
from benchmarks.calls import OUTBOX_FULL, Batches, Calls, batch_of, reason_of
from benchmarks.load import SEND_TO_USER, unary_request
from benchmarks.measure import Amount, Spread, compare, memory_bytes, quantile
from benchmarks.results import Result, compared
from benchmarks.servers import Route, RunFailed, Server, running_sidecar
from benchmarks.sockets import Client, ClientOf, Crowd, SocketOption
from benchmarks.works.plan import Plan
from sidecar.api.v1 import types_pb2 as types

READERS = 1_000
LARGE_BYTES = 65_536
LARGE = types.Message(payload=json.dumps("x" * (LARGE_BYTES - 2)).encode())
KEPT = 4
MESSAGE_BYTES = LARGE_BYTES + 256
OUTBOX_BYTES = KEPT * MESSAGE_BYTES
WRITE_BUFFER_BYTES = 65_536
SPARE_BYTES = 16_384
BOUND_BYTES = OUTBOX_BYTES + WRITE_BUFFER_BYTES + MESSAGE_BYTES + SPARE_BYTES
"""A full outbox, a full write buffer, the message that overfilled it (it is given to the transport whole), and what an
idle connection weighs, for the allocator's rounding and the books that are kept."""

SETTINGS = f"""\
[outbox]
max_bytes = {OUTBOX_BYTES}
ttl_s = 3600
[limits]
slow_consumer_timeout_s = 3600
"""
"""A small outbox, for memory and time; nothing expires, and nobody is closed for being slow."""

BATCH = 25
MOST_ROUNDS = 200
TRIPLES = 10
MESSAGES = 500
ONE_MSS: Final[tuple[SocketOption, ...]] = (
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096),
)
"""As over a network. On loopback the kernel would take megabytes for each before the server saw that nobody reads."""


class StalledClient(Client):
    """Reads no further than its welcome."""

    def _is_message(self, payload: bytes) -> bool:
        is_message = super()._is_message(payload)
        self._transport.pause_reading()
        return is_message


@dataclass(frozen=True, slots=True)
class _Company:
    """A sidecar with one user who reads, and many others."""

    server: Server
    calls: Calls
    fast: Crowd
    others: Crowd
    channel: grpc.aio.Channel
    refused: list[str]

    async def fast_p99(self, messages: int) -> Amount:
        """Seconds from a call to its message's arrival, p99, while another caller sends to the others in turn."""
        call: Any = self.channel.unary_unary(SEND_TO_USER)
        request, metadata = unary_request(self.fast.routes[0])
        beside = asyncio.create_task(self._send_to_others(call))
        waits: list[float] = []
        for _ in range(messages):
            goal = self.fast.tally.count + 1
            started = time.perf_counter()
            await call(request, metadata=metadata)
            await self.fast.tally.reach(goal)
            waits.append(time.perf_counter() - started)
        beside.cancel()
        await asyncio.wait([beside])
        if not beside.cancelled():
            beside.result()
        return Amount(quantile(sorted(waits), 0.99))

    async def _send_to_others(self, call: Any) -> None:
        for request, metadata in cycle([unary_request(route) for route in self.others.routes]):
            try:
                await call(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                self.refused.append(error.details() or "")
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise


async def stalled(plan: Plan) -> list[Result]:
    """Two sidecars in turn: one's others read, the other's do not and have all that they may have waiting for them."""
    readers = plan.count(READERS)
    async with (
        _company(readers, AckingClient) as reading,
        _company(readers, StalledClient, ONE_MSS) as stalling,
    ):
        await _pay_once(stalling)
        await asyncio.sleep(plan.settle_s)
        before = memory_bytes(stalling.server.pid, "RssAnon")
        sent = await _fill(stalling)
        await asyncio.sleep(plan.settle_s)
        each = (memory_bytes(stalling.server.pid, "RssAnon") - before) / readers
        messages = plan.count(MESSAGES)
        beside = await compare(
            plan.triples(TRIPLES), lambda: reading.fast_p99(messages), lambda: stalling.fast_p99(messages)
        )
        await _check_stalled(stalling)
        if reading.refused:
            raise RunFailed(f"a user who reads was refused a message: {reading.refused[0]}")
    what = f"{readers:,} stalled readers"
    return [
        _memory(f"{what}: memory each", each, sent / readers),
        compared(
            "stalled-beside",
            f"{what}: p99 of one who reads, from the call to the arrival",
            beside,
            unit="ms",
            units_of_cost=1e3,
            floor_is=f"beside {readers:,} who read",
            note=f"meanwhile a call at a time to the others; to those who stall all {len(stalling.refused):,} refused",
        ),
    ]


@asynccontextmanager
async def _company(readers: int, client: ClientOf, options: Sequence[SocketOption] = ()) -> AsyncIterator[_Company]:
    running: AbstractAsyncContextManager[Server] = running_sidecar(settings=SETTINGS)
    async with running as server, grpc.aio.insecure_channel(server.grpc_target) as channel:
        fast, others = Crowd(server, AckingClient), Crowd(server, client, options)
        await fast.join(["fast"])
        await others.join([f"user-{number}" for number in range(readers)])
        try:
            yield _Company(server, Calls(channel), fast, others, channel, [])
        finally:
            fast.cut()
            others.cut()


async def _pay_once(company: _Company) -> None:
    """A user comes, is sent large messages, and goes: what the first of all costs is nobody's weight."""
    first = Crowd(company.server)
    await first.join(["first"])
    await company.calls.send(batch_of(first.routes * BATCH, LARGE))
    await first.leave()


async def _fill(stalling: _Company) -> int:
    """Send to each until its outbox is full. How many messages were accepted."""
    return sum(
        [
            await fill_some(stalling.calls, stalling.others.routes[start : start + BATCH])
            for start in range(0, len(stalling.others.routes), BATCH)
        ]
    )


async def fill_some(calls: Batches, routes: Sequence[Route]) -> int:
    """The same for some; RunFailed when a refusal has another reason, or one of them takes ever more."""
    accepted = 0
    for _ in range(MOST_ROUNDS):
        results = await calls.send(batch_of(routes, LARGE))
        refusals = {reason_of(result.error) for result in results if result.HasField("error")}
        if refusals - {OUTBOX_FULL}:
            raise RunFailed(f"a message to a stalled reader was refused: {refusals}")
        routes = [route for route, result in zip(routes, results, strict=True) if result.HasField("receipt")]
        accepted += len(routes)
        if not routes:
            return accepted
    raise RunFailed(f"{len(routes)} readers took {MOST_ROUNDS} messages and stalled not")


async def _check_stalled(stalling: _Company) -> None:
    """Raise RunFailed unless all are still there, with a full outbox."""
    for route in stalling.others.routes:
        stats = await stalling.calls.stats(route)
        if stats.connections_managed != 1 or stats.outbox_bytes <= OUTBOX_BYTES - MESSAGE_BYTES:
            raise RunFailed(f"a reader did not stall, or went: {stats!r}")


def _memory(title: str, each: float, messages: float) -> Result:
    ratio = each / BOUND_BYTES
    note = (
        f"RssAnon, less what it was with all connected; {messages:.1f} messages of 64 KiB to each until OUTBOX_FULL; "
        f"the bound: outbox.max_bytes, here {OUTBOX_BYTES:,} for time and memory, a write buffer of 64 KiB, the "
        "message that overfills it, and 16 KiB"
    )
    return Result(
        "stalled-memory",
        title,
        "kB",
        ours=each / 1e3,
        floor=BOUND_BYTES / 1e3,
        floor_is="bound",
        ratio=Spread(ratio, ratio, ratio),
        samples=1,
        note=note,
    )
