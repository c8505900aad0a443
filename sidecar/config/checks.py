"""The rules between keys. Each raises ConfigError with the name of the key that is to change."""

from __future__ import annotations

from itertools import combinations

from sidecar.config.addresses import TcpAddress
from sidecar.config.errors import ConfigError
from sidecar.config.sections import (
    ContextTokenSettings,
    DrainSettings,
    GrpcSettings,
    LimitSettings,
    OpsSettings,
    OutboxSettings,
    StorageSettings,
    UserTokenSettings,
    WebSocketSettings,
)
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES

CLOSING_S = 8.0
"""What the closing handshakes, the calls under way and the files may take once the last socket was sent away."""


def check_issuers(issuers: tuple[UserTokenSettings, ...]) -> None:
    """Each has its key; of several each has its own name and tenants."""
    for issuer in issuers:
        if issuer.key_file is None:
            raise ConfigError("user_tokens.key_file", "is required")
    if len({issuer.issuer for issuer in issuers}) < len(issuers):
        raise ConfigError("user_tokens.issuer", "an issuer must not be repeated")
    if len(issuers) > 1 and any(issuer.tenants is None for issuer in issuers):
        raise ConfigError("user_tokens.tenants", "each of several issuers must name its tenants")
    tenants = [tenant for issuer in issuers for tenant in set(issuer.tenants or ())]
    if len(set(tenants)) < len(tenants):
        raise ConfigError("user_tokens.tenants", "a tenant must not have two issuers")


def check_addresses(websocket: WebSocketSettings, grpc: GrpcSettings, ops: OpsSettings) -> None:
    """No two listeners share an address, and plain gRPC stays on this machine unless it is let out."""
    for (name, address), (other_name, other) in combinations(_listeners(websocket, grpc, ops).items(), 2):
        if address.clashes_with(other):
            raise ConfigError(other_name, f"must not be the address of {name}")
    if isinstance(grpc.address, TcpAddress) and not grpc.address.is_loopback and not grpc.allow_insecure:
        raise ConfigError("grpc.listen", "plain TCP must stay on loopback unless grpc.allow_insecure is true")


def check_sizes(
    websocket: WebSocketSettings, grpc: GrpcSettings, limits: LimitSettings, outbox: OutboxSettings
) -> None:
    """Whatever one limit lets through must fit into the next."""
    largest = limits.max_message_bytes + MESSAGE_OVERHEAD_BYTES
    holds = f"must hold a message of limits.max_message_bytes + {MESSAGE_OVERHEAD_BYTES}"
    if outbox.max_bytes < largest:
        raise ConfigError("outbox.max_bytes", holds)
    if outbox.critical_reserve and outbox.critical_reserve_bytes < largest:
        raise ConfigError("outbox.critical_reserve_bytes", holds)
    if limits.queued_bytes_per_user < largest:
        raise ConfigError("limits.queued_bytes_per_user", holds)
    if grpc.max_request_bytes <= limits.max_message_bytes:
        raise ConfigError("grpc.max_request_bytes", "must be above limits.max_message_bytes")
    if websocket.bytes_per_second < limits.max_inbound_bytes:
        raise ConfigError("websocket.bytes_per_second", "must not be below limits.max_inbound_bytes")


def check_storage(storage: StorageSettings, context_tokens: ContextTokenSettings) -> None:
    """What survives a restart is opened by keys that survive it too."""
    if storage.kind != "sqlite":
        return
    for name in ("path", "key_file"):
        if getattr(storage, name) is None:
            raise ConfigError(f"storage.{name}", 'is required with storage.kind = "sqlite"')
    if storage.path == storage.key_file:
        raise ConfigError("storage.key_file", "must not be the database")
    if context_tokens.key_file is None:
        raise ConfigError("context_tokens.key_file", 'is required with storage.kind = "sqlite"')


def check_times(limits: LimitSettings, drain: DrainSettings) -> None:
    """A context does not end before its sockets were asked, nor the process before its sockets were closed."""
    if drain.grace_s < drain.window_s + CLOSING_S:
        raise ConfigError("drain.grace_s", f"must be at least {CLOSING_S:g} seconds longer than drain.window_s")
    if limits.idle_timeout_s < limits.health_check_interval_s:
        raise ConfigError("limits.idle_timeout_s", "must not be shorter than limits.health_check_interval_s")


def check_development(websocket: WebSocketSettings, grpc: GrpcSettings, ops: OpsSettings) -> None:
    """Only this machine reaches what runs without real issuers."""
    for setting, address in _listeners(websocket, grpc, ops).items():
        if not address.is_loopback:
            raise ConfigError(setting, "must be on loopback in development")


def check_service(websocket: WebSocketSettings, grpc: GrpcSettings, user_tokens: tuple[UserTokenSettings, ...]) -> None:
    """Nothing that is for development only, and someone to believe."""
    if "*" in websocket.allowed_origins:
        raise ConfigError("websocket.allowed_origins", '"*" is allowed only in development')
    if grpc.reflection:
        raise ConfigError("grpc.reflection", "is allowed only in development")
    if not user_tokens:
        raise ConfigError("user_tokens", "issuer, audience and key_file are required outside development")


def _listeners(websocket: WebSocketSettings, grpc: GrpcSettings, ops: OpsSettings) -> dict[str, TcpAddress]:
    """The TCP listeners by the names of their settings."""
    addresses = {
        "websocket.listen": websocket.address,
        "grpc.listen": grpc.address,
        "ops.listen": ops.address,
    }
    return {setting: address for setting, address in addresses.items() if isinstance(address, TcpAddress)}
