"""The sections of the settings: their keys with default, bounds and the text that docs/configuration.md shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sidecar.config.addresses import TcpAddress, UnixAddress, parse_address
from sidecar.config.values import (
    Algorithms,
    ClientScopes,
    ClusterKind,
    FilePath,
    Identifiers,
    JwksUrl,
    Listen,
    Networks,
    Origins,
    Seconds,
    TcpListen,
    Text,
    Texts,
)

DAY_S: Final = 86_400
MIB: Final = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class WebSocketSettings(_Section):
    """The edge that browsers and phones connect to."""

    listen: TcpListen = Field(default="127.0.0.1:8080", description="Address of the WebSocket listener: host:port.")
    allowed_origins: Origins = Field(
        default=(),
        description="Exact origins of the pages that may connect: scheme://host[:port]. Empty admits no browser; "
        'clients that send no Origin are always let in. "*" (any page) only in development.',
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Addresses or networks (CIDR) of the proxies whose X-Forwarded-For is believed. Empty: nobody's.",
    )
    frames_per_second: int = Field(
        default=100, ge=1, le=100_000, description="Frames that one socket may send a second."
    )
    bytes_per_second: int = Field(
        default=MIB,
        ge=1,
        le=1024 * MIB,
        description="Bytes that one socket may send a second; at least limits.max_inbound_bytes.",
    )
    max_connections: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Sockets open at once, all users together."
    )
    max_handshakes: int = Field(default=1_000, ge=1, le=100_000, description="Handshakes under way at once.")
    handshake_timeout_s: Seconds = Field(default=5.0, ge=0.1, le=60, description="Seconds for a handshake.")
    connects_per_second_per_address: Seconds = Field(
        default=50.0,
        ge=0,
        le=100_000,
        description="Handshakes a second from one address; 0 is no limit. Loopback has none.",
    )
    failures_per_second_per_address: Seconds = Field(
        default=10.0,
        ge=0,
        le=100_000,
        description="Refused tokens a second from one address; 0 is no limit. Not loopback.",
    )

    @property
    def address(self) -> TcpAddress:
        """`listen`, taken apart."""
        return _tcp(self.listen)


class GrpcSettings(_Section):
    """The edge that agent services call."""

    listen: Listen = Field(
        default="127.0.0.1:50051", description="Address of the gRPC listener: host:port, or unix:/path of a socket."
    )
    allow_insecure: bool = Field(
        default=False,
        description="Let a TCP listener without TLS leave loopback, where something else encrypts and isolates.",
    )
    reflection: bool = Field(
        default=False, description="Serve gRPC reflection; only in development, where it is on unless set."
    )
    max_concurrent_calls: int = Field(
        default=1_000, ge=1, le=100_000, description="Calls under way at once, streams included."
    )
    max_request_bytes: int = Field(
        default=4 * MIB,
        ge=1024,
        le=256 * MIB,
        description="Bytes of one request message; above limits.max_message_bytes.",
    )

    @property
    def address(self) -> TcpAddress | UnixAddress:
        """`listen`, taken apart."""
        return parse_address(self.listen)


class OpsSettings(_Section):
    """The edge for operators: health, metrics, dashboard."""

    listen: TcpListen = Field(default="127.0.0.1:8081", description="Address of the operations listener: host:port.")

    @property
    def address(self) -> TcpAddress:
        """`listen`, taken apart."""
        return _tcp(self.listen)


class ServiceAuthSettings(_Section):
    """How agent services and operators say who they are."""

    token_file: FilePath | None = Field(
        default=None,
        description="File (0600) of the service tokens, a line each; read again when it changes. None: nobody can call "
        "what needs a service identity.",
    )


class UserTokenSettings(_Section):
    """An identity provider whose user tokens are believed. One table, or an array of tables for several issuers."""

    issuer: Text = Field(description="The `iss` claim, exact.")
    audience: Text = Field(description="The `aud` claim, exact.")
    algorithms: Algorithms = Field(default=("HS256",), description="Signature algorithms, all HMAC or all asymmetric.")
    key_file: FilePath | None = Field(
        default=None,
        description="For HMAC the secret's bytes, at least 32 (mode 0600); else a PEM public key or a JWK Set. "
        "Required.",
    )
    key_id: Annotated[Text, Field(max_length=256)] | None = Field(
        default=None, description="The `kid` of the key in an HMAC or PEM file. None: tokens name no kid."
    )
    tenants: Identifiers | None = Field(
        default=None,
        description="The `tid` claims that this issuer may use. None: any, and only for a single issuer; no tenant has "
        "two.",
    )
    jwks_url: JwksUrl | None = Field(
        default=None, description="Address of the issuer's key set (https). Not supported by this version."
    )


class ContextTokenSettings(_Section):
    """The tokens that the sidecar mints."""

    key_file: FilePath | None = Field(
        default=None,
        description="File of the signing keys, made with mode 0600 where there is none; what was revoked is kept "
        "beside it. None: both live in memory and tokens end with the process.",
    )
    issuer: Text = Field(default="ws-sidecar", description="The `iss` claim of context tokens.")
    ttl_s: int = Field(default=900, ge=1, le=3600, description="Seconds that a context token lives.")
    rotation_s: int = Field(
        default=DAY_S, ge=3600, le=90 * DAY_S, description="Seconds until a new signing key takes over."
    )
    client_scopes: ClientScopes = Field(
        default=("send", "emit", "stats"),
        description="Scopes of the context token that a client is given in `welcome`.",
    )


class LimitSettings(_Section):
    """Bounds of users, managers and sockets."""

    managers_per_user: int = Field(default=5, ge=1, le=1_000, description="Managers (connection contexts) of one user.")
    connections_per_manager: int = Field(
        default=10, ge=1, le=100, description="Sockets of one manager: a primary and mirrors."
    )
    max_managers: int = Field(default=100_000, ge=1, le=10_000_000, description="Managers at once, all users together.")
    idle_timeout_s: Seconds = Field(
        default=1800.0, ge=0.1, le=7 * DAY_S, description="Seconds without activity after which a context ends."
    )
    health_check_interval_s: Seconds = Field(
        default=60.0, ge=0.05, le=3600, description="Seconds between pings to a socket."
    )
    hello_timeout_s: Seconds = Field(
        default=10.0, ge=0.1, le=300, description="Seconds for the first frame after the upgrade."
    )
    pong_timeout_s: Seconds = Field(default=20.0, ge=0.05, le=3600, description="Seconds that a pong may be overdue.")
    slow_consumer_timeout_s: Seconds = Field(
        default=30.0,
        ge=0.05,
        le=3600,
        description="Seconds that a socket may take nothing while something waits for it.",
    )
    max_message_bytes: int = Field(default=262_144, ge=1, le=64 * MIB, description="Bytes of one payload to a client.")
    max_inbound_bytes: int = Field(
        # As JSON is written anew, [1e15] and its like grow fourfold, and gRPC's clients receive at most 4 MiB by
        # default: an event that no worker can read would go from one to the next, and end them all.
        default=65_536,
        ge=1024,
        le=MIB,
        description="Bytes of one message from a client.",
    )
    queued_bytes_per_user: int = Field(
        default=16 * MIB,
        ge=1,
        le=16 * 1024 * MIB,
        description="Bytes queued for one user in all managers, payload + 256 a message. Over it written messages of "
        "the context that is sent to give way, as in a full outbox, or the send is refused USER_LIMIT.",
    )
    messages_per_second_per_user: Seconds = Field(
        default=0.0, ge=0, le=10_000_000, description="Messages a second to one user; 0 is no limit."
    )


class OutboxSettings(_Section):
    """Bounds of each manager's recovery queue."""

    resume_window_s: Seconds = Field(
        default=120.0, ge=0, le=DAY_S, description="Seconds that a detached context waits."
    )
    max_messages: int = Field(default=10_000, ge=1, le=1_000_000, description="Ordinary messages kept.")
    max_bytes: int = Field(default=2 * MIB, ge=1, le=1024 * MIB, description="Bytes of them, payload + 256 each.")
    ttl_s: Seconds = Field(default=120.0, ge=0.1, le=DAY_S, description="Seconds that an ordinary message is kept.")
    critical_reserve: int = Field(default=100, ge=0, le=100_000, description="Critical events kept; 0 takes none.")
    critical_reserve_bytes: int = Field(
        default=MIB, ge=0, le=1024 * MIB, description="Bytes of them, payload + 256 each."
    )


