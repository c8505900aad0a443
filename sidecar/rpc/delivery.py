"""DeliveryService, its unary methods: token, key, scope, then the manager decides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.core.close_codes import SERVICE_CODES, CloseCode, service_close
from sidecar.core.errors import (
    BadRequest,
    ErrorReason,
    PermissionDenied,
    SidecarError,
    Unavailable,
)
from sidecar.core.identity import Scope
from sidecar.core.message import Instant, Message, PendingReceipt, Receipt, check_message
from sidecar.core.ports import AuditEvent
from sidecar.rpc.acceptance import ended_for_good, require_emit
from sidecar.rpc.boundary import refusal_of
from sidecar.rpc.status import rich_status
from sidecar.rpc.translate import fill_receipt, message_from, timestamp
from sidecar.rpc.waiting import AcknowledgementWaits, wait_s_of

if TYPE_CHECKING:
    from sidecar.core.factory import WebSocketManagerFactory
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Clock
    from sidecar.rpc.acceptance import Acceptance
    from sidecar.rpc.boundary import CallFacts
    from sidecar.rpc.callers import Callers
    from sidecar.rpc.refusals import RefusalRecorder
    from sidecar.security.context_tokens import ContextGrant

MAX_BATCH_ITEMS = 1_000
SLICE_BYTES = 256 * 1024
"""How much of a batch is sent before others have the loop."""
BROADCAST_SLICE = 256
"""How many managers a broadcast reaches before it lets others have the loop."""


async def settled(receipt: Receipt | PendingReceipt) -> Receipt:
    """The receipt, once the store has confirmed it. Cancelling the wait does not cancel the append."""
    if not isinstance(receipt, PendingReceipt):
        return receipt
    done = asyncio.Event()
    receipt.add_done_callback(lambda _: done.set())
    await done.wait()
    if receipt.receipt is None:
        raise receipt.error or SidecarError(ErrorReason.INTERNAL)
    return receipt.receipt


class DeliveryMethods:
    """The unary methods of DeliveryService."""

    def __init__(
        self,
        callers: Callers,
        acceptance: Acceptance,
        factory: WebSocketManagerFactory,
        clock: Clock,
        recorder: RefusalRecorder,
    ) -> None:
        self._callers = callers
        self._acceptance = acceptance
        self._factory = factory
        self._clock = clock
        self._recorder = recorder
        self._waits = AcknowledgementWaits()

    def release_waits(self) -> None:
        """The sidecar stops: answer the calls that wait for an acknowledgement with the state as it is."""
        self._waits.release()

    async def send_to_user(self, request: pb.SendToUserRequest, facts: CallFacts) -> pb.SendToUserResponse:
        """One message to the context that the token opens."""
        manager = self._callers.opened(facts, request.isolation_key, request.expected_user_id, Scope.SEND)
        wait_s = wait_s_of(request.wait_for_ack) if request.HasField("wait_for_ack") else None
        receipt = self._acceptance.accept(manager, facts.grant.scopes, request.message, self._clock.now())
        if not isinstance(receipt, Receipt):
            receipt = await settled(receipt)
        if wait_s is not None:
            receipt = await self._waits.outcome(manager, receipt, wait_s, facts)
        response = pb.SendToUserResponse()
        fill_receipt(response.receipt, receipt)
        return response

    async def emit_critical_event(
        self, request: pb.EmitCriticalEventRequest, facts: CallFacts
    ) -> pb.EmitCriticalEventResponse:
        """One critical event to the context that the token opens."""
        manager = self._callers.opened(facts, request.isolation_key, request.expected_user_id, Scope.EMIT)
        wait_s = wait_s_of(request.wait_for_ack) if request.HasField("wait_for_ack") else None
        if not request.event_type:
            raise BadRequest("event_type", "required")
        event = Message(request.message_id, request.event_type, request.data, critical=True)
        try:
            receipt = await settled(self._acceptance.send(manager, event, self._clock.now()))
        except BadRequest as error:
            field, description = error.violations[0]
            raise BadRequest(_EVENT_FIELDS.get(field, field), description) from None
        if wait_s is not None:
            receipt = await self._waits.outcome(manager, receipt, wait_s, facts)
        response = pb.EmitCriticalEventResponse()
        fill_receipt(response.receipt, receipt)
        return response

    async def send_batch(self, request: pb.SendBatchRequest, facts: CallFacts) -> pb.SendBatchResponse:
        """Many messages, each with its own token; each stands or falls alone."""
        if len(request.items) > MAX_BATCH_ITEMS:
            raise BadRequest("items", f"at most {MAX_BATCH_ITEMS}")
        outcomes: list[tuple[Receipt | PendingReceipt | SidecarError, ContextGrant | None]] = []
        for items in _slices(request.items):
            if outcomes:
                await asyncio.sleep(0)  # others have the loop before a large batch goes on
            at = self._clock.now()
            with self._factory.writes:
                outcomes += [self._send_item(item, facts, at) for item in items]
        response = pb.SendBatchResponse()
        for outcome, grant in outcomes:
            result = response.results.add()
            if isinstance(outcome, SidecarError):
                result.error.CopyFrom(rich_status(outcome))
                continue
            try:
                fill_receipt(result.receipt, await settled(outcome))
            except SidecarError as error:  # the store's, or the context ended meanwhile
                result.error.CopyFrom(rich_status(refusal_of(error, facts, self._recorder, grant)))
        return response

    async def broadcast(self, request: pb.BroadcastRequest, facts: CallFacts) -> pb.BroadcastResponse:
        """One message through every outbox of the token's own user, or of its tenant; never beyond the tenant."""
        grant = self._callers.grant(facts)
        scope = _BROADCAST_SCOPES.get(request.scope)
        if scope is None:
            raise BadRequest("scope", "BROADCAST_SCOPE_USER or BROADCAST_SCOPE_TENANT")
        if scope not in grant.scopes:
            raise PermissionDenied(ErrorReason.SCOPE_MISSING)
        own = self._callers.manager_of(grant)
        message = message_from(request.message)
        require_emit(message, grant.scopes)
        check_message(message, self._factory.limits.max_message_bytes)
        everyone = (
            self._factory.managers_of_user(own.context.identity)
            if scope is Scope.BROADCAST_USER
            else self._factory.managers_of_tenant(own.context.tenant_id)
        )
        own.context.audit_log_action(AuditEvent.BROADCAST, scope=scope.value, managers=len(everyone))
        return await self._broadcast_to(everyone, message._replace(checked=True))

    async def close_manager(self, request: pb.CloseManagerRequest, facts: CallFacts) -> pb.CloseManagerResponse:
        """End the context that the token opens."""
        manager = self._callers.opened(facts, request.isolation_key, "", Scope.CLOSE)
        code = request.code or int(CloseCode.CLOSED_BY_SERVICE)
        if code != CloseCode.CLOSED_BY_SERVICE and code not in SERVICE_CODES:
            raise BadRequest("code", "4505 or 4900 to 4999")
        close = service_close(code, request.reason)
        count = manager.cleanup_all_connections(manager.context, close, "closed_by_service", self._clock.now())
        await ended_for_good(self._factory)
        return pb.CloseManagerResponse(connections=count)

    async def get_manager_stats(
        self, request: pb.GetManagerStatsRequest, facts: CallFacts
    ) -> pb.GetManagerStatsResponse:
        """The counters of the context that the token opens."""
        manager = self._callers.opened(facts, request.isolation_key, "", Scope.STATS)
        stats = manager.get_manager_stats(manager.context, self._clock.now())
        response = pb.GetManagerStatsResponse(**(stats._asdict() | {"last_activity_time": None}))
        response.last_activity_time.CopyFrom(timestamp(stats.last_activity_time))
        return response

    def _send_item(
        self, item: pb.SendBatchItem, facts: CallFacts, at: Instant
    ) -> tuple[Receipt | PendingReceipt | SidecarError, ContextGrant | None]:
        grant = None
        try:
            grant = self._callers.verify(item.context_token)
            manager = self._callers.open(grant, item.isolation_key, item.expected_user_id, Scope.SEND)
            return self._acceptance.accept(manager, grant.scopes, item.message, at), grant
        except Exception as error:  # noqa: BLE001 - a bug costs its item, never the batch
            return refusal_of(error, facts, self._recorder, grant), grant

    async def _broadcast_to(
        self, everyone: Iterable[IsolatedWebSocketManager], message: Message
    ) -> pb.BroadcastResponse:
        response = pb.BroadcastResponse()
        remaining, unknown = iter(everyone), False
        while some := tuple(islice(remaining, BROADCAST_SLICE)):
            # All of them before the first is waited for: a store that answers later commits them together.
            for outcome in [self._send_broadcast(manager, message) for manager in some if not manager.ended]:
                try:
                    if isinstance(outcome, SidecarError):
                        raise outcome
                    receipt = await settled(outcome)
                except SidecarError as error:
                    unknown = unknown or error.reason is ErrorReason.OUTCOME_UNKNOWN
                    response.refused += 1
                    continue
                response.managers += 1
                response.connections += receipt.connections
            await asyncio.sleep(0)
        if unknown:  # one that may have taken it was not refused; a repeat with the same message_id tells
            raise Unavailable(ErrorReason.OUTCOME_UNKNOWN)
        return response

    def _send_broadcast(
        self, manager: IsolatedWebSocketManager, message: Message
    ) -> Receipt | PendingReceipt | SidecarError:
        try:
            return self._acceptance.send(manager, message, self._clock.now())
        except SidecarError as error:
            if error.reason is ErrorReason.DURABILITY_UNAVAILABLE:
                raise  # said of the message, not of one manager: the first one says it
            return error


def _slices(items: Iterable[pb.SendBatchItem]) -> Iterator[list[pb.SendBatchItem]]:
    """The items in order, each slice of them ended by the one that makes it larger than SLICE_BYTES."""
    some: list[pb.SendBatchItem] = []
    size = 0
    for item in items:
        some.append(item)
        size += len(item.message.payload)
        if size > SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


_BROADCAST_SCOPES = {
    int(pb.BROADCAST_SCOPE_USER): Scope.BROADCAST_USER,
    int(pb.BROADCAST_SCOPE_TENANT): Scope.BROADCAST_TENANT,
}
_EVENT_FIELDS = {
    "message.payload": "data",
    "message.event_type": "event_type",
    "message.message_id": "message_id",
}
"""Where EmitCriticalEvent carries what a Message has elsewhere."""
