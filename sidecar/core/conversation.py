"""What the client of one context and the agent services say to each other beside messages to the client.

Its own messages, what it cancels, its response streams, and what services are told of its coming and going.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.core.deliveries import Closing, InboundMessage
from sidecar.core.inbox import RecentInbound
from sidecar.core.streams import ResponseStreams

if TYPE_CHECKING:
    from sidecar.core.agents import AgentRegistry
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.message import Instant
    from sidecar.core.stored import StoredStream

CancelWatcher = Callable[[str, str], None]
"""Called with (stream_id, reply_to) of what the client cancels; "" for what is not known."""


class Conversation:
    """One manager's. Until it is announced, services hear nothing of its context."""

    __slots__ = ("_agents", "_context", "_inbound", "_streams", "_watchers", "announced")

    def __init__(self, context: UserExecutionContext, agents: AgentRegistry) -> None:
        self.announced = False
        self._context = context
        self._agents = agents
        # Made when there is something to keep: most contexts are idle.
        self._inbound: RecentInbound | None = None
        self._streams: ResponseStreams | None = None
        self._watchers: set[CancelWatcher] | None = None

    # Coming and going

    def announce(self, at: Instant) -> None:
        """The client knows of its context: services are told that it is open."""
        self.announced = True
        self._agents.opened(self._context, at)

    def left(self, at: Instant, *, may_come_back: bool) -> None:
        """The primary socket is gone."""
        if self.announced and may_come_back:
            self._agents.away(self._context, at)

    def back(self, at: Instant) -> None:
        """There is a primary socket again."""
        if self.announced:
            self._agents.back(self._context, at)

    def end(self, code: int, reason: str, at: Instant) -> None:
        """The context has ended, its primary socket with that code, 0 for none; its streams and its memory go too."""
        if self.announced:
            self._agents.closed(self._context, Closing(code, reason), at)
        self._inbound = self._streams = self._watchers = None

    # From the client

    def receive(self, message: InboundMessage, at: Instant) -> bool:
        """Queue a client's message for the service that takes it; True when it was accepted before.

        Raises NO_AGENT, AGENT_BUSY or MESSAGE_ID_REUSED; then nothing was accepted. Messages without an id are all new.
        """
        if not message.message_id:
            self._agents.submit(self._context, message, at)
            return False
        if self._inbound is None:
            self._inbound = RecentInbound()
        if self._inbound.is_known(message):
            return True
        self._agents.submit(self._context, message, at)
        self._inbound.remember(message)
        return False

    def cancel(self, stream_id: str | None, message_id: str | None) -> bool:
        """The client wants no more of a stream, or of the answer to its message: tell whoever sends it.

        False for a repeat, and for a stream that is over.
        """
        told = self.streams.cancel(stream_id, message_id)
        for stream, reply_to in told:
            self._agents.cancelled(self._context, stream, reply_to)
            for watcher in tuple(self._watchers or ()):
                watcher(stream, reply_to)
        return bool(told)

    def watch_cancels(self, watcher: CancelWatcher) -> None:
        """Tell `watcher` of every cancel from now on."""
        if self._watchers is None:
            self._watchers = set()
        self._watchers.add(watcher)

    def unwatch_cancels(self, watcher: CancelWatcher) -> None:
        """Tell it no more. Idempotent."""
        if self._watchers is not None:
            self._watchers.discard(watcher)

    # Response streams

    @property
    def streams(self) -> ResponseStreams:
        """The response streams, made with the first."""
        if self._streams is None:
            self._streams = ResponseStreams()
        return self._streams

    @property
    def streaming(self) -> bool:
        """A response stream is open: the context is not idle."""
        return self._streams is not None and self._streams.any_open

    def stored_streams(self) -> tuple[StoredStream, ...]:
        """What a store keeps of the streams."""
        return () if self._streams is None else self._streams.stored()
