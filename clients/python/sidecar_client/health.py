"""Whether the sidecar serves: grpc.health.v1 by its bytes, so that no further distribution is needed for one number."""

from __future__ import annotations

from typing import Any, Final

WATCH: Final = "/grpc.health.v1.Health/Watch"
THE_WHOLE: Final = b""
"""HealthCheckRequest for the empty service name: the sidecar as a whole."""

_SERVING: Final = b"\x08\x01"
"""HealthCheckResponse: field 1, varint, SERVING."""


def watch_method(channel: Any) -> Any:
    """The Watch method on a channel of grpc or of grpc.aio; requests and answers are bytes."""
    return channel.unary_stream(WATCH, request_serializer=bytes, response_deserializer=bytes)


def is_serving(response: bytes) -> bool:
    """Whether a HealthCheckResponse says SERVING."""
    return response == _SERVING
