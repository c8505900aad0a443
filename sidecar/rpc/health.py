"""grpc.health.v1 behind the boundary, so that it answers bad requests as every other service does."""

from __future__ import annotations

from typing import Any, Final, cast

import grpc
from grpc_health.v1 import health, health_pb2

from sidecar.rpc.boundary import Boundary, Call, CallFacts

SERVICE: Final = health.SERVICE_NAME


class Health:
    """The serving status of the whole ("") and of each service by name."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services = services
        self._servicer = health.aio.HealthServicer()

    async def set_serving(self, serving: bool) -> None:
        """Tell every watcher."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            await self._servicer.set(service, status)

    def handlers(self, boundary: Boundary) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods of grpc.health.v1.Health on raw bytes."""
        request_type = health_pb2.HealthCheckRequest
        return {
            "Check": boundary.unary("Check", request_type, self._check),
            "Watch": boundary.server_stream("Watch", request_type, self._watch),
        }

    async def _check(self, request: health_pb2.HealthCheckRequest, facts: CallFacts) -> health_pb2.HealthCheckResponse:
        return await self._servicer.Check(request, facts.call)

    async def _watch(self, request: health_pb2.HealthCheckRequest, call: Call, _: CallFacts) -> None:
        await self._servicer.Watch(request, cast(Call, _MessageCall(call)))


class _MessageCall:
    """The call as the servicer wants it: it writes messages where the raw call takes bytes."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def write(self, message: health_pb2.HealthCheckResponse) -> None:
        await self._call.write(message.SerializeToString())
