"""What a service sends and what it is told: messages, receipts, and the rules a message must keep."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

import orjson

from sidecar.core.errors import BadRequest, SidecarError
from sidecar.core.identity import IDENTIFIER

MESSAGE_OVERHEAD_BYTES: Final = 256
"""What a message counts for in the outbox beside its payload."""
MAX_HEADERS: Final = 32
MAX_HEADER_VALUE_CHARACTERS: Final = 1024
MAX_TTL_S: Final = 86_400.0
SMALL_JSON_BYTES: Final = 1_024
MAX_STREAM_INDEX: Final = 2**53 - 1

_is_identifier: Final = IDENTIFIER.fullmatch
_IDENTIFIER_RULE: Final = "1 to 128 of A-Z a-z 0-9 _ . : @ | -"


class ContentType(IntEnum):
    """How a payload is to be read; the numbers are the proto's."""

    JSON = 1
    TEXT = 2
    BINARY = 3


_JSON: Final = int(ContentType.JSON)  # a member of an enumeration takes twice as long to read and to compare


class DeliveryState(IntEnum):
    """How far a message has come; the numbers are the proto's."""

    QUEUED = 1
    WRITTEN = 2
    ACKNOWLEDGED = 3
    DROPPED = 4


class Durability(IntEnum):
    """What a receipt's message survives; the numbers are the proto's."""

    MEMORY = 1
    DISK = 2
    REPLICATED = 3


class Instant(NamedTuple):
    """One reading of the clock, taken once per call or frame: monotonic seconds and Unix seconds."""

    monotonic: float
    unix: float


make_instant: Final[Callable[[tuple[float, float]], Instant]] = partial(tuple.__new__, Instant)
"""An Instant of both: calling the type costs twice as much, and every call and frame has one."""


class StreamState(IntEnum):
    """Where a chunk stands in its stream; the numbers are the proto's."""

    OPEN = 1
    END = 2
    ERROR = 3


class StreamPlace(NamedTuple):
    """A message's place in a response stream; `position` is the contract's index."""

    stream_id: str
    position: int
    state: StreamState


make_place: Final[Callable[[tuple[str, int, StreamState]], StreamPlace]] = partial(tuple.__new__, StreamPlace)
"""A StreamPlace of all its members, as `make_instant`."""


class Message(NamedTuple):
    """One message to a user. `message_id` and `reply_to` are "" when absent; `ttl_s` None is the outbox's own.

    `checked`: `check_message` has passed it, so that one message to many managers is parsed once.
    """

    message_id: str
    event_type: str
    payload: bytes
    content_type: int = ContentType.JSON
    ttl_s: float | None = None
    headers: Mapping[str, str] | None = None
    min_durability: int = 0
    critical: bool = False
    reply_to: str = ""
    checked: bool = False
    stream: StreamPlace | None = None


_Members = tuple[str, str, bytes, int, float | None, Mapping[str, str] | None, int, bool, str, bool, StreamPlace | None]
make_message: Final[Callable[[_Members], Message]] = partial(tuple.__new__, Message)
"""A Message of all its members: calling the type costs twice as much, and each message is one."""


class Receipt(NamedTuple):
    """What an OK says. `accepted_time` is Unix seconds; `connections` how many sockets were given the frame."""

    message_id: str
    sequence: int
    state: int
    durability: int
    connections: int
    duplicate: bool
    accepted_time: float


make_receipt: Final[Callable[[tuple[str, int, int, int, int, bool, float]], Receipt]] = partial(tuple.__new__, Receipt)
"""A Receipt of all its members, as `make_message`."""


class PendingReceipt:
    """A receipt that the store has yet to confirm. Settles once, with a receipt or an error."""

    __slots__ = ("_callbacks", "error", "receipt")

    def __init__(self) -> None:
        self.receipt: Receipt | None = None
        self.error: SidecarError | None = None
        self._callbacks: tuple[Callable[[PendingReceipt], None], ...] = ()

    def add_done_callback(self, callback: Callable[[PendingReceipt], None]) -> None:
        """Call `callback` when settled; at once if it is."""
        if self.receipt is not None or self.error is not None:
            callback(self)
        else:
            self._callbacks += (callback,)

    def settle(self, receipt: Receipt | None, error: SidecarError | None) -> None:
        """Fix the outcome and tell whoever waits."""
        self.receipt, self.error = receipt, error
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(self)

    def as_duplicate(self) -> PendingReceipt:
        """The same outcome for a repeat of the message that came before the first was confirmed."""
        repeat = PendingReceipt()

        def follow(first: PendingReceipt) -> None:
            receipt = first.receipt
            duplicate = None if receipt is None else receipt._replace(duplicate=True, connections=0)
            repeat.settle(duplicate, first.error)

        self.add_done_callback(follow)
        return repeat


