"""One TCP connection: the library's `ServerConnection` with rates, flow control both ways and an end that is bounded.

Owns the transport; decides nothing about contexts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.frames import BINARY, PONG, TEXT, Frame
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING, OPEN

from sidecar.core.close_codes import CloseCode
from sidecar.core.limits import TokenBucket
from sidecar.ws.handshake import Refusal
from sidecar.ws.protocol import SHORT_BYTES, EdgeProtocol

if TYPE_CHECKING:
    from asyncio import BaseTransport, TimerHandle, Transport
    from collections.abc import Callable

    from websockets.asyncio.server import Server
    from websockets.protocol import Event
    from websockets.typing import LoggerLike

    from sidecar.core.close_codes import Close
    from sidecar.core.ports import Clock
    from sidecar.ws.admission import Admission
    from sidecar.ws.settings import WebSocketSettings
    from sidecar.ws.socket import ClientSocket

_NO_CLOSE_FRAME: Final = 1006
_PAST_REQUEST: Final = Request("", Headers())
MAX_QUEUED_FRAMES: Final = 16


class EdgeConnection(ServerConnection):
    """A client's connection, from accept to the end of its TCP connection.

    Reading stops while writing is paused: a client that does not read what it is sent cannot make the sidecar queue
    pongs for it. However it ends, `close_timeout_s` after the closing handshake began the transport is aborted.
    """

    transport: Transport

    # The library's own attributes just fit in a dictionary that instances share the keys of.
    __slots__ = (
        "_bytes",
        "_clock",
        "_close_timeout_s",
        "_deadline",
        "_frames",
        "_now",
        "_on_handshake_over",
        "_on_made",
        "_on_refused",
        "_protocol",
        "_queue_full",
        "address",
        "admission",
        "fault",
        "on_text",
        "peer",
        "socket",
        "unread",
    )

    def __init__(
        self,
        server: Server,
        settings: WebSocketSettings,
        clock: Clock,
        logger: LoggerLike,
        *,
        on_made: Callable[[EdgeConnection], None],
        on_handshake_over: Callable[[EdgeConnection], None],
        on_refused: Callable[[EdgeConnection, Refusal], None],
    ) -> None:
        protocol = EdgeProtocol(
            max_inbound_bytes=settings.max_inbound_bytes,
            logger=logger,
            admit_frame=self._admit_frame,
            on_fail=self._failed,
            on_refused=lambda refusal: on_refused(self, refusal),
        )
        super().__init__(
            protocol,
            server,
            ping_interval=None,
            ping_timeout=None,
            close_timeout=settings.close_timeout_s,
            max_queue=MAX_QUEUED_FRAMES,
            write_limit=settings.write_buffer_bytes,
        )
        self.debug = False
        self._protocol = protocol
        self.admission: Admission | None = None
        self.socket: ClientSocket | None = None
        self.address = ""
        self.peer: object = None
        """The other side, as the transport named it when it was made: of a lost connection uvloop names none."""
        self.fault: str | None = None
        self.on_text: Callable[[bytes], bool] | None = None
        """Asked of each short text frame before it is queued; True: it is dealt with."""
        self.unread = 0
        """Messages that were queued. Who receives them takes off each that is dealt with: then nothing is overtaken."""
        self._clock = clock
        self._on_made = on_made
        self._on_refused = on_refused
        self._on_handshake_over = on_handshake_over
        now = clock.monotonic()
        self._now = now
        self._frames = TokenBucket(settings.frames_per_second, now) if settings.frames_per_second else None
        self._bytes = TokenBucket(settings.bytes_per_second, now) if settings.bytes_per_second else None
        self._close_timeout_s = settings.close_timeout_s
        self._deadline: TimerHandle | None = None
        self._queue_full = False

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        """The opening handshake; `on_handshake_over` is called however it ends."""
        try:
            await super().handshake(*args, **kwargs)
        except asyncio.CancelledError:  # the library's time-out, or the edge's end
            if self._protocol.refusal is None:
                self._on_refused(self, Refusal.HANDSHAKE_TIMEOUT)
            self.abort()
            raise
        finally:
            if self.request is not None:
                # Nobody asks for them any more, and there are headers in them. None would be "not received yet".
                self.request, self.response = _PAST_REQUEST, None
            self._on_handshake_over(self)

    async def drain(self) -> None:
        """Never wait for a client to read: the library would, without a limit, before it closes."""

    @property
    def is_open(self) -> bool:
        """True between the upgrade and the first close frame of either side."""
        return self.protocol.state is OPEN

    def begin_close(self, close: Close) -> None:
        """Send the close frame (RFC 6455 §7.1.2) and set the connection's end. Before the upgrade: does nothing."""
        if self.protocol.state is OPEN:
            self.protocol.send_close(close.code, close.text)
            self._end_in_time()
            self.send_data()

    def refuse(self, refusal: Refusal) -> Response:
        """The fixed answer to a refused handshake."""
        return self._protocol.refuse(refusal)

    def abort(self) -> None:
        """End the TCP connection at once."""
        self.transport.abort()

    def let_go(self) -> None:
        """Call last, after the TCP connection has ended: what refers to itself would stay until the collector comes."""
        self._protocol.let_go()
        self.on_text = None
        self.recv_messages.pause = self.recv_messages.resume = lambda: None
        if self.socket is not None:
            self.socket.on_event = None
            self.socket = None

    # The transport's calls

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = peer_of(transport)
        self.recv_messages.pause = self._queue_filled
        self.recv_messages.resume = self._queue_emptied
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self._now = self._clock.monotonic()
        if self._bytes is not None and self._bytes.take(self._now, len(data)) and self.protocol.state is OPEN:
            self.protocol.fail(CloseCode.RATE_LIMITED)
        text = self._protocol.take_text(data)
        if text is None:
            super().data_received(data)
        elif self.on_text is None or not self.on_text(text):
            self._queue(Frame(TEXT, text))
        self._look_at_state()

    def eof_received(self) -> None:
        super().eof_received()
        self._look_at_state()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()
        self._left_open(_NO_CLOSE_FRAME)

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._queue_full:
            self._pause_reading()
        if self.socket is not None:
            self.socket.writing_paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._queue_full:
            self._resume_reading()
        if self.socket is not None:
            self.socket.writing_resumed()

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame):
            self._take_frame(event)
        else:
            super().process_event(event)

    def _take_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is TEXT or opcode is BINARY:
            if not self._is_dealt_with(frame):
                self._queue(frame)
            return
        super().process_event(frame)
        if opcode is PONG and self.socket is not None:
            self.socket.pong_received()

    def _queue(self, frame: Frame) -> None:
        """Keep a message, or the first fragment of one, for who receives them."""
        self.unread += 1
        super().process_event(frame)

    def _is_dealt_with(self, frame: Frame) -> bool:
        short = frame.opcode is TEXT and frame.fin and len(frame.data) <= SHORT_BYTES
        return short and self.on_text is not None and self.on_text(bytes(frame.data))

    # Rates and flow

    def give_back_frame(self) -> None:
        """The frame that was just read does not count against the rate: there are only as many as were asked for."""
        if self._frames is not None:
            self._frames.give_back()

    def _admit_frame(self) -> bool:
        return self._frames is None or self._frames.take(self._now) == 0.0

    def _queue_filled(self) -> None:
        self._queue_full = True
        self._pause_reading()

    def _queue_emptied(self) -> None:
        self._queue_full = False
        if not self.paused:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # The end

    def _look_at_state(self) -> None:
        state = self.protocol.state
        if state is not OPEN and state is not CONNECTING:
            received = self.protocol.close_rcvd
            self._left_open(_NO_CLOSE_FRAME if received is None else received.code)

    def _failed(self, code: int) -> None:
        if self.protocol.state is CONNECTING:
            if code != _NO_CLOSE_FRAME and self._protocol.refusal is None:
                self._on_refused(self, Refusal.MALFORMED)
            self.abort()
        self._left_open(code)

    def _left_open(self, code: int) -> None:
        """The connection is no longer open; `code` counts only the first time, when it says why."""
        self._end_in_time()
        if self.socket is not None:
            self.socket.connection_ended(code)

    def _end_in_time(self) -> None:
        if self._deadline is None and not self.connection_lost_waiter.done():
            self._deadline = self.loop.call_later(self._close_timeout_s, self.abort)


def peer_of(transport: BaseTransport) -> object:
    """The other side's socket address; None where it was gone before it was accepted, which uvloop raises for."""
    try:
        return transport.get_extra_info("peername")
    except (OSError, AttributeError):
        return None
