"""Between protobuf messages and the core's values; protobuf types go no further than this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.api.v1 import types_pb2
from sidecar.core.errors import BadRequest
from sidecar.core.message import (
    ContentType,
    Instant,
    Message,
    Receipt,
    StreamPlace,
    StreamState,
    make_message,
    make_place,
)

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext

_JSON = int(ContentType.JSON)
_STREAM_STATES: dict[int, StreamState] = {0: StreamState.OPEN, **{int(state): state for state in StreamState}}


def message_from(proto: types_pb2.Message) -> Message:
    """The core's message."""
    headers = proto.headers
    return make_message(
        (
            proto.message_id,
            proto.event_type,
            proto.payload,
            proto.content_type or _JSON,
            _ttl_s(proto) if proto.HasField("ttl") else None,
            dict(headers) if headers else None,
            proto.min_durability,
            proto.critical,
            proto.reply_to,
            False,
            _stream_of(proto.stream) if proto.HasField("stream") else None,
        )
    )


def _stream_of(stream: types_pb2.Stream) -> StreamPlace:
    state = _STREAM_STATES.get(stream.state)
    if state is None:
        raise BadRequest("message.stream.state", "STREAM_STATE_OPEN, _END or _ERROR")
    return make_place((stream.stream_id, stream.index, state))


def _ttl_s(proto: types_pb2.Message) -> float:
    ttl = proto.ttl
    # google.protobuf.Duration: less than a second of nanoseconds, and both of one sign.
    if ttl.seconds < 0 or not 0 <= ttl.nanos <= 999_999_999:
        raise BadRequest("message.ttl", "more than 0 and at most one day")
    return float(ttl.seconds + ttl.nanos / 1e9)


def fill_receipt(proto: types_pb2.Receipt, receipt: Receipt) -> None:
    """Write the core's receipt into a protobuf one in place (cheaper than building and copying)."""
    message_id, sequence, state, durability, connections, duplicate, accepted = receipt
    proto.message_id = message_id
    proto.sequence = sequence
    proto.state = state  # type: ignore[assignment]  # the numbers are the proto's
    proto.durability = durability  # type: ignore[assignment]
    proto.connections = connections
    if duplicate:
        proto.duplicate = True
    seconds = int(accepted)
    accepted_time = proto.accepted_time
    accepted_time.seconds = seconds
    accepted_time.nanos = int((accepted - seconds) * 1e9)


def timestamp(unix: float) -> Timestamp:
    """Unix seconds as a Timestamp."""
    seconds = int(unix)
    return Timestamp(seconds=seconds, nanos=int((unix - seconds) * 1e9))


def user_context(context: UserExecutionContext) -> types_pb2.UserContext:
    """Who a context belongs to."""
    return types_pb2.UserContext(
        tenant_id=context.tenant_id,
        user_id=context.user_id,
        session_id=context.session_id,
        connection_id=context.connection_id,
        request_id=context.request_id,
        created_time=timestamp(context.created_at),
        permissions=context.permissions,
        metadata=context.metadata,
    )


def unix_of(at: Instant, monotonic: float) -> float:
    """The wall-clock time of an earlier monotonic reading."""
    return at.unix - (at.monotonic - monotonic)