def check_message(message: Message, max_message_bytes: int, *, names_known: bool = False) -> None:
    """Raise BadRequest unless the message keeps every rule. `names_known`: its event_type, reply_to and stream_id are
    those of a message that has passed.

    A JSON payload is parsed whole (one RFC 8259 value): it is spliced into the frame as it is, and unread it could
    forge the envelope.
    """
    message_id, event_type, payload, content_type, ttl_s, headers, _, _, reply_to, _, stream = message
    if len(payload) > max_message_bytes:
        raise BadRequest("message.payload", "longer than limits.max_message_bytes")
    if stream is not None and stream.position > MAX_STREAM_INDEX:
        raise BadRequest("message.stream.index", "at most 2^53 - 1")
    if content_type == _JSON:
        # The last chunk of a stream may say nothing.
        silent = not payload and stream is not None and stream.state is not StreamState.OPEN
        if not silent and not is_json(payload):
            raise BadRequest("message.payload", "not one JSON value (RFC 8259)")
    else:
        _check_other_content(message)
    if message_id and not _is_identifier(message_id):
        raise BadRequest("message.message_id", _IDENTIFIER_RULE)
    if not names_known and (event_type or reply_to or stream is not None):
        _check_names(event_type, reply_to, stream)
    if ttl_s is not None and not 0 < ttl_s <= MAX_TTL_S:
        raise BadRequest("message.ttl", "more than 0 and at most one day")
    if headers:
        _check_headers(headers)


def is_json(payload: bytes) -> bool:
    """True when `payload` is exactly one RFC 8259 value: no NaN, no lone surrogate, the parser's own depth limit."""
    try:
        if len(payload) < SMALL_JSON_BYTES:
            orjson.loads(payload)
        else:
            parse_json(payload)
    except orjson.JSONDecodeError:
        return False
    return True


def parse_json(text: bytes | str) -> object:
    """orjson.loads without the cyclic collector, for the loop's thread. Raises orjson.JSONDecodeError.

    A document has no cycles, but each few hundred of its lists would bring on a pass over all that the process holds.
    """
    if len(text) < SMALL_JSON_BYTES or not gc.isenabled():
        return orjson.loads(text)
    gc.disable()
    try:
        return orjson.loads(text)
    finally:
        gc.enable()


def _check_other_content(message: Message) -> None:
    if message.critical:
        raise BadRequest("message.critical", "a critical event is JSON")
    if message.content_type == ContentType.TEXT:
        try:
            message.payload.decode()
        except UnicodeDecodeError:
            raise BadRequest("message.payload", "not UTF-8") from None
    elif message.content_type != ContentType.BINARY:
        raise BadRequest("message.content_type", "unknown content type")


def _check_names(event_type: str, reply_to: str, stream: StreamPlace | None) -> None:
    if event_type and not _is_identifier(event_type):
        raise BadRequest("message.event_type", _IDENTIFIER_RULE)
    if reply_to and not _is_identifier(reply_to):
        raise BadRequest("message.reply_to", _IDENTIFIER_RULE)
    if stream is not None and not _is_identifier(stream.stream_id):
        raise BadRequest("message.stream.stream_id", _IDENTIFIER_RULE)


def _check_headers(headers: Mapping[str, str]) -> None:
    if len(headers) > MAX_HEADERS:
        raise BadRequest("message.headers", f"more than {MAX_HEADERS}")
    for name, value in headers.items():
        if not _is_identifier(name):
            raise BadRequest("message.headers", f"a name is {_IDENTIFIER_RULE}")
        if len(value) > MAX_HEADER_VALUE_CHARACTERS:
            raise BadRequest("message.headers", f"a value is at most {MAX_HEADER_VALUE_CHARACTERS} characters")


def fingerprint(message: Message) -> bytes:
    """16 bytes that two messages share only when they are the same for promise 4.

    Covers event_type, content_type, payload, critical and reply_to; stable across processes.
    """
    head = f"{message.event_type}\0{int(message.content_type)}\0{int(message.critical)}\0{message.reply_to}\0"
    digest = blake2b(head.encode(), digest_size=16)
    digest.update(message.payload)
    return digest.digest()
