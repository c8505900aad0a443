"""How long a user who comes back waits for what was sent meanwhile."""

from __future__ import annotations

import time

import grpc

from benchmarks.calls import Calls, batch_of
from benchmarks.load import PAYLOAD_BYTES
from benchmarks.measure import quantile
from benchmarks.results import Result
from benchmarks.resuming import ResumingUser
from benchmarks.servers import SQLITE, RunFailed, running_sidecar
from benchmarks.sockets import Tally
from benchmarks.works.plan import Plan
from sidecar.api.v1 import types_pb2 as types

RESUMES = 300
RESUMES_FROM_DISK = 200
WAITING = 500
BATCH = 100
WHAT = f"Resume, {WAITING} messages of {PAYLOAD_BYTES} bytes waiting"


async def resume(plan: Plan) -> list[Result]:
    """One after the other, from the TCP connection to the last message; the contexts in memory, then on disk."""
    return [
        await _resumes("resume", f"{WHAT}: p99", plan.count(RESUMES), "", types.DURABILITY_MEMORY),
        await _resumes(
            "resume-sqlite", f"{WHAT}, SQLite: p99", plan.count(RESUMES_FROM_DISK), SQLITE, types.DURABILITY_DISK
        ),
    ]


async def _resumes(key: str, title: str, times: int, settings: str, durability: int) -> Result:
    async with (
        running_sidecar(settings=settings) as server,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        calls, tally = Calls(channel), Tally()
        user = ResumingUser(server, "alice", 0, tally)
        await user.join()
        await _resume_once(calls, tally, user, durability)  # to warm up
        waits = sorted([await _resume_once(calls, tally, user, durability) for _ in range(times)])
    p50, p99 = (quantile(waits, fraction) * 1e3 for fraction in (0.5, 0.99))
    note = (
        "from the TCP connection, over handshake, hello and welcome, to the last of them; "
        f"p50 {p50:.1f} ms, the longest {waits[-1] * 1e3:.1f} ms"
    )
    return Result(key, title, "ms", ours=p99, samples=times, note=note)


async def _resume_once(calls: Calls, tally: Tally, user: ResumingUser, durability: int) -> float:
    """Break the connection, send to the user who is away, and let the user come back. Seconds to the last message."""
    goal = tally.count + WAITING
    user.cut()
    await calls.wait_until_away(user.route)
    batch = batch_of([user.route] * BATCH)
    for _ in range(WAITING // BATCH):
        for result in await calls.send(batch):
            receipt = result.receipt
            if receipt.state != types.DELIVERY_STATE_QUEUED or receipt.durability != durability:
                raise RunFailed(f"a message does not wait as it should: {result!r}")
    started = time.perf_counter()
    await user.come_back()
    await tally.reach(goal)
    return time.perf_counter() - started
