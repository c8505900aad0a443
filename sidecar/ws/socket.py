"""One WebSocket as its manager sees it: the core's `Socket` port over a connection. Nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from sidecar.ws.frames import ping_frame

if TYPE_CHECKING:
    from sidecar.core.close_codes import Close
    from sidecar.core.events import SocketEvent
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Clock
    from sidecar.core.writes import WriteBatch
    from sidecar.ws.connection import EdgeConnection

logger = structlog.get_logger("sidecar.ws")

MAX_HELD_BYTES: Final = 16 * 1024
"""So much is held back at most, and no larger frame: a transport whose buffer is full must be able to say so."""


class ClientSocket:
    """Writes what the manager gives it to the transport; tells the manager what becomes of the connection.

    `writable` is True from `open` on, while the connection is open and its transport takes more. `closing` is set in
    the step in which this side closes: from there on nothing that the client sends counts. Frames are held back to the
    end of a step of `writes`; nothing overtakes them.
    """

    __slots__ = (
        "_clock",
        "_connection",
        "_held",
        "_held_bytes",
        "_opened",
        "_writes",
        "attach_id",
        "closing",
        "lost",
        "manager",
        "on_event",
        "writable",
    )

    def __init__(self, connection: EdgeConnection, attach_id: str, clock: Clock, writes: WriteBatch) -> None:
        self.attach_id = attach_id
        self.writable = False
        self.closing: Close | None = None
        self.lost = False
        self.manager: IsolatedWebSocketManager | None = None
        self.on_event: Callable[[SocketEvent], None] | None = None
        self._opened = False
        self._connection = connection
        self._clock = clock
        self._writes = writes
        self._held: list[bytes] | None = None
        self._held_bytes = 0

    def __repr__(self) -> str:
        state = "closing" if self.closing or self.lost else "writable" if self.writable else "waiting"
        return f"<ClientSocket {self.attach_id} {state}>"

    @property
    def gone(self) -> bool:
        """True once either side has begun to close."""
        return self.lost or self.closing is not None

    # The core's port

    def write(self, frame: bytes) -> None:
        """Give one encoded frame to the transport: now, or at the end of a step that gathers writes."""
        held, size = self._held, len(frame)
        if not self._writes.holding or size > MAX_HELD_BYTES:
            if held is not None:
                self.flush()
            self._connection.transport.write(frame)
        elif held is None:
            self._hold(frame, size)
        elif self._held_bytes + size > MAX_HELD_BYTES:
            self.flush()
            self._hold(frame, size)
        else:
            held.append(frame)
            self._held_bytes += size

    def _hold(self, frame: bytes, size: int) -> None:
        self._writes.add(self)
        self._held, self._held_bytes = [frame], size

    def flush(self) -> None:
        """Write what is held, or let go of it where the connection is lost. A failure ends the connection."""
        held, self._held = self._held, None
        if held is None or self.lost:
            return
        try:
            self._connection.transport.write(held[0] if len(held) == 1 else b"".join(held))
        except Exception as bug:  # noqa: BLE001 - told
            logger.error("a socket could not be written", error=type(bug).__name__)
            self._connection.abort()  # it lacks what was held: its client comes back for that

    def notify(self, event: SocketEvent) -> None:
        """Tell the client something that has no sequence, where its protocol has a frame for it."""
        if self.on_event is not None and self._opened and not self.gone:
            self.on_event(event)

    def ping(self, payload: bytes) -> None:
        """Send a ping (RFC 6455 §5.5.2)."""
        self.send(ping_frame(payload))

    def close(self, close: Close) -> None:
        """Begin the closing handshake; the connection bounds its own end. Idempotent."""
        if self.closing is None:
            self.closing = close
            self.writable = False
            self.flush()
            self._connection.begin_close(close)

    # The edge's side

    def send(self, frame: bytes) -> None:
        """Write a frame that has no sequence, unless the socket is on its way out."""
        if not self.gone:
            if self._held is not None:
                self.flush()
            self._connection.transport.write(frame)

    def open(self) -> None:
        """Let the manager write, and have it write what waits. Call when the protocol's first frame is out."""
        self._opened = True
        self._take_more()

    def writing_paused(self) -> None:
        """The transport's buffer is full."""
        self.writable = False
        if self.manager is not None and not self.gone:
            self.manager.lifecycle.writing_paused(self.attach_id, self._clock.now())

    def writing_resumed(self) -> None:
        """The transport's buffer has room again."""
        if self.manager is not None and not self.gone:
            self.manager.lifecycle.writing_resumed(self.attach_id)
            self._take_more()

    def pong_received(self) -> None:
        """The client answered a ping."""
        if self.manager is not None and not self.gone:
            self.manager.lifecycle.pong_received(self.attach_id)

    def connection_ended(self, code: int) -> None:
        """The connection left its open state, with that close code (1006: none). Idempotent."""
        if self.lost:
            return
        self.lost = True
        self.writable = False
        manager = self.manager
        if manager is not None and not manager.ended:
            manager.remove_connection(manager.context, self.attach_id, code, self._clock.now())

    def _take_more(self) -> None:
        self.writable = self._opened and not self.gone and not self._connection.paused
        if self.writable and self.manager is not None:
            self.manager.resume_writing(self._clock.now())
