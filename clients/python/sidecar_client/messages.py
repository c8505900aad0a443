"""What a caller says of a message, and the protobuf message that it becomes. Pure but for the ids that it makes up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypedDict, Unpack
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration

from sidecar.api.v1 import types_pb2
from sidecar_client.errors import bad_request, error_from_reason
from sidecar_client.values import ContentType, Durability, StreamPlace

MAX_TOKEN_CHARACTERS: Final = 4_096


class MessageOptions(TypedDict, total=False):
    """What else may be said of a message, by keyword. Identifiers are 1 to 128 of `A-Z a-z 0-9 _ . : @ | -`."""

    json: Any
    """Instead of a payload: any value that RFC 8259 can say. None is JSON's null."""
    event_type: str
    """An identifier: what kind of message this is, for the client to dispatch on."""
    content_type: ContentType
    """How `payload` is to be read. Default: JSON."""
    message_id: str
    """An identifier, the idempotency key. Default: made up, so that a call may always be repeated."""
    ttl_s: float
    """How long it is kept for a client that is away: more than 0, at most a day. Default: the sidecar's."""
    headers: Mapping[str, str]
    """Handed to the client beside the payload: at most 32."""
    min_durability: Durability
    """Refuse it (DurabilityUnavailable) unless the store gives at least this."""
    critical: bool
    """Never dropped for another, kept as long as its manager. Needs the scope `emit`; JSON only."""
    reply_to: str
    """An identifier: the client's message that this answers."""
    stream: StreamPlace
    """Its place in a response stream."""


class BatchItem:
    """One message of a batch and the context token (a secret, not printed) that it goes by."""

    __slots__ = ("context_token", "expected_user_id", "isolation_key", "options", "payload")

    def __init__(
        self,
        isolation_key: str,
        context_token: str,
        payload: bytes | None = None,
        *,
        expected_user_id: str = "",
        **options: Unpack[MessageOptions],
    ) -> None:
        self.isolation_key = isolation_key
        self.context_token = context_token
        self.payload = payload
        self.expected_user_id = expected_user_id
        self.options = options

    def __repr__(self) -> str:
        return f"BatchItem(isolation_key={self.isolation_key!r})"


def new_message_id() -> str:
    """32 random hexadecimal digits."""
    return uuid4().hex


def encode_json(value: Any, where: str = "message.payload") -> bytes:
    """One RFC 8259 value in UTF-8. Raises BadRequest for what it cannot say: NaN, lone surrogates, foreign objects."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        raise bad_request(where, "exactly one JSON value") from None


@contextmanager
def fields(where: str) -> Iterator[None]:
    """Fills protobuf fields: what they cannot hold is BadRequest; the exception that quotes it goes no further."""
    try:
        yield
    except ValueError:  # a lone surrogate, a number out of range
        raise bad_request(where, "a text is UTF-8, a number within its field's range") from None


def build_message(payload: bytes | None, options: MessageOptions) -> types_pb2.Message:
    """The protobuf message, always with a message_id.

    Raises TypeError for both or neither of a payload and `json`, and for an unknown option; BadRequest for a value that
    the field cannot hold.
    """
    unknown = options.keys() - MessageOptions.__optional_keys__
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}")
    content_type = options.get("content_type", ContentType.JSON)
    if (payload is None) == ("json" not in options):
        raise TypeError("give either a payload or json=")
    if payload is None:
        if content_type is not ContentType.JSON:
            raise TypeError("json= is of ContentType.JSON")
        payload = encode_json(options["json"])
    elif not isinstance(payload, bytes | bytearray | memoryview):
        raise TypeError("payload is bytes; other values go as json=")
    message = types_pb2.Message(payload=bytes(payload), content_type=content_type)  # type: ignore[arg-type]  # the proto's numbers
    _fill(message, options)
    return message


def _fill(message: types_pb2.Message, options: MessageOptions) -> None:
    with fields("message"):
        message.message_id = options.get("message_id") or new_message_id()
        message.event_type = options.get("event_type", "")
        message.reply_to = options.get("reply_to", "")
        message.critical = options.get("critical", False)
        message.min_durability = options.get("min_durability", 0)  # type: ignore[assignment]
        message.headers.update(options.get("headers") or {})
        stream = options.get("stream")
        if stream is not None:
            message.stream.stream_id = stream.stream_id
            message.stream.index = stream.index
            message.stream.state = stream.state  # type: ignore[assignment]
    ttl_s = options.get("ttl_s")
    if ttl_s is not None:
        message.ttl.CopyFrom(duration(ttl_s, "message.ttl"))


def duration(seconds: float, where: str) -> Duration:
    """Seconds as a Duration. Raises BadRequest for what none can hold."""
    try:
        span = Duration()
        span.FromNanoseconds(round(seconds * 1e9))
    except (ValueError, OverflowError):
        raise bad_request(where, "a number of seconds") from None
    return span


def check_token(token: str) -> str:
    """The token, when gRPC can carry it. Raises TokenError as the sidecar would, without ever naming the token.

    A service hands on what a request brought it: a line break in it must not become an exception that quotes it.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()) or token != token.strip():
        raise error_from_reason("TOKEN_INVALID", "the token is not valid")
    return token
