"""grpc.health.v1: Check and Watch, and that no watcher can hold up the others."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from sidecar.rpc.server import SERVICES
from tests.rpc.rig import TIMEOUT_S, Rig
from tests.support.http2 import connect_without_window

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def check(rig: Rig, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await rig.health.Check(request, timeout=TIMEOUT_S)).status


def watch(rig: Rig, service: str = "") -> Any:
    return rig.health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_everything_serves(rig: Rig, service: str) -> None:
    assert await check(rig, service) == SERVING


async def test_an_unknown_service(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(rig, "no.Such")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watching = watch(rig, "no.Such")
    assert (await watching.read()).status == UNKNOWN
    watching.cancel()


async def test_the_whole_stops_serving_before_its_services(rig: Rig) -> None:
    """A client that checks a service by name goes on sending as long as that answers."""
    whole, service = watch(rig), watch(rig, SERVICES[0])
    assert (await whole.read()).status == (await service.read()).status == SERVING
    rig.edge.stop_serving()
    assert (await whole.read()).status == NOT_SERVING
    assert (await check(rig), await check(rig, SERVICES[0])) == (NOT_SERVING, SERVING)
    assert (await rig.send(rig.alice)).sequence == 1
    rig.edge.stop_serving()
    closing = asyncio.ensure_future(rig.edge.close(0.5))
    assert (await service.read()).status == NOT_SERVING
    for watching in (whole, service):
        watching.cancel()
    await closing


async def test_a_watcher_that_takes_nothing_holds_up_nobody(rig: Rig) -> None:
    """Its window is 0: what is written to it never leaves."""
    _, writer = await connect_without_window(rig.edge.target, "/grpc.health.v1.Health/Watch", b"")
    watching = watch(rig)
    assert (await watching.read()).status == SERVING
    async with asyncio.timeout(TIMEOUT_S):
        await rig.calls_under_way(2)
        rig.edge.stop_serving()
        assert (await watching.read()).status == NOT_SERVING
    watching.cancel()
    writer.close()
