"""How contexts, their states and messages are written as bytes, before they are sealed. Pure."""

from __future__ import annotations

import json
from struct import Struct, error
from typing import Final

import orjson

from sidecar.core.stored import MessageIdentity, StoredContext, StoredGap, StoredMessage, StoredState

_message: Final = Struct("!QdB")  # size, expires_at, critical
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
    return orjson.dumps([state.acknowledged, state.released, state.head, state.attempt, state.last_activity_at, gaps])


def decode_state(data: bytes) -> StoredState:
    """The inverse. Raises Malformed."""
    try:
        acknowledged, released, head, attempt, last_activity_at, gaps = orjson.loads(data)
        return StoredState(
            acknowledged=acknowledged,
            released=released,
            head=head,
            dropped=(),
            gaps=tuple(StoredGap(*gap) for gap in gaps),
            attempt=attempt,
            last_activity_at=last_activity_at,
        )
    except (ValueError, TypeError):
        raise Malformed from None


def encode_message(frame: bytes, size: int, expires_at: float, critical: bool) -> bytes:
    """A message's frame and what decides how long it is kept."""
    return _message.pack(size, expires_at, critical) + frame


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
        size, expires_at, critical = _message.unpack_from(message)
        return StoredMessage(sequence, message[_message.size :], size, expires_at, bool(critical), accepted_at, known)
    except (error, UnicodeDecodeError):
        raise Malformed from None


def _decode_identity(data: bytes) -> tuple[MessageIdentity, float]:
    accepted_at, fingerprint = _identity.unpack_from(data)
    return MessageIdentity(data[_identity.size :].decode(), fingerprint), accepted_at
