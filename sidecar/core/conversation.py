"""What the client of one context and the agent services say to each other beside messages to the client.

Its own messages, what it cancels, its response streams, and what services are told of its coming and going.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sidecar.core.deliveries import Closing, InboundMessage
from sidecar.core.errors import ErrorReason, SidecarError, Unavailable
from sidecar.core.inbox import Inbox, Known, fingerprint_of
from sidecar.core.stored import MessageIdentity, StoredInbound
from sidecar.core.streams import ResponseStreams

if TYPE_CHECKING:
    from sidecar.core.agents import AgentRegistry
    from sidecar.core.deliveries import ContextQueue
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.inbox import Answer
    from sidecar.core.message import Instant
    from sidecar.core.ports import OutboxStore
    from sidecar.core.stored import StoredStream

CancelWatcher = Callable[[str, str], None]
"""Called with (stream_id, reply_to) of what the client cancels; "" for what is not known."""


class Conversation:
    """One manager's. Until it is announced, services hear nothing of its context."""

    __slots__ = ("_agents", "_context", "_inbox", "_store", "_streams", "_watchers", "announced", "ended")

    def __init__(self, context: UserExecutionContext, agents: AgentRegistry, store: OutboxStore) -> None:
        self.announced = self.ended = False
        self._context = context
        self._agents = agents
        self._store = store
        # Made when there is something to keep: most contexts are idle.
        self._inbox: Inbox | None = None
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
        """The context has ended, its primary socket with that code, 0 for none; its streams and its memory go too.

        Idempotent: services are told once.
        """
        if self.announced and not self.ended:
            self._agents.closed(self._context, Closing(code, reason), at)
        self.ended = True
        self._inbox = self._streams = self._watchers = None

    # From the client

    @property
    def inbox(self) -> Inbox:
        """The client's own messages, made with the first."""
        if self._inbox is None:
            self._inbox = Inbox()
        return self._inbox

    def receive(self, message: InboundMessage, at: Instant, answer: Answer) -> None:
        """Queue a client's message for the service that takes it, once the store keeps it; `answer` says what became.

        Raises NO_AGENT, AGENT_BUSY or MESSAGE_ID_REUSED; then nothing was accepted. Messages without an id are all new.
        """
        inbox = self.inbox
        known = inbox.find(message) if message.message_id else None
        if known is not None:
            if known.kept:
                answer(None, True)
            else:
                known.wait(answer)
            return
        queue = self._agents.reserve(self._context, message)
        number = inbox.last_number = inbox.last_number + 1
        identity = MessageIdentity(message.message_id, fingerprint_of(message)) if message.message_id else None
        known = None if identity is None else self._remember(identity, number)
        kept = partial(self._kept, queue, message, known, answer, number, at)
        stored = StoredInbound(number, queue.service, message, identity)
        if self._store.receive(self._context.isolation_key, stored, at, kept):
            kept(None)

    def restore(self, inbound: Sequence[StoredInbound], at: Instant) -> None:
        """What the store kept: ids are known again, what no service had taken waits for its service again."""
        for each in inbound:
            self.inbox.last_number = max(self.inbox.last_number, each.number)
            if each.identity is not None:
                self.inbox.remember(each.identity, each.number, kept=True)
            if each.message is not None:
                self._agents.restore(self._context, each.service, each.message, at, self._taken(each.number))

    def _remember(self, identity: MessageIdentity, number: int) -> Known:
        known, forgotten = self.inbox.remember(identity, number, kept=False)
        if forgotten is not None:
            self._store.forget(self._context.isolation_key, -forgotten)
        return known

    def _kept(  # noqa: PLR0917 - by name a partial takes three times as long
        self,
        queue: ContextQueue,
        message: InboundMessage,
        known: Known | None,
        answer: Answer,
        number: int,
        at: Instant,
        error: Exception | None,
    ) -> None:
        """The store has answered. A context that has ended meanwhile has no client to tell, and no row any more."""
        if self.ended:
            self._agents.release(queue)
            return
        refusal: SidecarError | None = None
        if error is not None:
            refusal = error if isinstance(error, SidecarError) else Unavailable(ErrorReason.STORAGE_UNAVAILABLE)
            self.inbox.forget(message.message_id)
            self._agents.release(queue)
        else:
            self._agents.deliver(queue, message, at, self._taken(number))
        answer(refusal, False)
        if known is not None:
            known.answer(refusal)

    def _taken(self, number: int) -> Callable[[], None]:
        return lambda: self._store.taken(self._context.isolation_key, number)

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
