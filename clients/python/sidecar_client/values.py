"""What callers hand over and are given: plain values with the contract's words and numbers, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class ContentType(IntEnum):
    """How a payload is to be read."""

    JSON = 1
    """Exactly one RFC 8259 value; its bytes reach the client unchanged."""
    TEXT = 2
    """UTF-8 text."""
    BINARY = 3
    """Any bytes."""


class DeliveryState(IntEnum):
    """How far a message has come when the answer is made."""

    QUEUED = 1
    """In the outbox, not yet written."""
    WRITTEN = 2
    """Given to the live primary socket's transport, no more than that."""
    ACKNOWLEDGED = 3
    """The client acknowledged it."""
    DROPPED = 4
    """It expired unwritten, or was announced to the client as part of a gap."""


class Durability(IntEnum):
    """What an accepted message survives."""

    MEMORY = 1
    """Lost when the sidecar ends."""
    DISK = 2
    """In the sidecar's local store, synced to disk."""
    REPLICATED = 3
    """Held by a quorum of the cluster."""


class StreamState(IntEnum):
    """Where a chunk stands in its response stream."""

    OPEN = 1
    """A chunk before the last."""
    END = 2
    """The last chunk."""
    ERROR = 3
    """The last chunk of a stream that failed."""


class BroadcastScope(IntEnum):
    """Whom a broadcast reaches."""

    USER = 1
    """Every context of the token's own user."""
    TENANT = 2
    """Every context of the token's own tenant."""


class Receipt(NamedTuple):
    """What an OK says about a message. `accepted_time` is Unix seconds of the sidecar's clock."""

    message_id: str
    sequence: int
    """The message's place in the order of its connection context: from 1, without holes."""
    state: DeliveryState
    durability: Durability
    connections: int
    """How many sockets were given the message before the answer was made."""
    duplicate: bool
    """It had been accepted before: the first receipt but for the state, and nothing was delivered now."""
    accepted_time: float


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """A message's place in a response stream; `index` is 0 for the first chunk, then rises by one."""

    stream_id: str
    index: int
    state: StreamState = StreamState.OPEN


@dataclass(frozen=True, slots=True)
class UserContext:
    """Who a connection context belongs to. `created_time` is Unix seconds."""

    tenant_id: str
    user_id: str
    session_id: str
    connection_id: str
    request_id: str
    created_time: float
    permissions: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ContextToken:
    """A context token, a secret: it is not printed. `expire_time` is Unix seconds."""

    text: str
    expire_time: float

    def __repr__(self) -> str:
        return f"ContextToken(expire_time={self.expire_time})"


@dataclass(frozen=True, slots=True)
class ContextGrant:
    """What an exchange gives: the token, the isolation key that it opens, and whose it is."""

    isolation_key: str
    token: ContextToken
    context: UserContext


@dataclass(frozen=True, slots=True)
class ContextFacts:
    """What a context token opens. `expire_time` is Unix seconds."""

    isolation_key: str
    context: UserContext
    scopes: tuple[str, ...]
    expire_time: float


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """How many managers took the message (or had before), how many sockets were given it, how many managers refused."""

    managers: int
    connections: int
    refused: int


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """The counters of one manager. Times are Unix seconds, sizes bytes."""

    connections_managed: int
    messages_sent_total: int
    messages_failed_total: int
    last_activity_time: float
    manager_age_seconds: float
    cleanup_scheduled: bool
    outbox_messages: int
    outbox_bytes: int
