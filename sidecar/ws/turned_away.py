"""What becomes of a TCP connection for which there is no room: the fixed 503 at once, and nothing is read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from sidecar.ws.connection import peer_of
from sidecar.ws.handshake import Refusal

if TYPE_CHECKING:
    from asyncio import BaseTransport, Transport
    from collections.abc import Callable


class TurnedAway(asyncio.Protocol):
    """A connection beyond the cap of half-open handshakes; `on_turned_away` is told its peer."""

    def __init__(self, on_turned_away: Callable[[object], None]) -> None:
        self._on_turned_away = on_turned_away

    def connection_made(self, transport: BaseTransport) -> None:
        """Answer and close."""
        transport = cast("Transport", transport)  # uvloop's is no instance of it
        peer = peer_of(transport)
        body = Refusal.FULL.body
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        transport.write((head + body).encode())
        transport.close()
        self._on_turned_away(peer)
