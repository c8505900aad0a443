"""What the sidecar sends: whole WebSocket frames, FIN and unmasked (RFC 6455 §5.2), encoded once for every socket.

Pure. Identifiers have been checked by the core and JSON payloads parsed whole, so that both are put in as they are.
"""

from __future__ import annotations

from base64 import b64encode
from struct import Struct
from typing import TYPE_CHECKING, Final

import orjson

from sidecar.core.errors import CATALOGUE, ErrorReason
from sidecar.core.message import ContentType, StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.identity import ContextToken, UserExecutionContext
    from sidecar.core.message import Message

_TEXT: Final = 0x81
_BINARY: Final = 0x82
_PING: Final = 0x89
_JSON: Final = int(ContentType.JSON)
_STREAM_STATES: Final = {state: state.name.lower() for state in StreamState}
_SHORT_TEXT: Final = tuple(bytes((_TEXT, length)) for length in range(126))
_MEDIUM: Final = Struct("!BBH").pack
_LONG: Final = Struct("!BBQ").pack


def header(first: int, length: int) -> bytes:
    """The head of one unmasked frame: `first` is FIN and opcode, `length` the payload's bytes."""
    if length < 126:
        return _SHORT_TEXT[length] if first == _TEXT else bytes((first, length))
    if length < 65_536:
        return _MEDIUM(first, 126, length)
    return _LONG(first, 127, length)


def text_frame(payload: bytes) -> bytes:
    """One text frame; `payload` is UTF-8."""
    length = len(payload)
    return (_SHORT_TEXT[length] if length < 126 else header(_TEXT, length)) + payload


def ping_frame(payload: bytes) -> bytes:
    """One ping; `payload` has at most 125 bytes (RFC 6455 §5.5)."""
    return header(_PING, len(payload)) + payload


class JsonEncoder:
    """`sidecar.v1.json`: every message is one text frame, a JSON object with the payload in `data`."""

    def message(self, sequence: int, message_id: str, message: Message) -> bytes:
        """JSON stands in `data` with its bytes unchanged, text as a string, binary as base64 (RFC 4648 §4)."""
        _, event_type, data, content, _, headers, _, critical, reply_to, _, stream = message
        content_type = "json"
        if content != _JSON:
            content_type, data = _encode_other(message)
        elif not data:
            data = b"null"  # a stream's last chunk, which alone may be empty
        event = f',"event":"{event_type}"' if event_type else ""
        rare = _rare_members(message) if critical or reply_to or stream or headers else ""
        head = (
            f'{{"type":"message","sequence":{sequence},"id":"{message_id}"{event}{rare}'
            f',"content_type":"{content_type}","data":'
        ).encode()
        length = len(head) + len(data) + 1
        first = _MEDIUM(_TEXT, 126, length) if 126 <= length < 65_536 else header(_TEXT, length)
        return b"".join((first, head, data, b"}"))  # one copy of the payload, whatever its size

    def gap(self, first: int, last: int, reason: str) -> bytes | None:
        """What could not be kept, in its place in the order."""
        return text_frame(f'{{"type":"gap","from":{first},"to":{last},"reason":"{reason}"}}'.encode())


class RawEncoder:
    """`sidecar.v1.raw`: the payload alone; JSON and text as a text frame, binary as a binary one."""

    def message(self, sequence: int, message_id: str, message: Message) -> bytes:
        """The payload is the frame's."""
        payload = message.payload
        return header(_BINARY if message.content_type == ContentType.BINARY else _TEXT, len(payload)) + payload

    def gap(self, first: int, last: int, reason: str) -> bytes | None:
        """Raw clients are told of no gaps."""
        return None


def welcome(
    context: UserExecutionContext,
    attach_id: str,
    token: ContextToken,
    *,
    recovery: str,
    sequence: int,
    limits: Mapping[str, int | float],
    resume_token: str | None,
) -> bytes:
    """The answer to hello. `sequence` is the client's position; `resume_token` None (a mirror's) is left out."""
    frame: dict[str, object] = {
        "type": "welcome",
        "connection_id": context.connection_id,
        "session_id": context.session_id,
        "attach_id": attach_id,
        "isolation_key": context.get_isolation_key(),
        "context_token": token.text,
        "context_token_expires_at": token.expires_at,
        "recovery": recovery,
        "sequence": sequence,
        "limits": limits,
    }
    if resume_token is not None:
        frame["resume_token"] = resume_token
    return text_frame(orjson.dumps(frame))


def error(reason: ErrorReason, message_id: str | None) -> bytes:
    """The answer to one client frame that was refused; the text is the catalogue's."""
    frame = {"type": "error", "reason": reason.value, "message": CATALOGUE[reason][1]}
    if message_id is not None:
        frame["id"] = message_id
    return text_frame(orjson.dumps(frame))


def accepted(message_id: str, *, duplicate: bool) -> bytes:
    """A client's message is queued for an agent, or was before."""
    repeat = ',"duplicate":true' if duplicate else ""
    return text_frame(f'{{"type":"accepted","id":"{message_id}"{repeat}}}'.encode())


def refreshed(expires_at: int) -> bytes:
    """The user token was taken; the socket now ends at `expires_at` (Unix seconds)."""
    return text_frame(b'{"type":"refreshed","expires_at":%d}' % expires_at)


def token_expiring(expires_at: int) -> bytes:
    """The socket's user token ends soon (Unix seconds)."""
    return text_frame(b'{"type":"token_expiring","expires_at":%d}' % expires_at)


def context_token(token: ContextToken) -> bytes:
    """A context token to use from now on; the old one ends by itself."""
    frame = {"type": "context_token", "context_token": token.text, "expires_at": token.expires_at}
    return text_frame(orjson.dumps(frame))


def draining(reconnect_in_ms: int) -> bytes:
    """The sidecar stops; the client comes back after that many milliseconds."""
    return text_frame(b'{"type":"draining","reconnect_in_ms":%d}' % reconnect_in_ms)


def _encode_other(message: Message) -> tuple[str, bytes]:
    if message.content_type == ContentType.TEXT:
        return "text", orjson.dumps(message.payload.decode())
    return "binary", b'"%b"' % b64encode(message.payload)


def _rare_members(message: Message) -> str:
    members = ',"critical":true' if message.critical else ""
    if message.reply_to:
        members += f',"reply_to":"{message.reply_to}"'
    if message.stream is not None:
        stream_id, position, state = message.stream
        members += f',"stream":{{"id":"{stream_id}","index":{position},"state":"{_STREAM_STATES[state]}"}}'
    if message.headers:
        members += f',"headers":{orjson.dumps(dict(message.headers)).decode()}'
    return members
