"""What the composition root decides for the WebSocket edge. Plain values; opens nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.identity import Scope


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """Times in seconds, sizes in bytes, rates a second with a burst of one second's worth; a rate of 0 is no limit.

    `port` 0 is any free one. `allowed_origins` are compared exactly; "*" lets every page in and is for development.
    `trusted_proxies` are addresses or networks whose X-Forwarded-For is believed. `bytes_per_second` must not be below
    `max_inbound_bytes`, or the largest message allowed would break the rate. Addresses on loopback are under no rate:
    behind a local proxy that is not trusted they stand for everybody.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allowed_origins: tuple[str, ...] = ()
    hello_timeout_s: float = 10.0
    handshake_timeout_s: float = 5.0
    close_timeout_s: float = 5.0
    max_inbound_bytes: int = 65_536
    max_message_bytes: int = 262_144
    write_buffer_bytes: int = 65_536
    idle_timeout_s: float = 1800.0
    resume_window_s: float = 120.0
    frames_per_second: float = 100.0
    bytes_per_second: float = 1_048_576.0
    max_half_open: int = 1_000
    max_connections: int = 20_000
    client_scopes: tuple[Scope, ...] = (Scope.SEND, Scope.EMIT, Scope.STATS)
    connects_per_second_per_address: float = 50.0
    failures_per_second_per_address: float = 10.0
    max_addresses: int = 10_000
    trusted_proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if 0 < self.bytes_per_second < self.max_inbound_bytes:
            raise ValueError("bytes_per_second must not be below max_inbound_bytes")
