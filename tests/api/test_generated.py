"""The committed stubs are the contract: they import, and their names are the ones that callers were promised."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from sidecar.api import v1
from sidecar.api.v1 import (
    admin_service_pb2,
    agent_service_pb2,
    context_service_pb2,
    delivery_service_pb2,
    error_reason_pb2,
    types_pb2,
)
from sidecar.core.errors import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
MODULES = [admin_service_pb2, agent_service_pb2, context_service_pb2, delivery_service_pb2, error_reason_pb2, types_pb2]
FILES = [module.DESCRIPTOR for module in MODULES]

METHODS = {
    "DeliveryService": "SendToUser EmitCriticalEvent SendBatch Deliver Broadcast CloseManager GetManagerStats",
    "ContextService": "GetContext RefreshContextToken RevokeContextToken ExchangeContextToken",
    "AgentService": "Attach",
    "AdminService": "GetFactoryStats GetSecurityStats ListManagers CleanupManager EnforceResourceLimits DisconnectUser"
    " RevokeUser Drain TailAuditLog",
}

FIELDS = {
    "Message": "message_id event_type payload content_type ttl headers min_durability critical reply_to stream",
    "Stream": "stream_id index state",
    "Receipt": "message_id sequence state durability connections duplicate accepted_time",
    "UserContext": "tenant_id user_id session_id connection_id request_id created_time permissions metadata",
    "SendToUserRequest": "isolation_key message wait_for_ack expected_user_id",
    "SendToUserResponse": "receipt",
    "EmitCriticalEventRequest": "isolation_key event_type data message_id wait_for_ack expected_user_id",
    "EmitCriticalEventResponse": "receipt",
    "SendBatchRequest": "items",
    "SendBatchItem": "isolation_key context_token message expected_user_id",
    "SendBatchResponse": "results",
    "SendBatchResult": "receipt error",
    "DeliverRequest": "open_lane messages close_lane",
    "DeliverRequest.OpenLane": "lane isolation_key context_token expected_user_id report_acknowledged",
    "DeliverRequest.Messages": "items",
    "DeliverRequest.LaneMessage": "lane message",
    "DeliverRequest.CloseLane": "lane",
    "DeliverResponse": "lane_opened lane_error receipts acknowledged dropped stream_cancelled",
    "DeliverResponse.LaneOpened": "lane",
    "DeliverResponse.LaneError": "lane error",
    "DeliverResponse.Receipts": "items",
    "DeliverResponse.LaneReceipt": "lane number receipt error",
    "DeliverResponse.Acknowledged": "lane sequence",
    "DeliverResponse.Dropped": "lane from to",
    "DeliverResponse.StreamCancelled": "lane stream_id reply_to",
    "BroadcastRequest": "scope message",
    "BroadcastResponse": "managers connections refused",
    "CloseManagerRequest": "isolation_key code reason",
    "CloseManagerResponse": "connections",
    "GetManagerStatsRequest": "isolation_key",
    "GetManagerStatsResponse": "connections_managed messages_sent_total messages_failed_total last_activity_time"
    " manager_age_seconds cleanup_scheduled outbox_messages outbox_bytes",
    "GetContextRequest": "",
    "GetContextResponse": "isolation_key context scopes expire_time",
    "RefreshContextTokenRequest": "",
    "RefreshContextTokenResponse": "context_token expire_time",
    "RevokeContextTokenRequest": "",
    "RevokeContextTokenResponse": "",
    "ExchangeContextTokenRequest": "user_token connection_id scopes",
    "ExchangeContextTokenResponse": "isolation_key context_token expire_time context",
    "AttachRequest": "register acknowledge credit",
    "AttachRequest.Register": "service_name subscriptions credits ack_timeout max_frame_events",
    "AttachRequest.Subscription": "tenant_id event",
    "AttachRequest.Acknowledge": "delivery_ids",
    "AttachRequest.Credit": "credits",
    "AttachResponse": "registered event events",
    "AttachResponse.Events": "items",
    "AttachResponse.Registered": "",
    "AttachResponse.Event": "delivery_id redelivered isolation_key context_token context opened away back closed"
    " message cancelled",
    "AttachResponse.Opened": "",
    "AttachResponse.Away": "",
    "AttachResponse.Back": "",
    "AttachResponse.Closed": "code reason",
    "AttachResponse.Inbound": "message_id event_type payload content_type",
    "AttachResponse.Cancelled": "stream_id message_id",
    "GetFactoryStatsRequest": "",
    "GetFactoryStatsResponse": "total_managers_created active_managers managers_cleaned_up users_with_active_managers"
    " resource_limit_hits average_manager_lifetime_minutes",
    "GetSecurityStatsRequest": "",
    "GetSecurityStatsResponse": "isolation_violations_detected unauthorized_access_attempts context_validation_failures"
    " resource_limit_enforcements audit_events_logged",
    "ListManagersRequest": "page_size page_token tenant_id user_id",
    "ListManagersResponse": "managers next_page_token",
    "ManagerSummary": "isolation_key context connections_managed attached created_time last_activity_time"
    " outbox_messages outbox_bytes",
    "CleanupManagerRequest": "isolation_key reason",
    "CleanupManagerResponse": "connections",
    "EnforceResourceLimitsRequest": "tenant_id user_id",
    "EnforceResourceLimitsResponse": "managers connections",
    "DisconnectUserRequest": "tenant_id user_id reason",
    "DisconnectUserResponse": "managers connections",
    "RevokeUserRequest": "tenant_id user_id before_time reason",
    "RevokeUserResponse": "managers connections",
    "DrainRequest": "window",
    "DrainResponse": "connections",
    "TailAuditLogRequest": "after_sequence event_types tenant_id user_id",
    "TailAuditLogResponse": "sequence line",
}

REASONS = """
    TOKEN_MISSING TOKEN_INVALID TOKEN_EXPIRED TOKEN_REVOKED ISOLATION_VIOLATION SCOPE_MISSING SERVICE_DENIED
    MANAGER_GONE OUTBOX_FULL USER_LIMIT RATE_LIMITED MESSAGE_ID_REUSED SUBSCRIPTION_TAKEN BAD_REQUEST
    DURABILITY_UNAVAILABLE STREAM_CANCELLED STREAM_ENDED STREAM_OUT_OF_ORDER LANE_NOT_OPEN DRAINING
    CLUSTER_UNAVAILABLE STORAGE_UNAVAILABLE AUDIT_UNAVAILABLE UNSUPPORTED OUTCOME_UNKNOWN INTERNAL NO_AGENT
    AGENT_BUSY