class StreamSettings(_Section):
    """Response streams."""

    idle_timeout_s: Seconds = Field(
        default=120.0,
        ge=0.1,
        le=DAY_S,
        description="Seconds of silence after which the sidecar ends a stream, with state error.",
    )


class StorageSettings(_Section):
    """Where outboxes are kept."""

    kind: Literal["memory", "sqlite"] = Field(
        default="memory",
        description='"memory": all ends with the process. "sqlite": contexts and what they accepted survive a crash.',
    )
    path: FilePath | None = Field(
        default=None,
        description="Database file, made with mode 0600 where there is none; on a local disk. Required for sqlite.",
    )
    key_file: FilePath | None = Field(
        default=None,
        description="File (0600) of the key that wraps the rows' keys, made where there is none; apart from the "
        "database and its backups. Required for sqlite.",
    )


class DrainSettings(_Section):
    """The end: SIGTERM, or AdminService.Drain."""

    window_s: Seconds = Field(
        default=20.0, ge=0, le=3600, description="Seconds over which the sockets are closed, one after the other."
    )
    grace_s: Seconds = Field(
        default=28.0,
        ge=1,
        le=7200,
        description="Seconds from the signal to the end of the process at the latest; below Kubernetes' "
        "terminationGracePeriodSeconds.",
    )


class ClusterSettings(_Section):
    """How several sidecars find each other."""

    kind: ClusterKind = Field(default="none", description='"none"; "nats" is not supported by this version.')
    servers: Texts = Field(default=(), description="Addresses of the NATS servers (nats).")
    name: Text | None = Field(default=None, description="Name of the cluster (nats).")
    replicas: int = Field(default=3, ge=1, le=5, description="Copies of what is stored (nats).")


class AuditSettings(_Section):
    """The audit trail."""

    path: FilePath = Field(
        default=Path("audit.jsonl"), description="File of the trail, made with mode 0600 where there is none."
    )


class LogSettings(_Section):
    """The log on standard error."""

    format: Literal["json", "console"] = Field(
        default="json", description="JSON lines, or lines for people; in development the latter unless set."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe that is written."
    )


def _tcp(listen: str) -> TcpAddress:
    address = parse_address(listen)
    assert isinstance(address, TcpAddress)
    return address
