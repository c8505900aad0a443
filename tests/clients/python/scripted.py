"""A gRPC server that answers by a script: for what no real sidecar does on command, such as to refuse once only."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2

Act = Callable[[Any, Any], Any]
"""From the request and the call to the answer, or to a status that refuses it."""


def status(code: grpc.StatusCode, reason: str, retry_after_s: float | None = None) -> status_pb2.Status:
    """A refusal as the sidecar says it."""
    made = status_pb2.Status(code=code.value[0], message="a fixed text")
    made.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="sidecar"))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        made.details.add().Pack(retry)
    return made


def receipt(message: types_pb2.Message, sequence: int = 1) -> types_pb2.Receipt:
    return types_pb2.Receipt(
        message_id=message.message_id,
        sequence=sequence,
        state=types_pb2.DELIVERY_STATE_WRITTEN,
        durability=types_pb2.DURABILITY_MEMORY,
    )


class ScriptedSidecar:
    """Answers SendToUser and CloseManager by the script, act by act, the last one for ever."""

    def __init__(self, script: list[Act]) -> None:
        self._script = script
        self.requests: list[Any] = []
        self.time_left_s: list[float] = []
        self.metadata: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.target = ""

    async def handle(self, request: Any, call: Any) -> Any:
        act = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(request)
        self.time_left_s.append(call.time_remaining())
        self.metadata.append(dict(call.invocation_metadata()))
        self.asked.set()
        answer = act(request, call)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, status_pb2.Status):
            rich = rpc_status.to_status(answer)
            await call.abort(rich.code, rich.details, rich.trailing_metadata)
        return answer


@asynccontextmanager
async def scripted_sidecar(*script: Act, port: int = 0) -> AsyncIterator[ScriptedSidecar]:
    """The server, on a port of its own unless one is named, for as long as the block lasts."""
    scripted = ScriptedSidecar(list(script))
    methods: dict[str, tuple[Any, Any]] = {
        "SendToUser": (pb.SendToUserRequest, pb.SendToUserResponse),
        "CloseManager": (pb.CloseManagerRequest, pb.CloseManagerResponse),
    }
    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            scripted.handle, request_deserializer=ask.FromString, response_serializer=answer.SerializeToString
        )
        for name, (ask, answer) in methods.items()
    }
    generic = grpc.method_handlers_generic_handler("sidecar.api.v1.DeliveryService", handlers)
    server.add_generic_rpc_handlers((generic,))
    scripted.target = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(None)
