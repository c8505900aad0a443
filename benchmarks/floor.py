"""The floor: what nobody who sends a message from gRPC to a WebSocket can leave out, with the bare libraries.

Run as a process (`python -m benchmarks.floor`). A client's first frame is its name, answered by one frame. A call is
parsed, its payload written to that client's socket, and answered by a receipt with the sequence. There is no token, no
interceptor, no outbox, no limit, no record, and a name is believed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from websockets.asyncio.server import ServerConnection, serve

from sidecar.api.v1 import delivery_service_pb2 as pb

if TYPE_CHECKING:  # grpc's classes are generic to the type checker only
    Call = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Call = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

SERVICE = "sidecar.api.v1.DeliveryService"
PING_INTERVAL_S = 60


class Floor:
    """The sockets by name, and how many messages each was sent."""

    def __init__(self) -> None:
        self._sockets: dict[str, ServerConnection] = {}
        self._sequences: Counter[str] = Counter()

    async def connected(self, socket: ServerConnection) -> None:
        """One client, from its handshake to its end."""
        name = str(await socket.recv())
        self._sockets[name] = socket
        await socket.send("ok")
        try:
            async for _ in socket:
                pass
        finally:
            del self._sockets[name]

    async def send_to_user(self, request: pb.SendToUserRequest, _: Call) -> pb.SendToUserResponse:
        """One message, one call."""
        response = pb.SendToUserResponse()
        response.receipt.sequence = await self._write(request.isolation_key, request.message.payload)
        return response

    async def deliver(self, requests: AsyncIterator[pb.DeliverRequest], _: Call) -> AsyncIterator[pb.DeliverResponse]:
        """Frames of many messages; each frame is answered by one of as many receipts."""
        lanes: dict[int, str] = {}
        async for request in requests:
            response = pb.DeliverResponse()
            if request.WhichOneof("frame") == "open_lane":
                lanes[request.open_lane.lane] = request.open_lane.isolation_key
                response.lane_opened.lane = request.open_lane.lane
            else:
                receipts = response.receipts.items
                for item in request.messages.items:
                    sequence = await self._write(lanes[item.lane], item.message.payload)
                    receipt = receipts.add()
                    receipt.lane = item.lane
                    receipt.receipt.sequence = sequence
            yield response

    async def _write(self, name: str, payload: bytes) -> int:
        await self._sockets[name].send(payload, text=True)
        sequence = self._sequences[name] = self._sequences[name] + 1
        return sequence


def grpc_server(floor: Floor) -> grpc.aio.Server:
    """A grpc.aio server as the library makes it."""
    server = grpc.aio.server()
    methods: dict[str, Handler] = {
        "SendToUser": grpc.unary_unary_rpc_method_handler(
            floor.send_to_user, pb.SendToUserRequest.FromString, pb.SendToUserResponse.SerializeToString
        ),
        "Deliver": grpc.stream_stream_rpc_method_handler(
            floor.deliver, pb.DeliverRequest.FromString, pb.DeliverResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    return server


async def main() -> None:
    """Serve on free loopback ports, say which, and go on until killed."""
    floor = Floor()
    backlog = 1_024  # as the sidecar: a burst of clients waits in line instead of trying again
    async with serve(
        floor.connected, "127.0.0.1", 0, compression=None, ping_interval=PING_INTERVAL_S, backlog=backlog
    ) as websockets:
        server = grpc_server(floor)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports = {"websocket": next(iter(websockets.sockets)).getsockname()[1], "grpc": f"127.0.0.1:{port}"}
        print(json.dumps({"event": "serving"} | ports), flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
