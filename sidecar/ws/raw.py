"""`sidecar.v1.raw`: payloads as they are, at most once; the context is made in the handshake, ends with its socket."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.core.deliveries import InboundMessage
from sidecar.core.errors import SidecarError
from sidecar.core.message import ContentType

if TYPE_CHECKING:
    from sidecar.ws.connection import EdgeConnection
    from sidecar.ws.ports import EdgePorts
    from sidecar.ws.socket import ClientSocket


class RawSession:
    """Runs one raw client. It is told of nothing but messages: no token, no gap, no error, no draining."""

    def __init__(self, connection: EdgeConnection, socket: ClientSocket, ports: EdgePorts) -> None:
        self._connection = connection
        self._socket = socket
        self._ports = ports

    async def run(self) -> None:
        """Serve until the connection ends (ConnectionClosed)."""
        admission, manager = self._connection.admission, self._socket.manager
        assert admission is not None
        assert admission.user is not None
        assert manager is not None
        manager.lifecycle.register_connection(self._socket, admission.user.expires_at, self._ports.clock.now())
        self._socket.open()
        manager.conversation.announce(self._ports.clock.now())
        while True:
            data = await self._connection.recv()
            if self._socket.gone:
                continue
            payload, kind = (data.encode(), ContentType.TEXT) if isinstance(data, str) else (data, ContentType.BINARY)
            with suppress(SidecarError):  # the protocol has no frame to say so
                manager.receive(InboundMessage("", "message", payload, kind), self._ports.clock.now(), lambda *_: None)
