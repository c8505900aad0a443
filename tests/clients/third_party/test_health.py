"""The standard health check, through the standard stubs, as orchestrators and client libraries call it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.running import RunningSidecar, running_sidecar

SERVICES = ("", *(f"sidecar.api.v1.{name}Service" for name in ("Delivery", "Context", "Agent", "Admin")))
Request, Response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
TIMEOUT_S = 20.0


@pytest.mark.parametrize("service", SERVICES)
async def test_check(sidecar: RunningSidecar, service: str) -> None:
    """Without any token."""
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(Request(service=service), timeout=TIMEOUT_S)
        assert answer.status == Response.SERVING


async def test_a_service_that_there_is_not(sidecar: RunningSidecar) -> None:
    async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(Request(service="nobody"), timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watching = health.Watch(Request(service="nobody"), timeout=TIMEOUT_S)
        assert (await watching.read()).status == Response.SERVICE_UNKNOWN
        watching.cancel()


async def test_who_watches_is_told_of_the_end(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        async with grpc.aio.insecure_channel(sidecar.grpc_target) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(Request(service=service), timeout=TIMEOUT_S) for service in SERVICES]
            for watching in watches:
                assert (await watching.read()).status == Response.SERVING
            sidecar.process.send_signal(signal.SIGTERM)
            for watching in watches:
                assert (await watching.read()).status == Response.NOT_SERVING


async def test_a_client_with_health_checking_calls_as_ever(sidecar: RunningSidecar) -> None:
    """The library's own, which watches before it picks a connection."""
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICES[1]}}
    options = [("grpc.service_config", json.dumps(config))]
    async with grpc.aio.insecure_channel(sidecar.grpc_target, options=options) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(Request(), timeout=TIMEOUT_S, wait_for_ready=True)
        assert answer.status == Response.SERVING
