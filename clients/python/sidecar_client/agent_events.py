"""What an agent is told of connection contexts, in the words of its handlers; made from the frames of Attach."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sidecar_client.agent_context import AgentContext
from sidecar_client.answering import Answering
from sidecar_client.replies import REPLY_TIMEOUT_S, ReplyStream
from sidecar_client.values import ContentType


@dataclass(frozen=True, slots=True)
class Opened:
    """A context was made: its user is connected."""

    context: AgentContext


@dataclass(frozen=True, slots=True)
class Away:
    """The user's connection is lost; it may come back within the resume window."""

    context: AgentContext


@dataclass(frozen=True, slots=True)
class Back:
    """The user is connected again."""

    context: AgentContext


@dataclass(frozen=True, slots=True)
class Closed:
    """The context has ended: nothing can be sent any more.

    `code`: the WebSocket close code, 0 for no socket. `reason`: the catalogue's name, or what else ended it.
    """

    context: AgentContext
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class InboundMessage:
    """A message of the user's. `id`: the client's own, empty for raw clients; `redelivered`: it may have been handled.

    `cancelled` says whether the client wants no answer any more; a handler is told by asyncio.CancelledError.
    """

    context: AgentContext
    id: str
    event: str
    payload: bytes
    content_type: ContentType
    redelivered: bool
    answering: Answering = field(repr=False, default_factory=Answering)

    @property
    def data(self) -> Any:
        """The JSON value, a str for TEXT, bytes for BINARY."""
        if self.content_type is ContentType.JSON:
            return json.loads(self.payload)
        return self.payload.decode() if self.content_type is ContentType.TEXT else self.payload

    @property
    def cancelled(self) -> bool:
        """Whether the client has said that it wants no answer any more."""
        return self.answering.cancelled

    def reply(
        self, *, event_type: str = "", stream_id: str | None = None, timeout_s: float = REPLY_TIMEOUT_S
    ) -> ReplyStream:
        """A response stream, to be entered with `async with`: ended with the block, failed where that raises.

        `event_type`: of every chunk. `stream_id`: default made up. `timeout_s`: how long a chunk is tried.
        """
        return ReplyStream(
            self.context,
            self.answering,
            reply_to=self.id,
            event_type=event_type,
            stream_id=stream_id,
            timeout_s=timeout_s,
        )


AgentEvent = Opened | Away | Back | Closed | InboundMessage
