"""grpc.health.v1 behind the boundary, so that it answers bad requests as every other service does.

The library's servicer writes to a watcher while it holds the lock that `set` needs: one client that does not read would
keep the sidecar from ever saying NOT_SERVING. Here a watcher is told, and writes in its own time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2

from sidecar.rpc.boundary import Boundary, Call, CallFacts

SERVICE: Final = health.SERVICE_NAME
Response = health_pb2.HealthCheckResponse


class Health:
    """The serving status of the whole ("") and of each service by name."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._statuses: dict[str, Any] = dict.fromkeys(("", *services), Response.NOT_SERVING)
        self._watchers: set[asyncio.Event] = set()

    def set_serving(self, serving: bool, *services: str) -> None:
        """Tell every watcher of these services (none named: of all and the whole)."""
        status = Response.SERVING if serving else Response.NOT_SERVING
        for service in services or tuple(self._statuses):
            self._statuses[service] = status
        for changed in self._watchers:
            changed.set()

    def handlers(self, boundary: Boundary) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods of grpc.health.v1.Health on raw bytes."""
        request_type = health_pb2.HealthCheckRequest
        return {
            "Check": boundary.unary("Check", request_type, self._check, always=True),
            "Watch": boundary.server_stream("Watch", request_type, self._watch),
        }

    async def _check(self, request: health_pb2.HealthCheckRequest, facts: CallFacts) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await facts.call.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return Response(status=status)

    async def _watch(self, request: health_pb2.HealthCheckRequest, call: Call, _: CallFacts) -> NoReturn:
        changed = asyncio.Event()
        self._watchers.add(changed)
        told = None
        try:
            while True:
                status = self._statuses.get(request.service, Response.SERVICE_UNKNOWN)
                if status != told:
                    await call.write(Response(status=status).SerializeToString())
                    told = status
                await changed.wait()
                changed.clear()
        finally:
            self._watchers.discard(changed)
