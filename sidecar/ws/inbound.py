"""What a client of `sidecar.v1.json` says, parsed by exact rules into frozen values. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import orjson

from sidecar.core.identity import IDENTIFIER
from sidecar.core.message import parse_json

MAX_DEPTH: Final = 32
MAX_INTEGER: Final = 2**53 - 1


class BadFrame(Exception):
    """The client broke the protocol in a way that ends the socket (4500)."""


class Resume(NamedTuple):
    """What hello says of a context to come back to."""

    token: str
    last_sequence: int
    attempt: int


class Hello(NamedTuple):
    """The first frame. At most one of `resume` and `mirror_token`."""

    token: str | None
    resume: Resume | None
    mirror_token: str | None


class Acknowledge(NamedTuple):
    """Everything up to `sequence` has come."""

    sequence: int


class ClientMessage(NamedTuple):
    """A message for the agent; `event` is "message" when the client named none."""

    message_id: str
    event: str
    data: object


class Cancel(NamedTuple):
    """A stream that the client no longer wants, or the answer to one of its messages; at least one is named."""

    stream_id: str | None
    message_id: str | None


class Refresh(NamedTuple):
    """A new user token."""

    token: str


class Rejected(NamedTuple):
    """A frame that is answered with `error` BAD_REQUEST; `message_id` where it had a usable one."""

    message_id: str | None


_USUAL_ACK: Final = re.compile(r'\{"type":"ack","sequence":(0|[1-9][0-9]{0,14})\}').fullmatch
"""An acknowledgement as JSON.stringify and orjson write it: most of what clients say, and not worth a parser."""

ClientFrame = Hello | Acknowledge | ClientMessage | Cancel | Refresh | Rejected
_Members = Mapping[str, object]


def parse(text: str) -> ClientFrame:
    """The frame that `text` is. Raises BadFrame for what ends the socket.

    One JSON object (RFC 8259) nested at most MAX_DEPTH deep, without NaN or lone surrogates, with a `type` that is a
    string. Unknown members are ignored, unknown types rejected.
    """
    usual = _USUAL_ACK(text)
    if usual is not None:
        return Acknowledge(int(usual[1]))
    try:
        members = parse_json(text)
    except orjson.JSONDecodeError:
        raise BadFrame from None
    if not isinstance(members, dict) or too_deep(text, members):
        raise BadFrame
    kind = members.get("type")
    if not isinstance(kind, str):
        raise BadFrame
    read = _READERS.get(kind)
    return Rejected(_identifier(members, "id")) if read is None else read(members)


def too_deep(text: str, value: object) -> bool:
    """True when `value` nests deeper than MAX_DEPTH. Counting brackets settles nearly every frame without a walk."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _hello(members: _Members) -> Hello:
    resume, mirror = _object(members, "resume"), _object(members, "mirror")
    if resume is not None and mirror is not None:
        raise BadFrame
    return Hello(
        token=_string(members, "token") if "token" in members else None,
        resume=None if resume is None else _resume(resume),
        mirror_token=None if mirror is None else _string(mirror, "token"),
    )


def _resume(members: _Members) -> Resume:
    return Resume(_string(members, "token"), _integer(members, "last_sequence"), _integer(members, "attempt"))


def _acknowledge(members: _Members) -> Acknowledge:
    return Acknowledge(_integer(members, "sequence"))


def _message(members: _Members) -> ClientMessage | Rejected:
    message_id = _identifier(members, "id")
    event = _identifier(members, "event") if "event" in members else "message"
    if message_id is None or event is None or "data" not in members:
        return Rejected(message_id)
    return ClientMessage(message_id, event, members["data"])


def _cancel(members: _Members) -> Cancel | Rejected:
    stream_id, message_id = _identifier(members, "stream_id"), _identifier(members, "id")
    unusable = ("stream_id" in members and stream_id is None) or ("id" in members and message_id is None)
    if unusable or (stream_id is None and message_id is None):
        return Rejected(message_id)
    return Cancel(stream_id, message_id)


def _refresh(members: _Members) -> Refresh:
    return Refresh(_string(members, "token"))


_READERS: Final[dict[str, Callable[[_Members], ClientFrame]]] = {
    "hello": _hello,
    "ack": _acknowledge,
    "message": _message,
    "cancel": _cancel,
    "refresh": _refresh,
}


def _object(members: _Members, name: str) -> _Members | None:
    if name not in members:
        return None
    value = members[name]
    if not isinstance(value, dict):
        raise BadFrame
    return value


def _string(members: _Members, name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise BadFrame
    return value


def _integer(members: _Members, name: str) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise BadFrame
    return value


def _identifier(members: _Members, name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else None
