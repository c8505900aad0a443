"""What a manager tells a socket beside messages: frozen values that the WebSocket edge turns into frames."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenExpiring:
    """The socket's user token ends soon; the client should refresh in band. Unix seconds."""

    expires_at: int


@dataclass(frozen=True, slots=True)
class ContextTokenDue:
    """The client's context token ends soon: mint it another and send it."""


@dataclass(frozen=True, slots=True)
class Draining:
    """The sidecar is about to close this socket with 1012."""

    reconnect_in_ms: int


SocketEvent = TokenExpiring | ContextTokenDue | Draining
