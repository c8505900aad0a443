"""What goes over the lines of a runner, to and from the client's own values (clients/conformance/README.md)."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

from sidecar_client import (
    BatchItem,
    ConnectionEnded,
    ContentType,
    ContextReplaced,
    Durability,
    Event,
    Gap,
    InboundMessage,
    Message,
    Receipt,
    StreamPlace,
    StreamState,
    UserContext,
)
from sidecar_client.errors import SidecarError

Values = dict[str, Any]
_SAME = ("event_type", "message_id", "ttl_s", "headers", "critical", "reply_to")


def message_from(said: Values) -> tuple[bytes | None, Values]:
    """A message's payload and its options, as the client's methods take them."""
    options = {name: said[name] for name in _SAME if name in said}
    payload: bytes | None = None
    if "text" in said:
        payload, options["content_type"] = said["text"].encode(), ContentType.TEXT
    elif "binary" in said:
        payload, options["content_type"] = b64decode(said["binary"]), ContentType.BINARY
    else:
        options["json"] = said["json"]
    if "min_durability" in said:
        options["min_durability"] = Durability[said["min_durability"]]
    if "stream" in said:
        place = said["stream"]
        options["stream"] = StreamPlace(place["stream_id"], place["index"], StreamState[place["state"].upper()])
    return payload, options


def chunk_from(said: Values) -> Values:
    """What `ReplyStream.send` takes."""
    return said if "binary" not in said else {"binary": b64decode(said["binary"])}


def item_from(said: Values) -> BatchItem:
    """One item of a batch."""
    payload, options = message_from(said["message"])
    user_id = said.get("expected_user_id", "")
    return BatchItem(said["isolation_key"], said["context_token"], payload, expected_user_id=user_id, **options)


def receipt(made: Receipt) -> Values:
    return made._asdict() | {"state": made.state.name, "durability": made.durability.name}


def user(context: UserContext) -> Values:
    names = ("tenant_id", "user_id", "session_id", "connection_id", "request_id", "created_time")
    said: Values = {name: getattr(context, name) for name in names}
    return said | {"permissions": list(context.permissions), "metadata": dict(context.metadata)}


def error(raised: SidecarError) -> Values:
    """What the client threw. A user's refusal came in a frame, which has no status."""
    said: Values = {"code": raised.code.name, "reason": raised.reason, "definite": raised.definite}
    return said if raised.retry_after_s is None else said | {"retry_after_s": raised.retry_after_s}


def result(came: Receipt | BaseException) -> Values:
    """One of a batch's results."""
    if isinstance(came, Receipt):
        return {"receipt": receipt(came)}
    if isinstance(came, SidecarError):
        return {"error": error(came)}
    raise came


def message_event(message: InboundMessage, handle: int) -> Values:
    """A message, as `agent_next` gives it."""
    context, kind = message.context, message.content_type
    return {
        "handle": handle,
        "kind": "message",
        "isolation_key": context.isolation_key,
        "context_token": context.context_token,
        "user": user(context.user),
        "id": message.id,
        "event": message.event,
        "content_type": kind.name.lower(),
        "data": b64encode(message.data).decode() if kind is ContentType.BINARY else message.data,
        "redelivered": message.redelivered,
    }


def user_event(event: Event | ConnectionEnded) -> Values:
    match event:
        case Message():
            said: Values = {
                name: getattr(event, name)
                for name in ("sequence", "id", "event", "content_type", "critical", "reply_to")
            }
            said |= {"kind": "message", "data": _data(event), "headers": dict(event.headers)}
            place = event.stream
            if place is None:
                return said
            return said | {"stream": {"id": place.id, "index": place.index, "state": place.state}}
        case Gap():
            return {"kind": "gap", "first": event.first, "last": event.last, "reason": event.reason}
        case ContextReplaced():
            return {"kind": "replaced", "connection_id": event.connection_id, "isolation_key": event.isolation_key}
        case _:
            return {"kind": "ended", "code": event.code}


def _data(event: Message) -> Any:
    return b64encode(event.data).decode() if event.content_type == "binary" else event.data
