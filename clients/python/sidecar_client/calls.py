"""Every unary call of both clients: the method, the request, the metadata and how to read the answer. Opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.api.v1 import context_service_pb2 as context_pb
from sidecar.api.v1 import delivery_service_pb2 as pb
from sidecar.api.v1 import types_pb2
from sidecar.api.v1.agent_service_pb2_grpc import AgentServiceStub
from sidecar.api.v1.context_service_pb2_grpc import ContextServiceStub
from sidecar.api.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from sidecar_client.errors import SidecarError, error_from_status
from sidecar_client.messages import (
    BatchItem,
    MessageOptions,
    build_message,
    check_token,
    duration,
    encode_json,
    fields,
    new_message_id,
)
from sidecar_client.values import (
    BroadcastResult,
    BroadcastScope,
    ContextFacts,
    ContextGrant,
    ContextToken,
    DeliveryState,
    Durability,
    ManagerStats,
    Receipt,
    UserContext,
)

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
_STATES: Final = {int(state): state for state in DeliveryState}
_DURABILITIES: Final = {int(durability): durability for durability in Durability}


class Stubs:
    """The generated stubs on one channel, of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        self.delivery: DeliveryServiceStub = DeliveryServiceStub(channel)
        self.context: ContextServiceStub = ContextServiceStub(channel)
        self.agent: AgentServiceStub = AgentServiceStub(channel)


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[T]):
    """One call to be made. `repeatable`: the sidecar takes it once, however often it is sent."""

    method: Callable[[Stubs], Any]
    request: Any
    metadata: Metadata
    read: Callable[[Any], T]
    repeatable: bool = True
    held_s: float = 0.0
    """How long the sidecar may hold the answer; the deadline is later by as much."""


def send_to_user(
    isolation_key: str,
    context_token: str,
    payload: bytes | None,
    options: MessageOptions,
    *,
    expected_user_id: str,
    wait_for_ack_s: float | None,
) -> UnaryCall[Receipt]:
    """SendToUser."""
    with fields("isolation_key"):
        request = pb.SendToUserRequest(
            isolation_key=isolation_key,
            message=build_message(payload, options),
            expected_user_id=expected_user_id,
        )
    _hold(request, wait_for_ack_s)
    return UnaryCall(
        lambda stubs: stubs.delivery.SendToUser,
        request,
        _for_context(context_token),
        lambda response: receipt_from(response.receipt),
        held_s=wait_for_ack_s or 0.0,
    )


def emit_critical_event(
    isolation_key: str,
    context_token: str,
    event_type: str,
    data: Any,
    *,
    message_id: str | None,
    expected_user_id: str,
    wait_for_ack_s: float | None,
) -> UnaryCall[Receipt]:
    """EmitCriticalEvent; `data` is JSON as bytes, or any other value that JSON can say."""
    with fields("isolation_key"):
        request = pb.EmitCriticalEventRequest(
            isolation_key=isolation_key,
            event_type=event_type,
            data=data if isinstance(data, bytes) else encode_json(data, "data"),
            message_id=message_id or new_message_id(),
            expected_user_id=expected_user_id,
        )
    _hold(request, wait_for_ack_s)
    return UnaryCall(
        lambda stubs: stubs.delivery.EmitCriticalEvent,
        request,
        _for_context(context_token),
        lambda response: receipt_from(response.receipt),
        held_s=wait_for_ack_s or 0.0,
    )


def send_batch(items: Sequence[BatchItem]) -> UnaryCall[list[Receipt | SidecarError]]:
    """SendBatch. An item that cannot be sent at all is answered in its place, and costs the others nothing."""
    request = pb.SendBatchRequest()
    outcomes: list[Receipt | SidecarError | None] = []
    for item in items:
        try:
            with fields("isolation_key"):
                built = pb.SendBatchItem(
                    isolation_key=item.isolation_key,
                    context_token=check_token(item.context_token),
                    message=build_message(item.payload, item.options),
                    expected_user_id=item.expected_user_id,
                )
        except SidecarError as error:
            outcomes.append(error)
        else:
            request.items.append(built)
            outcomes.append(None)

    def read(response: pb.SendBatchResponse) -> list[Receipt | SidecarError]:
        answers = iter(response.results)
        return [_result(next(answers)) if outcome is None else outcome for outcome in outcomes]

    return UnaryCall(lambda stubs: stubs.delivery.SendBatch, request, (), read)


def broadcast(
    context_token: str, scope: BroadcastScope, payload: bytes | None, options: MessageOptions
) -> UnaryCall[BroadcastResult]:
    """Broadcast; idempotent by message_id in each outbox."""
    request = pb.BroadcastRequest(
        scope=scope,  # type: ignore[arg-type]  # the numbers are the proto's
        message=build_message(payload, options),
    )
    return UnaryCall(
        lambda stubs: stubs.delivery.Broadcast,
        request,
        _for_context(context_token),
        lambda response: BroadcastResult(response.managers, response.connections, response.refused),
    )


