"""The floor of a round through an agent: what nobody can leave out who hands a user's frames to a service over gRPC.

Run as a process (`python -m benchmarks.relay`). An agent has one bidirectional stream: what users say goes to it as
events of Attach, each in a frame of its own, or, with `--gather`, all in one that came while the frame before was
written; what it says comes on the same stream in frames of Deliver, many messages a frame, and is written to their
sockets. There is no token, no acknowledgement, no receipt, no outbox, no record, and a
name is believed. One agent, attached before the users come.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import grpc
import uvloop
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.floor import PING_INTERVAL_S
from sidecar.api.v1 import agent_service_pb2 as agent_pb
from sidecar.api.v1 import delivery_service_pb2 as pb

if TYPE_CHECKING:  # grpc's classes are generic to the type checker only
    Call = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Call = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler

SERVICE: Final = "benchmarks.Relay"
ATTACH: Final = f"/{SERVICE}/Attach"
BACKLOG: Final = 1_024
GATHER: Final = "--gather"
MAX_FRAME_EVENTS: Final = 100
Event = agent_pb.AttachResponse.Event


class Relay:
    """The sockets by name, and what the agent has yet to be told."""

    def __init__(self, max_frame_events: int) -> None:
        self._max_frame_events = max_frame_events
        self._sockets: dict[str, ServerConnection] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def connected(self, socket: ServerConnection) -> None:
        """One client, from its handshake to its end."""
        name = str(await socket.recv())
        self._sockets[name] = socket
        self._events.put_nowait(Event(isolation_key=name, opened=agent_pb.AttachResponse.Opened()))
        await socket.send("ok")
        try:
            while True:
                inbound = agent_pb.AttachResponse.Inbound(payload=await socket.recv(decode=False))
                self._events.put_nowait(Event(isolation_key=name, message=inbound))
        finally:
            del self._sockets[name]

    async def attach(self, _: object, call: Call) -> None:
        """The agent, from its call to its half-close."""
        reading = asyncio.create_task(self._read_answers(call))
        try:
            while not reading.done():
                events = [await self._events.get()]
                while len(events) < self._max_frame_events and not self._events.empty():
                    events.append(self._events.get_nowait())
                await call.write(_frame_of(events))
        finally:
            reading.cancel()

    async def _read_answers(self, call: Call) -> None:
        lanes: dict[int, str] = {}
        while (request := await call.read()) is not grpc.aio.EOF:
            if request.WhichOneof("frame") == "open_lane":
                lanes[request.open_lane.lane] = request.open_lane.isolation_key
            else:
                for item in request.messages.items:
                    await self._sockets[lanes[item.lane]].send(item.message.payload, text=True)


def _frame_of(events: list[Event]) -> agent_pb.AttachResponse:
    if len(events) == 1:
        return agent_pb.AttachResponse(event=events[0])
    return agent_pb.AttachResponse(events=agent_pb.AttachResponse.Events(items=events))


def grpc_server(relay: Relay) -> grpc.aio.Server:
    """A grpc.aio server as the library makes it."""
    server = grpc.aio.server()
    methods: dict[str, Handler] = {
        "Attach": grpc.stream_stream_rpc_method_handler(
            relay.attach, pb.DeliverRequest.FromString, agent_pb.AttachResponse.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    return server


async def main() -> None:
    """Serve on free loopback ports, say which, and go on until killed."""
    relay = Relay(MAX_FRAME_EVENTS if GATHER in sys.argv else 1)
    async with serve(
        relay.connected, "127.0.0.1", 0, compression=None, ping_interval=PING_INTERVAL_S, backlog=BACKLOG
    ) as websockets:
        server = grpc_server(relay)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports = {"websocket": next(iter(websockets.sockets)).getsockname()[1], "grpc": f"127.0.0.1:{port}"}
        print(json.dumps({"event": "serving"} | ports), flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
