"""An agent worker of the soak, a process of its own: `python -m tests.faults.soak.worker NAME JOURNAL`.

It writes down every message that it is handed before it does anything else, answers it in a stream, and attaches again
whatever happens. Nothing but the generated stubs: no client's bug can hide one of the server's. It ends when killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict, deque
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
from google.protobuf import duration_pb2

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar.api.v1 import agent_service_pb2_grpc, delivery_service_pb2, delivery_service_pb2_grpc, types_pb2
from tests.faults.senders import FAST_RECONNECT
from tests.faults.soak.talk import ANSWER_TO
from tests.support.running import refusal_of

SERVICE = "soak"
CREDITS = 64
ACK_TIMEOUT_S = 4
CALL_TIMEOUT_S = 3.0
BEFORE_AGAIN_S = 0.1
OPTIONS = [
    *FAST_RECONNECT,
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
]
FINAL = {"STREAM_CANCELLED", "STREAM_ENDED", "STREAM_OUT_OF_ORDER", "MANAGER_GONE", "ISOLATION_VIOLATION"}
"""What makes it of no use to send a chunk again."""


class Journal:
    """One file of all workers of a company: a JSON object a line, written with one call each."""

    def __init__(self, worker: str, path: str) -> None:
        self._worker = worker
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: pb.AttachResponse.Event, **members: object) -> None:
        """What became of that message, and when: the machine's monotonic clock is every process's."""
        line = {
            "at": time.monotonic(),
            "worker": self._worker,
            "tenant": event.context.tenant_id,
            "user": event.context.user_id,
            "context": event.context.connection_id,
            "id": event.message.message_id,
            **members,
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Worker:
    """Attached once, for the `life`th time; what waits to be answered is answered context by context."""

    def __init__(self, channel: grpc.aio.Channel, journal: Journal, life: int) -> None:
        self._delivery = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
        self._agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        self._journal = journal
        self._life = life
        self._out: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
        self._waiting: defaultdict[str, deque[pb.AttachResponse.Event]] = defaultdict(deque)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def attach(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Until the stream ends."""
        register = pb.AttachRequest.Register(
            service_name=SERVICE,
            subscriptions=[pb.AttachRequest.Subscription()],
            credits=CREDITS,
            ack_timeout=duration_pb2.Duration(seconds=ACK_TIMEOUT_S),
            max_frame_events=CREDITS if self._life % 2 else 0,
        )
        self._out.put_nowait(pb.AttachRequest(register=register))
        call: Any = self._agents.Attach(metadata=metadata, wait_for_ready=True)
        writing = asyncio.create_task(self._write(call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for event in response.events.items or (response.event,):
                    self._take(event)
        finally:
            tasks = [writing, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._out.get())

    def _take(self, event: pb.AttachResponse.Event) -> None:
        if event.WhichOneof("kind") in {None, "cancelled"}:
            return  # the registration was answered; or its next chunk will be refused
        if event.WhichOneof("kind") != "message":
            self._acknowledge(event)
            return
        said = json.loads(event.message.payload)
        self._journal.write(event, said=said, redelivered=event.redelivered, life=self._life)
        if said["mine"]:
            self._acknowledge(event)
        key = event.isolation_key
        self._waiting[key].append(event)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._answer_all(key))

    def _acknowledge(self, event: pb.AttachResponse.Event) -> None:
        acknowledge = pb.AttachRequest.Acknowledge(delivery_ids=[event.delivery_id])
        self._out.put_nowait(pb.AttachRequest(acknowledge=acknowledge))
        self._out.put_nowait(pb.AttachRequest(credit=pb.AttachRequest.Credit(credits=1)))

    async def _answer_all(self, key: str) -> None:
        waiting = self._waiting[key]
        while waiting:
            event = waiting.popleft()
            said = json.loads(event.message.payload)
            self._journal.write(event, answered=await self._answer(event, said))
            if not said["mine"]:
                self._acknowledge(event)
        del self._tasks[key]

    async def _answer(self, event: pb.AttachResponse.Event, said: dict[str, Any]) -> str:
        """A stream with that many chunks; the same for a message that comes again, whoever answers it."""
        for index in range(said["chunks"]):
            last = types_pb2.STREAM_STATE_ERROR if said["fails"] else types_pb2.STREAM_STATE_END
            state = last if index + 1 == said["chunks"] else types_pb2.STREAM_STATE_OPEN
            chunk = {name: said[name] for name in ("tenant", "user", "context", "uuid")} | {"index": index}
            message = types_pb2.Message(
                payload=json.dumps(chunk).encode(),
                reply_to=event.message.message_id,
                stream=types_pb2.Stream(stream_id=f"{ANSWER_TO}{event.message.message_id}", index=index, state=state),
            )
            reason = await self._insist(event, message)
            if reason:
                return reason
            await a_while(said["pace"])
        return "whole"

    async def _insist(self, event: pb.AttachResponse.Event, message: types_pb2.Message) -> str:
        """Send until it is taken; the reason where it never will be."""
        request = delivery_service_pb2.SendToUserRequest(
            isolation_key=event.isolation_key, message=message, expected_user_id=event.context.user_id
        )
        metadata = (("x-context-token", event.context_token),)
        while True:
            try:
                await self._delivery.SendToUser(request, metadata=metadata, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                reason = refusal_of(error).reason
                if reason in FINAL or reason.startswith("TOKEN_"):
                    return reason
                await a_while()
            else:
                return ""


async def main(name: str, path: str) -> None:
    """Attach, again and again."""
    metadata = (("x-service-token", os.environ["SIDECAR_SERVICE_TOKEN"]),)
    journal = Journal(name, path)
    for life in count():
        async with grpc.aio.insecure_channel(os.environ["SIDECAR_GRPC_ENDPOINT"], options=OPTIONS) as channel:
            with suppress(grpc.aio.AioRpcError):
                await Worker(channel, journal, life).attach(metadata)
        await a_while()


async def a_while(seconds: float = BEFORE_AGAIN_S) -> None:
    """What a program that is refused, or cut off, waits before it tries again; and one that has to think."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
