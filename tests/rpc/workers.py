"""Agent workers of the tests: one Attach stream each, and short ways to use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.core.deliveries import InboundMessage
from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.message import ContentType
from tests.rpc.rig import OPERATOR, TIMEOUT_S, Client, Rig, service_metadata

Register = pb.AttachRequest.Register
Event = pb.AttachResponse.Event


def registration(
    service_name: str = "support",
    *pairs: tuple[str, str],
    credits_: int = 1_000,
    ack_timeout_s: float | None = None,
    max_frame_events: int = 0,
) -> Register:
    """Everything of every tenant, unless `pairs` of (tenant_id, event) say what."""
    register = Register(service_name=service_name, credits=credits_, max_frame_events=max_frame_events)
    for tenant_id, event in pairs or (("", ""),):
        register.subscriptions.add(tenant_id=tenant_id, event=event)
    if ack_timeout_s is not None:
        timeout = Duration()
        timeout.FromNanoseconds(round(ack_timeout_s * 1e9))
        register.ack_timeout.CopyFrom(timeout)
    return register


class Worker:
    """One Attach stream."""

    def __init__(self, stub: Any, token: str = OPERATOR, timeout_s: float = TIMEOUT_S) -> None:
        self.call = stub.Attach(metadata=service_metadata(token), timeout=timeout_s)

    async def write(self, **frame: Any) -> None:
        await self.call.write(pb.AttachRequest(**frame))

    async def register(self, register: Register | None = None) -> Worker:
        """Register, and see it answered first."""
        await self.write(register=register or registration())
        answer = await self.frame()
        assert answer.WhichOneof("frame") == "registered", answer
        return self

    async def frame(self) -> pb.AttachResponse:
        answer = await asyncio.wait_for(self.call.read(), TIMEOUT_S)
        assert isinstance(answer, pb.AttachResponse), answer
        return answer

    async def event(self, kind: str | None = None) -> Event:
        """The next event, which is of that kind."""
        answer = await self.frame()
        assert answer.WhichOneof("frame") == "event", answer
        assert kind in (None, answer.event.WhichOneof("kind")), answer
        return answer.event

    async def events(self, count: int) -> list[Event]:
        return [await self.event() for _ in range(count)]

    async def frame_of(self, kind: str) -> list[Event]:
        """The events of the next frame, which is of that kind."""
        answer = await self.frame()
        assert answer.WhichOneof("frame") == kind, answer
        return list(answer.events.items) if kind == "events" else [answer.event]

    async def acknowledge(self, *events: Event) -> None:
        await self.write(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=[each.delivery_id for each in events]))

    async def credit(self, amount: int) -> None:
        await self.write(credit=pb.AttachRequest.Credit(credits=amount))

    async def finish(self) -> None:
        """Half-close; nothing comes any more but an OK."""
        await self.call.done_writing()
        assert await asyncio.wait_for(self.call.read(), TIMEOUT_S) is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


async def attached(rig: Rig, register: Register | None = None, token: str = OPERATOR) -> Worker:
    """A worker that is registered."""
    return await Worker(rig.agent, token).register(register)


def announce(rig: Rig, *clients: Client) -> None:
    """The clients have been welcomed: services are told that they are there."""
    for client in clients:
        client.manager.conversation.announce(rig.at())


def say(
    rig: Rig, client: Client, message_id: str = "m-1", event: str = "message", payload: bytes = b"{}"
) -> ErrorReason | None:
    """The client says it; why it was refused, or None once it is accepted."""
    answers: list[SidecarError | None] = []
    message = InboundMessage(message_id, event, payload, ContentType.JSON)
    try:
        client.manager.receive(message, rig.at(), lambda error, _: answers.append(error))
    except SidecarError as error:
        answers.append(error)
    (answer,) = answers
    return None if answer is None else answer.reason


def summaries(events: Iterable[Event]) -> list[str]:
    """`alice opened`, `alice m-1`; with a star where it is marked as sent before."""
    return [
        f"{'*' if each.redelivered else ''}{each.context.user_id} {each.message.message_id or each.WhichOneof('kind')}"
        for each in events
    ]
