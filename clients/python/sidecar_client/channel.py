"""Where the sidecar is and how a channel to it is set up. Reads the environment; opens nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

ENDPOINT_VARIABLE: Final = "SIDECAR_GRPC_ENDPOINT"
SERVICE_TOKEN_VARIABLE: Final = "SIDECAR_SERVICE_TOKEN"
DEFAULT_ENDPOINT: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 4 * 1_048_576


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach the sidecar. Times are seconds; the service token is a secret and not printed."""

    endpoint: str
    service_token: str = field(repr=False)
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    timeout_s: float
    max_attempts: int


def settings_from(
    endpoint: str | None,
    service_token: str | None,
    credentials: grpc.ChannelCredentials | None,
    timeout_s: float,
    max_attempts: int,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """What was given, then what the environment says, then the defaults. Raises ValueError for what cannot be."""
    endpoint = endpoint or environment.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
    if service_token is None:
        service_token = environment.get(SERVICE_TOKEN_VARIABLE, "")
    if not endpoint.startswith("unix:") and not endpoint.rpartition(":")[2].isdecimal():
        raise ValueError("endpoint is host:port or unix:/path")
    if timeout_s <= 0:
        raise ValueError("timeout_s is more than 0")
    if max_attempts < 1:
        raise ValueError("max_attempts is at least 1")
    return Settings(endpoint, service_token, credentials, timeout_s, max_attempts)


def channel_options() -> list[tuple[str, Any]]:
    """What gRPC is told (grpc_types.h).

    gRPC's own retries stay as they are, which is for calls that never left this process or that the sidecar's transport
    says it has not seen: those are safe for every method. Retries that a service config could ask for are not wanted:
    they know nothing of RetryInfo.
    """
    return [
        # A connection that a network or a stopped process holds open is found out within 20 s. The sidecar takes pings
        # every 10 s, with or without calls.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_send_message_length", -1),  # the sidecar's limit is the sidecar's to say
        # The sidecar is next door: it is back as soon as it has started.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 300),
        ("grpc.service_config_disable_resolution", 1),
        # Tokens do not go through somebody's http_proxy to a sidecar on the same host.
        ("grpc.enable_http_proxy", 0),
    ]
