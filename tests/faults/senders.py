"""A service that sends by every way there is, writes down what it was answered, and asks again where it was not.

Without a message_id it never asks twice: nobody could tell the two apart.
"""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, status_pb2

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import delivery_service_pb2_grpc as stubs
from sidecar.api.v1 import types_pb2
from tests.faults.devices import Receiver
from tests.faults.history import Attempt, Context, History, Receipt, Try
from tests.support.running import refusal_in, refusal_of

CALL_TIMEOUT_S = 15.0
STREAM_TIMEOUT_S = 30.0
FRAME_ITEMS = 16
INDEFINITE = {"", "INTERNAL", "OUTCOME_UNKNOWN"}
"""What leaves it open whether the message was taken; the empty one is a broken call."""
PASSING = {"DRAINING", "STORAGE_UNAVAILABLE", "OUTBOX_FULL", "USER_LIMIT", "RATE_LIMITED", "CLUSTER_UNAVAILABLE"}
"""What may be answered otherwise later."""
MAX_TRIES = 40
FAST_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A channel of its own: none may share another's connection.
    ("grpc.use_local_subchannel_pool", 1),
]


class Sender:
    """One service. `ready` returns when another try is worth it; `token` chooses among a context's tokens.

    With `wait_s` its unary calls wait so long for the acknowledgement.
    """

    def __init__(
        self,
        name: str,
        history: History,
        channel: grpc.aio.Channel,
        ready: Callable[[], Awaitable[None]],
        token: Callable[[list[str]], str] = lambda tokens: tokens[-1],
        *,
        wait_s: float = 0.0,
    ) -> None:
        self._name = name
        self._history = history
        self._delivery = stubs.DeliveryServiceStub(channel)
        self._ready = ready
        self._token = token
        self._wait = duration_of(wait_s)
        self._sent = 0

    def attempt(self, device: Receiver, *, named: bool, **members: Any) -> Attempt:
        """A message to that device's present context; `named`: with a message_id, so that it can be asked for again."""
        assert device.context is not None
        uuid = secrets.token_hex(8)
        self._sent += 1
        return self._history.asked_for(
            Attempt(uuid, device.context, self._name, self._sent, f"id-{uuid}" if named else "", **members)
        )

    # The ways; each returns when every message is answered or given up

    async def unary(self, attempts: Iterable[Attempt]) -> None:
        """One call a message."""
        for attempt in attempts:
            await self._insist(self._call, [attempt])

    async def batch(self, attempts: Iterable[Attempt]) -> None:
        """All in one call."""
        await self._insist(self._batch, list(attempts))

    async def deliver(self, attempts: Iterable[Attempt]) -> None:
        """All over one stream, with a lane a context; what was not answered goes over the next."""
        await self._insist(self._stream, list(attempts))

    async def ask(self, attempt: Attempt) -> None:
        """One call for it, whatever was asked and answered before."""
        await self._call([attempt])

    async def repeat(self, attempt: Attempt) -> Receipt:
        """Ask once more for what was accepted; the receipt."""
        await self.ask(attempt)
        return attempt.receipts[-1]

    async def _insist(self, way: Callable[[list[Attempt]], Awaitable[None]], attempts: list[Attempt]) -> None:
        while attempts:
            await self._ready()
            await way(attempts)
            attempts = [attempt for attempt in attempts if asks_again(attempt)]

    async def _call(self, attempts: list[Attempt]) -> None:
        (attempt,) = attempts
        one = self._history.begins(attempt)
        try:
            if attempt.critical:
                event = pb.EmitCriticalEventRequest(
                    isolation_key=attempt.context.isolation_key,
                    event_type="critical",
                    data=attempt.payload,
                    message_id=attempt.message_id,
                    wait_for_ack=self._wait,
                    expected_user_id=attempt.context.user,
                )
                answer: Any = await self._delivery.EmitCriticalEvent(event, **self._as_client(attempt))
            else:
                request = pb.SendToUserRequest(
                    isolation_key=attempt.context.isolation_key,
                    message=message_of(attempt),
                    wait_for_ack=self._wait,
                    expected_user_id=attempt.context.user,
                )
                answer = await self._delivery.SendToUser(request, **self._as_client(attempt))
        except grpc.aio.AioRpcError as error:
            self._refused(one, refusal_of(error).reason)
        else:
            self._history.answered(one, receipt_of(answer.receipt))

    async def _batch(self, attempts: list[Attempt]) -> None:
        tries = [self._history.begins(attempt) for attempt in attempts]
        items = [
            pb.SendBatchItem(
                isolation_key=attempt.context.isolation_key,
                context_token=self._token_for(attempt),
                message=message_of(attempt),
                expected_user_id=attempt.context.user,
            )
            for attempt in attempts
        ]
        try:
            request = pb.SendBatchRequest(items=items)
            answer = await self._delivery.SendBatch(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            for one in tries:
                self._refused(one, refusal_of(error).reason)
            return
        for one, result in zip(tries, answer.results, strict=True):
            self._take(one, result)

    async def _stream(self, attempts: list[Attempt]) -> None:
        burst = Burst(attempts, self._token_for, self._history.begins)
        call = self._delivery.Deliver(burst.frames(), timeout=STREAM_TIMEOUT_S, wait_for_ready=True)
        with suppress(grpc.aio.AioRpcError):
            async for answer in call:
                for item in answer.receipts.items:
                    self._take(burst.answered(item.lane, item.number), item)
                if answer.WhichOneof("frame") == "acknowledged":
                    told = answer.acknowledged
                    self._history.acknowledgement_read(burst.context_of(told.lane), told.sequence)
                elif answer.WhichOneof("frame") == "dropped":
                    self._history.told_dropped(
                        burst.context_of(answer.dropped.lane), getattr(answer.dropped, "from"), answer.dropped.to
                    )
        for one in burst.unanswered():
            self._history.answered(one)

    # Answers

    def _take(self, one: Try, result: Any) -> None:
        if result.WhichOneof("result") == "receipt":
            self._history.answered(one, receipt_of(result.receipt))
        else:
            self._refused(one, reason_of(result.error))

    def _refused(self, one: Try, reason: str) -> None:
        self._history.answered(one, refused="" if reason in INDEFINITE else reason)

    def _token_for(self, attempt: Attempt) -> str:
        return self._token(attempt.context.tokens)

    def _as_client(self, attempt: Attempt) -> dict[str, Any]:
        metadata = (("x-context-token", self._token_for(attempt)),)
        return {"metadata": metadata, "timeout": CALL_TIMEOUT_S, "wait_for_ready": True}


class Burst:
    """The frames of one Deliver stream, and which try each answer is for."""

    def __init__(
        self, attempts: list[Attempt], token_for: Callable[[Attempt], str], begins: Callable[[Attempt], Try]
    ) -> None:
        self._attempts = attempts
        self._token_for = token_for
        self._begins = begins
        self._lanes: dict[str, int] = {}
        self._contexts: list[Context] = []
        self._waiting: defaultdict[int, deque[Try]] = defaultdict(deque)
        self._numbers: defaultdict[int, int] = defaultdict(int)

    async def frames(self) -> Any:
        """Every lane as it is first needed, and messages of many lanes a frame."""
        for start in range(0, len(self._attempts), FRAME_ITEMS):
            items = []
            for attempt in self._attempts[start : start + FRAME_ITEMS]:
                key = attempt.context.isolation_key
                if key not in self._lanes:
                    self._lanes[key] = len(self._lanes)
                    self._contexts.append(attempt.context)
                    yield pb.DeliverRequest(open_lane=self._opening(attempt))
                items.append(pb.DeliverRequest.LaneMessage(lane=self._lanes[key], message=message_of(attempt)))
                self._waiting[self._lanes[key]].append(self._begins(attempt))
            yield pb.DeliverRequest(messages=pb.DeliverRequest.Messages(items=items))

    def _opening(self, attempt: Attempt) -> pb.DeliverRequest.OpenLane:
        return pb.DeliverRequest.OpenLane(
            lane=self._lanes[attempt.context.isolation_key],
            isolation_key=attempt.context.isolation_key,
            context_token=self._token_for(attempt),
            expected_user_id=attempt.context.user,
            report_acknowledged=True,
        )

    def context_of(self, lane: int) -> Context:
        """Whose lane that is."""
        return self._contexts[lane]

    def answered(self, lane: int, number: int) -> Try:
        """The try that this answer is for: in order within a lane."""
        assert number == self._numbers[lane], f"lane {lane} answered {number}, not {self._numbers[lane]}"
        self._numbers[lane] += 1
        return self._waiting[lane].popleft()

    def unanswered(self) -> list[Try]:
        return [one for waiting in self._waiting.values() for one in waiting]


def asks_again(attempt: Attempt) -> bool:
    """Whether another call for it makes sense: nobody knows what became of it, or it may be taken later."""
    if not attempt.message_id or attempt.receipts or len(attempt.tries) >= MAX_TRIES:
        return False
    return not attempt.tries or attempt.tries[-1].refused in {"", *PASSING}


def message_of(attempt: Attempt) -> types_pb2.Message:
    message = types_pb2.Message(payload=attempt.payload, message_id=attempt.message_id, critical=attempt.critical)
    if attempt.critical:
        message.event_type = "critical"
    if attempt.ttl_s is not None:
        message.ttl.CopyFrom(duration_of(attempt.ttl_s))
    return message


def duration_of(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def receipt_of(receipt: types_pb2.Receipt) -> Receipt:
    return Receipt(
        receipt.message_id,
        receipt.sequence,
        types_pb2.Durability.Name(receipt.durability).removeprefix("DURABILITY_"),
        types_pb2.DeliveryState.Name(receipt.state).removeprefix("DELIVERY_STATE_"),
        receipt.duplicate,
    )


def reason_of(status: status_pb2.Status) -> str:
    """The reason of an item's refusal. Every one has one."""
    assert status.code != code_pb2.OK
    return refusal_in(status).reason
