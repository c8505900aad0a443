"""A small agent service with nothing but the generated stubs: `python -m tests.support.agent_process KEEP`.

It takes everything, one event after the other, says on its standard output which contexts and messages it takes, a
JSON object a line, and answers each message in a stream of three chunks. It acknowledges all but the last KEEP events:
killed at whatever moment, it leaves those.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import grpc

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import agent_service_pb2_grpc, delivery_service_pb2, delivery_service_pb2_grpc, types_pb2

STATES = (types_pb2.STREAM_STATE_OPEN, types_pb2.STREAM_STATE_OPEN, types_pb2.STREAM_STATE_END)
CREDITS = 50


def say(**members: object) -> None:
    """One line, at once: what is killed has said what it took."""
    os.write(sys.stdout.fileno(), json.dumps(members).encode() + b"\n")


async def answer(delivery: Any, event: pb.AttachResponse.Event) -> None:
    """Three chunks. The same stream for a message that comes again, so that its client gets each of them once."""
    for index, state in enumerate(STATES):
        message = types_pb2.Message(
            payload=b"%d" % index,
            reply_to=event.message.message_id,
            stream=types_pb2.Stream(stream_id=f"to-{event.message.message_id}", index=index, state=state),
        )
        request = delivery_service_pb2.SendToUserRequest(
            isolation_key=event.isolation_key, message=message, expected_user_id=event.context.user_id
        )
        await delivery.SendToUser(request, metadata=(("x-context-token", event.context_token),))


async def main(keep: int) -> None:
    metadata = (("x-service-token", os.environ["SIDECAR_SERVICE_TOKEN"]),)
    async with grpc.aio.insecure_channel(os.environ["SIDECAR_GRPC_ENDPOINT"]) as channel:
        delivery = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
        call: Any = agent_service_pb2_grpc.AgentServiceStub(channel).Attach(metadata=metadata)
        register = pb.AttachRequest.Register(
            service_name="support",
            subscriptions=[pb.AttachRequest.Subscription()],
            credits=CREDITS,
            max_frame_events=CREDITS,
        )
        await call.write(pb.AttachRequest(register=register))
        await call.read()
        say(registered=True)
        taken: list[str] = []
        while (response := await call.read()) is not grpc.aio.EOF:
            for event in response.events.items or (response.event,):
                kind = event.WhichOneof("kind")
                if kind == "opened":
                    say(opened=event.context.user_id)
                if kind == "message":
                    number = json.loads(event.message.payload)
                    say(user=event.context.user_id, number=number, redelivered=event.redelivered)
                    await answer(delivery, event)
                taken.append(event.delivery_id)
            if done := taken[: max(len(taken) - keep, 0)]:
                del taken[: len(done)]
                await call.write(pb.AttachRequest(acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=done)))
                await call.write(pb.AttachRequest(credit=pb.AttachRequest.Credit(credits=len(done))))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