def close_manager(isolation_key: str, context_token: str, code: int, reason: str) -> UnaryCall[int]:
    """CloseManager: how many sockets the context had. Not repeated: a second answer would be MANAGER_GONE."""
    with fields("isolation_key"):
        request = pb.CloseManagerRequest(isolation_key=isolation_key, code=code, reason=reason)
    return UnaryCall(
        lambda stubs: stubs.delivery.CloseManager,
        request,
        _for_context(context_token),
        lambda response: int(response.connections),
        repeatable=False,
    )


def get_manager_stats(isolation_key: str, context_token: str) -> UnaryCall[ManagerStats]:
    """GetManagerStats."""
    with fields("isolation_key"):
        request = pb.GetManagerStatsRequest(isolation_key=isolation_key)
    return UnaryCall(lambda stubs: stubs.delivery.GetManagerStats, request, _for_context(context_token), _stats)


def get_context(context_token: str) -> UnaryCall[ContextFacts]:
    """GetContext."""
    return UnaryCall(
        lambda stubs: stubs.context.GetContext,
        context_pb.GetContextRequest(),
        _for_context(context_token),
        lambda response: ContextFacts(
            response.isolation_key,
            user_context_from(response.context),
            tuple(response.scopes),
            _unix(response.expire_time),
        ),
    )


def refresh_context_token(context_token: str) -> UnaryCall[ContextToken]:
    """RefreshContextToken. Not repeated: each call mints another token."""
    return UnaryCall(
        lambda stubs: stubs.context.RefreshContextToken,
        context_pb.RefreshContextTokenRequest(),
        _for_context(context_token),
        lambda response: ContextToken(response.context_token, _unix(response.expire_time)),
        repeatable=False,
    )


def revoke_context_token(context_token: str) -> UnaryCall[None]:
    """RevokeContextToken. Not repeated: a second answer would be TOKEN_REVOKED."""
    return UnaryCall(
        lambda stubs: stubs.context.RevokeContextToken,
        context_pb.RevokeContextTokenRequest(),
        _for_context(context_token),
        lambda response: None,
        repeatable=False,
    )


def exchange_context_token(
    user_token: str, connection_id: str, scopes: Sequence[str], service_token: str
) -> UnaryCall[ContextGrant]:
    """ExchangeContextToken. Not repeated: each call mints another token."""
    with fields("user_token"):
        request = context_pb.ExchangeContextTokenRequest(
            user_token=user_token, connection_id=connection_id, scopes=scopes
        )
    return UnaryCall(
        lambda stubs: stubs.context.ExchangeContextToken,
        request,
        as_service(service_token),
        lambda response: ContextGrant(
            response.isolation_key,
            ContextToken(response.context_token, _unix(response.expire_time)),
            user_context_from(response.context),
        ),
        repeatable=False,
    )


def receipt_from(receipt: types_pb2.Receipt) -> Receipt:
    """The receipt as a value. A state or durability that came after this version is read as the least."""
    return Receipt(
        receipt.message_id,
        receipt.sequence,
        _STATES.get(receipt.state, DeliveryState.QUEUED),
        _DURABILITIES.get(receipt.durability, Durability.MEMORY),
        receipt.connections,
        receipt.duplicate,
        _unix(receipt.accepted_time),
    )


def as_service(service_token: str) -> Metadata:
    """What says which service calls; nothing where mTLS does."""
    return (("x-service-token", check_token(service_token)),) if service_token else ()


def _for_context(context_token: str) -> Metadata:
    return (("x-context-token", check_token(context_token)),)


def _hold(request: pb.SendToUserRequest | pb.EmitCriticalEventRequest, wait_for_ack_s: float | None) -> None:
    if wait_for_ack_s is not None:
        request.wait_for_ack.CopyFrom(duration(wait_for_ack_s, "wait_for_ack"))


def _result(result: pb.SendBatchResult) -> Receipt | SidecarError:
    if result.HasField("receipt"):
        return receipt_from(result.receipt)
    return error_from_status(result.error)


def _stats(response: pb.GetManagerStatsResponse) -> ManagerStats:
    return ManagerStats(
        connections_managed=response.connections_managed,
        messages_sent_total=response.messages_sent_total,
        messages_failed_total=response.messages_failed_total,
        last_activity_time=_unix(response.last_activity_time),
        manager_age_seconds=response.manager_age_seconds,
        cleanup_scheduled=response.cleanup_scheduled,
        outbox_messages=response.outbox_messages,
        outbox_bytes=response.outbox_bytes,
    )


def user_context_from(context: types_pb2.UserContext) -> UserContext:
    """Who a context belongs to, as a value."""
    return UserContext(
        context.tenant_id,
        context.user_id,
        context.session_id,
        context.connection_id,
        context.request_id,
        _unix(context.created_time),
        tuple(context.permissions),
        dict(context.metadata),
    )


def _unix(time: Timestamp) -> float:
    return float(time.seconds + time.nanos / 1e9)
