"""How long the sidecar takes to start, and what it weighs before anybody has come."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.measure import Spread, memory_bytes
from benchmarks.results import Result
from benchmarks.servers import RunFailed, running_sidecar
from benchmarks.works.plan import Plan

STARTS = 9
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_TIMEOUT_S = 30.0


async def start(plan: Plan) -> list[Result]:
    """From exec until the gRPC health check answers SERVING; and VmRSS of the idle process thereafter."""
    pairs = [await _start_once(plan.settle_s) for _ in range(plan.triples(STARTS))]
    started = Spread.of([seconds for seconds, _ in pairs])
    resident = Spread.of([size / 1e6 for _, size in pairs])
    return [
        Result(
            "start", "Start, exec to SERVING", "s", ours=started.median, samples=len(pairs), note=_range(started, "s")
        ),
        Result(
            "idle-rss",
            "Idle, default configuration: VmRSS",
            "MB",
            ours=resident.median,
            samples=len(pairs),
            note=f"{_range(resident, 'MB')}; {resident.median / 1.048576:.1f} MiB",
        ),
    ]


async def _start_once(settle_s: float) -> tuple[float, int]:
    """Seconds, and bytes. Not pinned: a start may use what cores there are."""
    begun = time.perf_counter()
    async with running_sidecar(pinned=False) as server:
        await _serving(server.grpc_target)
        seconds = time.perf_counter() - begun
        await asyncio.sleep(settle_s)
        return seconds, memory_bytes(server.pid, "VmRSS")


async def _serving(target: str) -> None:
    """The ports are known from the log's line; the channel waits until it is ready."""
    async with grpc.aio.insecure_channel(target) as channel:
        check: Any = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=HEALTH_TIMEOUT_S)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise RunFailed(f"the health check answered {answer.status}")


def _range(spread: Spread, unit: str) -> str:
    return f"10–90 %: {spread.low:.2f}–{spread.high:.2f} {unit}"
