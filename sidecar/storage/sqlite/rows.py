"""How contexts, their states and messages are written as bytes, before they are sealed. Pure."""

from __future__ import annotations

import json
from struct import Struct, error
from typing import Final

import orjson

from sidecar.core.deliveries import InboundMessage
from sidecar.core.message import StreamPlace, StreamState
from sidecar.core.stored import (
    MessageIdentity,
    StoredContext,
    StoredGap,
    StoredInbound,
    StoredMessage,
    StoredState,
    StoredStream,
)

_message: Final = Struct("!QdBB")  # size, expires_at, critical, bytes of the stream's id; then that id and its place
_place: Final = Struct("!QB")  # the chunk's position, its state
_identity: Final = Struct("!d16s")  # accepted_at, fingerprint; then the message id


class Malformed(Exception):
    """Bytes that none of these functions wrote."""


def encode_context(context: StoredContext) -> bytes:
    """A context's identity. Never fails, whatever its client named itself: others' rows are in the same commit."""
    return json.dumps(
        {
            **context._asdict(),
            "resume_digest": context.resume_digest.hex(),
            "metadata": dict(context.metadata),
        }
    ).encode()


def decode_context(data: bytes) -> StoredContext:
    """The inverse. Raises Malformed."""
    try:
        members = json.loads(data)
        members["resume_digest"] = bytes.fromhex(members["resume_digest"])
        members["permissions"] = tuple(members["permissions"])
        return StoredContext(**members)
    except (ValueError, TypeError, KeyError):
        raise Malformed from None


def encode_state(state: StoredState) -> bytes:
    """Where a context stands; what was dropped is not part of it, its gaps are."""
    gaps = [tuple(gap) for gap in state.gaps]  # orjson knows tuples, and none that are derived from them
    streams = [tuple(stream) for stream in state.streams]
    return orjson.dumps(
        [state.acknowledged, state.released, state.head, state.attempt, state.last_activity_at, gaps, streams]
    )


def decode_state(data: bytes) -> StoredState:
    """The inverse. Raises Malformed."""
    try:
        acknowledged, released, head, attempt, last_activity_at, gaps, streams = orjson.loads(data)
        return StoredState(
            acknowledged=acknowledged,
            released=released,
            head=head,
            dropped=(),
            gaps=tuple(StoredGap(*gap) for gap in gaps),
            attempt=attempt,
            last_activity_at=last_activity_at,
            streams=tuple(StoredStream(*stream) for stream in streams),
        )
    except (ValueError, TypeError):
        raise Malformed from None


def encode_message(
    frame: bytes, size: int, expires_at: float, critical: bool, stream: StreamPlace | None = None
) -> bytes:
    """A message's frame, what decides how long it is kept, and its place in a stream."""
    if stream is None:
        return _message.pack(size, expires_at, critical, 0) + frame
    stream_id = stream.stream_id.encode()
    place = stream_id + _place.pack(stream.position, stream.state)
    return _message.pack(size, expires_at, critical, len(stream_id)) + place + frame


def encode_inbound(service: str, message: InboundMessage) -> bytes:
    """A client's message, and the service that is to take it."""
    head = orjson.dumps([service, message.message_id, message.event_type, message.content_type])
    return head + b"\n" + message.payload


def decode_inbound(number: int, row: StoredMessage) -> StoredInbound:
    """The inverse, of the row's frame; without one it was taken, and is kept for its identity. Raises Malformed."""
    if row.frame is None:
        return StoredInbound(number, "", None, row.identity)
    head, _, payload = row.frame.partition(b"\n")
    try:
        service, message_id, event_type, content_type = orjson.loads(head)
    except (ValueError, TypeError):
        raise Malformed from None
    return StoredInbound(number, service, InboundMessage(message_id, event_type, payload, content_type), row.identity)


def encode_identity(identity: MessageIdentity, accepted_at: float) -> bytes:
    """What a repeat of a message is known by."""
    return _identity.pack(accepted_at, identity.fingerprint) + identity.message_id.encode()


def decode_message(sequence: int, message: bytes | None, identity: bytes | None) -> StoredMessage:
    """One row's message; `message` None where it was acknowledged. Raises Malformed."""
    try:
        known, accepted_at = (None, 0.0) if identity is None else _decode_identity(identity)
        if message is None:
            if known is None:
                raise Malformed
            return StoredMessage(sequence, None, 0, 0.0, False, accepted_at, known)
        size, expires_at, critical, id_bytes = _message.unpack_from(message)
        stream, begin = _decode_place(message, id_bytes) if id_bytes else (None, _message.size)
        return StoredMessage(sequence, message[begin:], size, expires_at, bool(critical), accepted_at, known, stream)
    except (error, ValueError):
        raise Malformed from None


def _decode_place(message: bytes, id_bytes: int) -> tuple[StreamPlace, int]:
    """A chunk's place, and where its frame begins."""
    end = _message.size + id_bytes
    position, state = _place.unpack_from(message, end)
    stream_id = message[_message.size : end].decode()
    return StreamPlace(stream_id, position, StreamState(state)), end + _place.size


def _decode_identity(data: bytes) -> tuple[MessageIdentity, float]:
    accepted_at, fingerprint = _identity.unpack_from(data)
    return MessageIdentity(data[_identity.size :].decode(), fingerprint), accepted_at
