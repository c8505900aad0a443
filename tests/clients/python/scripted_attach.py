"""A server of Attach that does as a script says, beside a Deliver that takes everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import delivery_service_pb2 as delivery
from sidecar.api.v1 import types_pb2
from sidecar_client import Agent
from tests.clients.python.agents import within
from tests.clients.python.scripted import receipt

Script = Callable[["Scripted", Any], Awaitable[None]]
ALICE = types_pb2.UserContext(tenant_id="default", user_id="alice", connection_id="c-1")


class Scripted:
    """A server of Attach. The script is run for each call, after its `register`."""

    def __init__(self, script: Script) -> None:
        self.calls = 0
        self.registered: list[pb.AttachRequest.Register] = []
        self.tokens: list[str] = []
        self.frames: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
        self.half_closed = asyncio.Event()
        self.chunks: asyncio.Queue[types_pb2.Message] = asyncio.Queue()
        self._script = script
        self._server = grpc.aio.server()
        attach = grpc.stream_stream_rpc_method_handler(
            self._attach, pb.AttachRequest.FromString, pb.AttachResponse.SerializeToString
        )
        deliver = grpc.stream_stream_rpc_method_handler(
            self._deliver, delivery.DeliverRequest.FromString, delivery.DeliverResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("sidecar.api.v1.AgentService", {"Attach": attach}),
                grpc.method_handlers_generic_handler("sidecar.api.v1.DeliveryService", {"Deliver": deliver}),
            )
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _attach(self, _: Any, call: Any) -> None:
        self.calls += 1
        self.tokens.append(dict(call.invocation_metadata()).get("x-service-token", ""))
        self.registered.append((await call.read()).register)
        await call.write(pb.AttachResponse(registered=pb.AttachResponse.Registered()))
        await self._script(self, call)

    async def read_on(self, call: Any) -> None:
        """Keep what the agent says, to its half-close."""
        while (frame := await call.read()) is not grpc.aio.EOF:
            self.frames.put_nowait(frame)
        self.half_closed.set()

    async def _deliver(self, _: Any, call: Any) -> None:
        """Accept every message; what is streamed is kept."""
        numbers: Counter[int] = Counter()
        while (frame := await call.read()) is not grpc.aio.EOF:
            for item in frame.messages.items:
                self.chunks.put_nowait(item.message)
                answer = delivery.DeliverResponse.LaneReceipt(
                    lane=item.lane, number=numbers[item.lane], receipt=receipt(item.message)
                )
                numbers[item.lane] += 1
                await call.write(delivery.DeliverResponse(receipts=delivery.DeliverResponse.Receipts(items=[answer])))

    async def said(self, *, acknowledged: int, credit: int) -> list[str]:
        """The ids of so many acknowledgements, once there has been so much credit too."""
        ids: list[str] = []
        while len(ids) < acknowledged or credit > 0:
            frame = await within(self.frames.get())
            ids += frame.acknowledge.delivery_ids
            credit -= frame.credit.credits
        assert credit == 0
        return ids


def event(delivery_id: str, *, isolation_key: str = "key", context_token: str = "t", **kind: Any) -> pb.AttachResponse:
    return pb.AttachResponse(
        event=pb.AttachResponse.Event(
            delivery_id=delivery_id, isolation_key=isolation_key, context_token=context_token, context=ALICE, **kind
        )
    )


def question(delivery_id: str, message_id: str, **members: Any) -> pb.AttachResponse:
    inbound = pb.AttachResponse.Inbound(message_id=message_id, event_type="message", payload=b'"why?"', content_type=1)  # type: ignore[arg-type]
    return event(delivery_id, message=inbound, **members)


@asynccontextmanager
async def scripted(script: Script, **settings: Any) -> AsyncIterator[tuple[Scripted, Agent]]:
    """A server, and an agent that is attached to it once it has a handler and is entered."""
    server = Scripted(script)
    await server.start()
    defaults: dict[str, Any] = {"endpoint": server.target, "service_token": "secret", "uniform": lambda: 0.01}
    agent = Agent("answers", **(defaults | settings))
    try:
        yield server, agent
    finally:
        await agent.stop(grace_s=1.0)
        await server.stop()
