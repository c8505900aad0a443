"""The frames of `sidecar.v1.json`, read by exact rules into frozen values and written. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from sidecar_client.errors import bad_request
from sidecar_client.events import Limits, StreamChunk
from sidecar_client.messages import encode_json

MAX_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 32
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")
_Members = Mapping[str, Any]


class ProtocolError(Exception):
    """The other side broke the protocol. The socket is of no more use; a further one may be."""


class Welcome(NamedTuple):
    """The answer to hello."""

    connection_id: str
    isolation_key: str
    context_token: str
    context_token_expires_at: int
    resume_token: str
    recovery: str
    sequence: int
    limits: Limits


class MessageFrame(NamedTuple):
    """One message."""

    sequence: int
    id: str
    event: str
    content_type: str
    data: Any
    critical: bool
    reply_to: str
    stream: StreamChunk | None
    headers: Mapping[str, str]


class GapFrame(NamedTuple):
    """What could not be kept."""

    first: int
    last: int
    reason: str


class Accepted(NamedTuple):
    """The client's message was taken."""

    id: str


class ErrorFrame(NamedTuple):
    """One frame of the client's was refused; `id` is "" when it had none."""

    id: str
    reason: str
    message: str


class TokenExpiring(NamedTuple):
    """The socket's user token ends soon."""

    expires_at: int


class Refreshed(NamedTuple):
    """The new user token was taken."""

    expires_at: int


class ContextTokenFrame(NamedTuple):
    """The context token to use from now on."""

    context_token: str
    expires_at: int


class DrainingFrame(NamedTuple):
    """The sidecar stops; come back after that."""

    reconnect_in_ms: int


Frame = (
    Welcome
    | MessageFrame
    | GapFrame
    | Accepted
    | ErrorFrame
    | TokenExpiring
    | Refreshed
    | ContextTokenFrame
    | DrainingFrame
)


def parse(text: str | bytes) -> Frame | None:
    """The frame; None for a type that came after this version. Raises ProtocolError for what is none."""
    if not isinstance(text, str):
        raise ProtocolError("a binary frame")
    try:
        members = json.loads(text)
        kind = members["type"] if isinstance(members, dict) else None
        if not isinstance(kind, str):
            raise ProtocolError("no JSON object with a type")
        read = _READERS.get(kind)
        return None if read is None else read(members)
    except (ValueError, LookupError, TypeError, RecursionError):  # bad JSON and bad base64 are ValueErrors
        raise ProtocolError("a frame that cannot be read") from None


def _welcome(members: _Members) -> Welcome:
    limits = members["limits"]
    return Welcome(
        _string(members, "connection_id"),
        _string(members, "isolation_key"),
        _string(members, "context_token"),
        _integer(members, "context_token_expires_at"),
        _optional(members, "resume_token"),
        _string(members, "recovery"),
        _integer(members, "sequence"),
        Limits(
            _integer(limits, "max_message_bytes"),
            _integer(limits, "max_inbound_bytes"),
            float(limits["idle_timeout_s"]),
            float(limits["resume_window_s"]),
        ),
    )


def _message(members: _Members) -> MessageFrame:
    content_type = _string(members, "content_type")
    stream = members.get("stream")
    return MessageFrame(
        _integer(members, "sequence"),
        _string(members, "id"),
        _optional(members, "event"),
        content_type,
        _data(content_type, members["data"]),
        members.get("critical") is True,
        _optional(members, "reply_to"),
        None
        if stream is None
        else StreamChunk(_string(stream, "id"), _integer(stream, "index"), _string(stream, "state")),
        members.get("headers", {}),
    )


def _data(content_type: str, data: Any) -> Any:
    if content_type == "json":
        return data
    if not isinstance(data, str):
        raise TypeError
    return b64decode(data, validate=True) if content_type == "binary" else data


def _gap(members: _Members) -> GapFrame:
    gap = GapFrame(_integer(members, "from"), _integer(members, "to"), _string(members, "reason"))
    if not 1 <= gap.first <= gap.last:
        raise ProtocolError("an empty gap")
    return gap


def _error(members: _Members) -> ErrorFrame:
    return ErrorFrame(_optional(members, "id"), _string(members, "reason"), _optional(members, "message"))


_READERS: Final[dict[str, Callable[[_Members], Frame]]] = {
    "welcome": _welcome,
    "message": _message,
    "gap": _gap,
    "accepted": lambda members: Accepted(_string(members, "id")),
    "error": _error,
    "token_expiring": lambda members: TokenExpiring(_integer(members, "expires_at")),
    "refreshed": lambda members: Refreshed(_integer(members, "expires_at")),
    "context_token": lambda members: ContextTokenFrame(
        _string(members, "context_token"), _integer(members, "expires_at")
    ),
    "draining": lambda members: DrainingFrame(_integer(members, "reconnect_in_ms")),
}


def _string(members: _Members, name: str) -> str:
    value = members[name]
    if not isinstance(value, str):
        raise TypeError
    return value


def _optional(members: _Members, name: str) -> str:
    return _string(members, name) if name in members else ""


def _integer(members: _Members, name: str) -> int:
    value = members[name]
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise TypeError
    return value


# What the client says


def hello(token: str, resume: Mapping[str, Any] | None) -> str:
    """The first frame."""
    frame: dict[str, Any] = {"type": "hello", "token": token}
    return json.dumps(frame if resume is None else frame | {"resume": resume})


def ack(sequence: int) -> str:
    """Everything up to `sequence` has been dealt with."""
    return f'{{"type":"ack","sequence":{sequence}}}'


def refresh(token: str) -> str:
    """A new user token."""
    return json.dumps({"type": "refresh", "token": token})


def message(message_id: str, event: str, data: Any) -> str:
    """A message to the agents. Raises BadRequest for what the sidecar would end the socket for."""
    frame: dict[str, Any] = {"type": "message", "id": identifier("id", message_id)}
    if event:
        frame["event"] = identifier("event", event)
    if too_deep(data):
        raise bad_request("data", f"at most {MAX_DEPTH - 1} levels deep")
    return encode_json(frame | {"data": data}, "data").decode()


def cancel(stream_id: str, message_id: str) -> str:
    """A stream, or the answer to a message of one's own, that is no longer wanted."""
    named = {"stream_id": stream_id, "id": message_id}
    frame = {name: identifier(name, value) for name, value in named.items() if value}
    if not frame:
        raise bad_request("stream_id", "name a stream or a message")
    return json.dumps({"type": "cancel"} | frame)


def identifier(name: str, value: str) -> str:
    """The value, when it is an identifier. Raises BadRequest."""
    if not IDENTIFIER.fullmatch(value):
        raise bad_request(name, "an identifier: 1 to 128 characters of A-Z a-z 0-9 _ . : @ | -")
    return value


def too_deep(data: Any) -> bool:
    """Whether the value nests so deep that a frame around it would be too deep."""
    level = [data]
    for _ in range(MAX_DEPTH - 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [child for child in inside if isinstance(child, dict | list | tuple)]
