"""What a user's connection hands to its consumer, in order; and what it takes to come back to a context later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """A message's place in a response stream; `state` is `open`, `end` or `error`."""

    id: str
    index: int
    state: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `data`: the JSON value, a str for `text`, bytes for `binary`.

    `sequence` rises by one from message to message of one `connection_id`; what is missing is said by a `Gap`.
    """

    sequence: int
    id: str
    event: str
    content_type: str
    data: Any
    critical: bool
    reply_to: str
    stream: StreamChunk | None
    headers: Mapping[str, str]
    connection_id: str


@dataclass(frozen=True, slots=True)
class Gap:
    """In the place of messages that could not be kept: `first` to `last`, and why.

    `reason`: `expired`, `evicted`, `acknowledged` or `lost`.
    """

    first: int
    last: int
    reason: str
    connection_id: str


@dataclass(frozen=True, slots=True)
class ContextReplaced:
    """The context could not be resumed: this is a fresh one. Its key and token are new, its sequence begins again."""

    connection_id: str
    isolation_key: str


Event = Message | Gap | ContextReplaced


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a later `connect(..., resume=state)` needs, together with a token of the same user. The token is a secret.

    `last_sequence`: what the consumer has dealt with. `attempt`: the highest that was said.
    """

    token: str = field(repr=False)
    last_sequence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the sidecar said in its welcome; sizes in bytes, times in seconds."""

    max_message_bytes: int
    max_inbound_bytes: int
    idle_timeout_s: float
    resume_window_s: float