"""


def messages() -> dict[str, Descriptor]:
    """Every message by its name within the package, nested ones included, map entries left out."""
    found: dict[str, Descriptor] = {}

    def collect(descriptor: Descriptor) -> None:
        if not descriptor.GetOptions().map_entry:
            found[descriptor.full_name.removeprefix("sidecar.api.v1.")] = descriptor
            for nested in descriptor.nested_types:
                collect(nested)

    for file in FILES:
        for descriptor in file.message_types_by_name.values():
            collect(descriptor)
    return found


def fields() -> list[FieldDescriptor]:
    return [field for descriptor in messages().values() for field in descriptor.fields]


def services() -> dict[str, ServiceDescriptor]:
    return {name: service for file in FILES for name, service in file.services_by_name.items()}


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(v1.__path__)))
def test_every_stub_imports(name: str) -> None:
    module = importlib.import_module(f"sidecar.api.v1.{name}")
    assert module.__doc__


def test_services_and_methods_are_the_contracts() -> None:
    assert {name: [method.name for method in service.methods] for name, service in services().items()} == {
        name: methods.split() for name, methods in METHODS.items()
    }


def test_only_these_methods_stream() -> None:
    streams = {
        method.name: (method.client_streaming, method.server_streaming)
        for service in services().values()
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert streams == {"Deliver": (True, True), "Attach": (True, True), "TailAuditLog": (False, True)}


def test_messages_and_fields_are_the_contracts() -> None:
    found = {name: [field.name for field in descriptor.fields] for name, descriptor in messages().items()}
    assert found == {name: names.split() for name, names in FIELDS.items()}


def test_times_are_timestamps_and_spans_are_durations() -> None:
    kinds = {field.full_name.removeprefix("sidecar.api.v1."): field.message_type for field in fields()}
    times = {
        name for name, kind in kinds.items() if kind is not None and kind.full_name == Timestamp.DESCRIPTOR.full_name
    }
    spans = {
        name for name, kind in kinds.items() if kind is not None and kind.full_name == Duration.DESCRIPTOR.full_name
    }
    assert times == {name for name in kinds if name.endswith("_time")}
    assert spans == {
        "Message.ttl",
        "SendToUserRequest.wait_for_ack",
        "EmitCriticalEventRequest.wait_for_ack",
        "AttachRequest.Register.ack_timeout",
        "DrainRequest.window",
    }


def test_every_secret_is_marked_for_redaction() -> None:
    secrets = {field.full_name for field in fields() if field.name in {"context_token", "user_token"}}
    assert len(secrets) == 6
    assert {field.full_name for field in fields() if field.GetOptions().debug_redact} == secrets


def test_enum_values_carry_their_types_prefix_and_begin_unspecified() -> None:
    enums = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    assert len(enums) == 6
    for enum in enums:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert enum.values[0].number == 0
        assert enum.values[0].name == f"{prefix}UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in enum.values)


def test_every_reason_is_in_the_enumeration_and_in_the_catalogue() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert names == {"UNSPECIFIED", *REASONS.split()}
    assert names == {"UNSPECIFIED", *CATALOGUE}


def test_the_comment_on_each_reason_names_the_catalogues_status() -> None:
    text = (ROOT / "proto" / "sidecar" / "api" / "v1" / "error_reason.proto").read_text(encoding="utf-8")
    commented = r"^  // ([A-Z_]+)[:,].*\n(?:  // .*\n)*?  ERROR_REASON_([A-Z_]+) = "
    documented = {reason: status for status, reason in re.findall(commented, text, re.MULTILINE)}
    assert documented == {
        reason: status for reason, (status, _) in CATALOGUE.items() if reason not in {"NO_AGENT", "AGENT_BUSY"}
    }


def test_round_trip() -> None:
    message = types_pb2.Message(
        message_id="m-1",
        event_type="answer",
        payload=b'{"text":"hello"}',
        content_type=types_pb2.CONTENT_TYPE_JSON,
        ttl=Duration(seconds=30),
        headers={"trace": "1"},
        min_durability=types_pb2.DURABILITY_DISK,
        critical=True,
        reply_to="q-1",
        stream=types_pb2.Stream(stream_id="s-1", index=2**53 - 1, state=types_pb2.STREAM_STATE_END),
    )
    lane_message = delivery_service_pb2.DeliverRequest.LaneMessage(lane=1_023, message=message)
    request = delivery_service_pb2.DeliverRequest(
        messages=delivery_service_pb2.DeliverRequest.Messages(items=[lane_message])
    )
    parsed = delivery_service_pb2.DeliverRequest.FromString(request.SerializeToString())
    assert parsed == request
    assert parsed.WhichOneof("frame") == "messages"
    assert parsed.messages.items[0].message.payload == message.payload


def test_absent_is_not_zero_where_the_contract_tells_them_apart() -> None:
    assert not types_pb2.Message().HasField("ttl")
    assert types_pb2.Message(ttl=Duration()).HasField("ttl")
    assert not types_pb2.Message().HasField("stream")
    assert delivery_service_pb2.SendToUserRequest(wait_for_ack=Duration()).HasField("wait_for_ack")


def test_an_item_is_answered_by_a_receipt_or_a_standard_status() -> None:
    item = delivery_service_pb2.DeliverResponse.LaneReceipt(lane=3, number=7, error=Status(code=9, message="not open"))
    parsed = delivery_service_pb2.DeliverResponse.LaneReceipt.FromString(item.SerializeToString())
    assert parsed.WhichOneof("result") == "error"
    parsed.receipt.sequence = 1
    assert parsed.WhichOneof("result") == "receipt"
