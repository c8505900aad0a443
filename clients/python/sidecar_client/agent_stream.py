"""One Attach call: registers the worker, hands its events on, says what is acknowledged and how many more may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar_client.errors import SidecarError, TransportError, error_from_call
from sidecar_client.messages import duration, fields

MAX_ACKNOWLEDGED: Final = 10_000
"""Delivery ids in one frame."""
MAX_FRAME_EVENTS: Final = 100
"""Events in one frame, as many as the sidecar puts in one."""
HALF_CLOSE_TIMEOUT_S: Final = 5.0
GATHER_UP_TO: Final = 8
GATHER_S: Final = 0.01
"""Acknowledgements and credits that follow others wait: until there are so many of either, or it is so long since."""
GATHER_SHARE: Final = 0.1
"""Of the time in which an event is to be acknowledged: where that is short they wait for no longer."""
DEFAULT_ACK_TIMEOUT_S: Final = 60.0
"""The sidecar's."""
PATIENCE_SHARE: Final = 0.5
"""Of that time: so long an event that waits for its handler may go to another worker, should this one be lost."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a service takes: the messages of that event; `*` is whatever no other service takes.

    `tenant_id`: empty is every tenant that the service may have.
    """

    event: str = "*"
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """Who the worker is and what it takes."""

    service_name: str
    subscriptions: tuple[Subscription, ...]
    ack_timeout_s: float | None

    @property
    def patience_s(self) -> float:
        """How long an event may wait for its handler without being acknowledged."""
        return PATIENCE_SHARE * (DEFAULT_ACK_TIMEOUT_S if self.ack_timeout_s is None else self.ack_timeout_s)

    @property
    def gather_s(self) -> float:
        """How long an acknowledgement may wait for others."""
        return GATHER_S if self.ack_timeout_s is None else min(GATHER_S, GATHER_SHARE * self.ack_timeout_s)

    def frame(self, credit: int) -> pb.AttachRequest:
        """The first frame. Raises BadRequest for what it cannot hold."""
        register = pb.AttachRequest.Register(max_frame_events=MAX_FRAME_EVENTS)
        with fields("register"):
            register.service_name = self.service_name
            register.credits = credit
            for each in self.subscriptions:
                register.subscriptions.add(tenant_id=each.tenant_id, event=each.event)
        if self.ack_timeout_s is not None:
            register.ack_timeout.CopyFrom(duration(self.ack_timeout_s, "register.ack_timeout"))
        return pb.AttachRequest(register=register)


class AgentStream:
    """One worker's call, from `register` to its end. What is to be said gathers while the writer is busy, or a moment.

    What is not said when the call breaks is not lost: its event comes again, on the next call, and is known.
    """

    def __init__(
        self, call: Any, on_registered: Callable[[], None], on_event: Callable[[Any], None], gather_s: float = GATHER_S
    ) -> None:
        self._call = call
        self._on_registered = on_registered
        self._on_event = on_event
        self._acknowledged: list[str] = []
        self._credit = 0
        self._credit_left = 0
        """What may still come without a further word."""
        self._gather_s = gather_s
        self._gathering: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        """What comes before then, on the loop's clock, waits; what comes later stands alone, and goes at once."""
        self._work = asyncio.Event()
        self._leaving = False

    def acknowledge(self, delivery_id: str) -> None:
        """Say "mine" of that event: at once where nothing was said just before, else soon."""
        self._acknowledged.append(delivery_id)
        self._gather()

    def credit(self, amount: int) -> None:
        """Let so many more come: the same, and at once where the sidecar has few left."""
        self._credit += amount
        self._gather()

    def leave(self) -> None:
        """Say what is still to be said, then half-close; the sidecar then ends the call. Idempotent."""
        self._leaving = True
        self._work.set()

    async def run(self, register: pb.AttachRequest) -> SidecarError | None:
        """Serve until the call ends; why it did, None after `leave`. Safe to cancel: the call is."""
        self._credit_left = register.register.credits
        writer = asyncio.create_task(self._write(register))
        try:
            await self._read()
        except grpc.aio.AioRpcError as failed:
            return error_from_call(failed)
        finally:
            writer.cancel()
            self._stop_gathering()
            self._call.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return None if self._leaving else TransportError(grpc.StatusCode.UNAVAILABLE, "", "the stream ended")

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            match response.WhichOneof("frame"):
                case "registered":
                    self._on_registered()
                case "event":
                    self._take_event(response.event)
                case "events":
                    for event in response.events.items:
                        self._take_event(event)

    def _take_event(self, event: pb.AttachResponse.Event) -> None:
        self._credit_left -= event.WhichOneof("kind") != "cancelled"
        self._on_event(event)

    async def _write(self, register: pb.AttachRequest) -> None:
        # A write that fails says less than the read beside it, which ends with the call's status.
        await self._call.write(register)
        while True:
            for frame in self._take():
                await self._call.write(frame)
            if self._leaving and not self._work.is_set():
                break
            await self._work.wait()
        await self._call.done_writing()

    def _gather(self) -> None:
        """Say it when there is enough of it, when nothing more could come, or a moment after what was said before."""
        enough = len(self._acknowledged) >= GATHER_UP_TO or self._credit >= GATHER_UP_TO
        if enough or self._leaving or self._credit >= max(self._credit_left, 1):
            self._work.set()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_at(self._next_at, self._work.set)

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def _take(self) -> Sequence[pb.AttachRequest]:
        self._work.clear()
        self._stop_gathering()
        ids, self._acknowledged = self._acknowledged, []
        credit, self._credit = self._credit, 0
        self._credit_left += credit
        if ids or credit:
            self._next_at = asyncio.get_running_loop().time() + self._gather_s
        frames = [
            pb.AttachRequest(
                acknowledge=pb.AttachRequest.Acknowledge(delivery_ids=ids[start : start + MAX_ACKNOWLEDGED])
            )
            for start in range(0, len(ids), MAX_ACKNOWLEDGED)
        ]
        if credit:
            frames.append(pb.AttachRequest(credit=pb.AttachRequest.Credit(credits=credit)))
        return frames
