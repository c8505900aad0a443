"""The library's sans-I/O server protocol with the sidecar's rules: fixed texts, a rate before any answer, no debug log.

No I/O. Everything that the library would say in its own words, in HTTP or in a close frame, passes through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from websockets.exceptions import InvalidMessage, ProtocolError
from websockets.frames import Frame
from websockets.protocol import CONNECTING, OPEN
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - where the library was built without its extension
    from websockets.utils import apply_mask

from sidecar.core.close_codes import CloseCode
from sidecar.ws.handshake import BY_STATUS, Refusal

if TYPE_CHECKING:
    from websockets.http11 import Response
    from websockets.typing import LoggerLike

_NO_CLOSE_FRAME: Final = 1006
_INTERNAL: Final = 1011
SHORT_BYTES: Final = 1_024
"""What a client says is nearly always of at most so many bytes."""
_FINAL_TEXT: Final = 0x81
_MASKED: Final = 0x80
_LENGTH_FOLLOWS: Final = 126


class EdgeProtocol(ServerProtocol):
    """One client's protocol. Calls `admit_frame` before a frame is looked at, control frames included.

    `on_fail(code)` is called in the step in which the connection fails, `on_refused(refusal)` when an HTTP answer other
    than 101 goes out.
    """

    # The library's own attributes just fit in a dictionary that instances share the keys of.
    __slots__ = ("_admit_frame", "_between_frames", "_longest", "_on_fail", "_on_refused", "refusal")

    def __init__(
        self,
        *,
        max_inbound_bytes: int,
        logger: LoggerLike,
        admit_frame: Callable[[], bool],
        on_fail: Callable[[int], None],
        on_refused: Callable[[Refusal], None],
    ) -> None:
        super().__init__(max_size=max_inbound_bytes, logger=logger)
        self.debug = False  # at DEBUG the library logs the headers that carry tokens
        self._admit_frame = admit_frame
        self._on_fail = on_fail
        self._on_refused = on_refused
        self._longest = min(max_inbound_bytes, SHORT_BYTES)
        self._between_frames = False
        self.refusal: Refusal | None = None

    def take_text(self, data: bytes | bytearray) -> bytes | None:
        """The payload, where what has come is one short text frame by itself: that needs no parser that can stop.

        None, and nothing was taken, for all else, and for what the client sends too much of: `receive_data` says so.
        """
        if not self._between_frames or self.state is not OPEN or self.extensions or self.current_size is not None:
            return None
        text = short_text(data, self._longest)
        return text if text is not None and self._admit_frame() else None

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take what has come."""
        self._between_frames = False
        super().receive_data(data)

    def reject(self, status: int, text: str) -> Response:
        """The library's own rejection, without its text: it repeats what the client sent."""
        return self.refuse(BY_STATUS.get(int(status), Refusal.INTERNAL))

    def refuse(self, refusal: Refusal) -> Response:
        """The fixed answer to a refused handshake."""
        self.refusal = refusal
        response = super().reject(refusal.status, refusal.body)
        for name, value in refusal.headers:
            response.headers[name] = value
        return response

    def send_response(self, response: Response) -> None:
        """Send the answer to the handshake; tells of a refusal."""
        super().send_response(response)
        if response.status_code != 101:
            self._on_refused(self.refusal or Refusal.INTERNAL)

    def send_eof(self) -> None:
        """End the stream; where the library gives up on a request without a word, after a 400."""
        # Whether the client ended it is the reader's to say: a line that does not end as it must is an EOFError too.
        if self.state is CONNECTING and isinstance(self.handshake_exc, InvalidMessage) and not self.reader.eof:
            self.writes.append(self.refuse(Refusal.MALFORMED).serialize())
            self._on_refused(Refusal.MALFORMED)
        super().send_eof()

    def recv_frame(self, frame: Frame) -> None:
        """Process one frame unless the client sends too many; the rest of what it sent is then discarded unread.

        A frame before the 101 is an error (RFC 6455 §4.1): the library would answer it ahead of the handshake.
        """
        if self.state is CONNECTING:
            raise ProtocolError
        if not self._admit_frame():
            self.fail(CloseCode.RATE_LIMITED)
            raise ProtocolError
        super().recv_frame(frame)
        self._between_frames = not self.reader.buffer

    def let_go(self) -> None:
        """Forget whom to call; the connection has ended."""
        self._admit_frame = lambda: False
        self._on_fail = lambda _: None
        self._on_refused = lambda _: None

    def fail(self, code: int, reason: str = "") -> None:
        """Fail the connection (RFC 6455 §7.1.7) with the catalogue's text; 1011 is never sent."""
        if code == _INTERNAL:
            code = CloseCode.PROTOCOL_ERROR
        super().fail(code, "" if code == _NO_CLOSE_FRAME else CloseCode(code).name.lower())
        self._on_fail(int(code))


def short_text(data: bytes | bytearray, longest: int) -> bytes | None:
    """The payload of a text frame, where `data` is one, whole, with nothing behind it, of at most `longest` bytes.

    Final, without reserved bits, masked, its length in one or three bytes (RFC 6455 §5.2). None for all else.
    """
    size = len(data)
    if size < 6 or data[0] != _FINAL_TEXT:
        return None
    length, head = data[1] - _MASKED, 6
    if length >= _LENGTH_FOLLOWS:
        if length > _LENGTH_FOLLOWS:  # in nine bytes
            return None
        length, head = data[2] << 8 | data[3], 8
    # One that is not masked has a length below 0 here.
    if size != head + length or length > longest:
        return None
    return apply_mask(data[head:], data[head - 4 : head])
