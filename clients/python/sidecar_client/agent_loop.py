"""What an agent does while it runs: attach, again after every break; take events in; stop in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakValueDictionary

import grpc

from sidecar.api.v1 import agent_service_pb2 as pb
from sidecar_client.agent_context import AgentContext, AgentPorts
from sidecar_client.agent_events import AgentEvent, Away, Back, Closed, InboundMessage, Opened
from sidecar_client.agent_memory import AgentMemory
from sidecar_client.agent_stream import HALF_CLOSE_TIMEOUT_S, AgentStream, Registration
from sidecar_client.back_off import BackOff
from sidecar_client.calls import user_context_from
from sidecar_client.client import AsyncSidecarClient
from sidecar_client.dispatch import Dispatcher
from sidecar_client.errors import Internal, TransportError
from sidecar_client.sender import is_passing
from sidecar_client.sender_core import StreamCancellation
from sidecar_client.token_refresh import TokenRefresh, wait_until
from sidecar_client.values import ContentType

BASE_S: Final = 0.1
CAP_S: Final = 10.0
STABLE_S: Final = 5.0
"""An attachment that lived so long was a success: the back-off begins again."""
_CONTENT_TYPES: Final = {int(each): each for each in ContentType}

logger = logging.getLogger("sidecar_client")


class AgentLoop:
    """One running agent. Started once."""

    def __init__(
        self,
        client: AsyncSidecarClient,
        registration: Registration,
        credits: int,
        handle: Callable[[AgentEvent], Awaitable[None]],
        *,
        owns_client: bool,
        uniform: Callable[[], float],
        on_attached: Callable[[], None] = lambda: None,
        read: bool = False,
    ) -> None:
        """`on_attached` is called at each attachment, before anything that is told on it.

        `read`: `handle` only keeps events for a reader, who says of each that it has `begun`.
        """
        self._client = client
        self._owns_client = owns_client
        self._registration = registration
        self._credits = credits
        self._back_off = BackOff(BASE_S, CAP_S, uniform)
        self._memory = AgentMemory()
        self._dispatcher = Dispatcher(handle, self._on_room, self._acknowledge, registration.patience_s, read=read)
        self._sender = client.sender(on_stream_cancelled=self._on_stream_cancelled)
        now = asyncio.get_running_loop().time
        self._now = now
        self._ports = AgentPorts(client, self._sender, now)
        self._refresh = TokenRefresh(client.refresh_context_token, now, wait_until)
        self._contexts: WeakValueDictionary[str, AgentContext] = WeakValueDictionary()
        self._stream: AgentStream | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attached = asyncio.Event()
        self._on_attached = on_attached
        self._stopping = False
        self._attaching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._stop: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """For people."""
        if self._stopping:
            return "stopping"
        return "attached" if self._attached.is_set() else "attaching"

    @property
    def over(self) -> bool:
        """Nothing more will come: it was refused, or what it had taken when it was stopped is handled."""
        return self._over.done()

    def start(self) -> None:
        """Begin to attach."""
        self._attaching = asyncio.create_task(self._attach())
        self._attaching.add_done_callback(self._on_attaching_done)
        self._refreshing = asyncio.create_task(self._refresh.run())

    def when_over(self, call: Callable[[], None]) -> None:
        """Call it when no further event will come."""
        self._over.add_done_callback(lambda _: call())

    def _on_attaching_done(self, _: asyncio.Task[None]) -> None:
        if not self._stopping:  # else what it has taken is still handled
            self._end_events()

    def _end_events(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def ended(self) -> None:
        """Return when no further event will come. Raises the sidecar's refusal. Cancelled, it goes on."""
        await asyncio.wait({self._over})
        self.raise_refusal()

    def raise_refusal(self) -> None:
        """Raise what the sidecar refused for good, if it did."""
        task = self._attaching
        if task is not None and task.done() and not task.cancelled():
            task.result()

    async def wait_attached(self, timeout_s: float | None) -> None:
        """Return when registered. Raises the refusal, or TransportError when time is up."""
        assert self._attaching is not None
        waiting = asyncio.ensure_future(self._attached.wait())
        try:
            await asyncio.wait({waiting, self._attaching}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            self.raise_refusal()
            if not self._attached.is_set():
                raise TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the sidecar has not registered the agent")
        finally:
            waiting.cancel()

    # Attaching

    async def _attach(self) -> None:
        """One Attach call after the other. Raises what no further one would change."""
        while True:
            began = self._now()
            stream = self._stream = self._open()
            # From here to its first frame nothing is awaited: what is finished later is a credit more.
            error = await stream.run(self._registration.frame(max(0, self._credits - len(self._dispatcher))))
            self._stream = None
            self._attached.clear()
            self._give_back()
            if error is None or self._stopping:  # what others were left must not come back
                return
            if not (is_passing(error) or isinstance(error, Internal)):
                logger.error("the agent is refused: %s", error)
                raise error
            # Once a break is news.
            level = logging.DEBUG if self._back_off.tries else logging.WARNING
            logger.log(level, "not attached: %s; attaching again", error.reason or error.code.name)
            if self._now() - began >= STABLE_S:
                self._back_off.reset()
            await asyncio.sleep(self._back_off.next_s(at_least_s=error.retry_after_s or 0.0))

    def _open(self) -> AgentStream:
        stream: AgentStream
        stream = AgentStream(
            self._client._attach(),
            self._on_registered,
            lambda frame: self._on_event(stream, frame),
            self._registration.gather_s,
        )
        return stream

    def _on_registered(self) -> None:
        self._attached.set()
        self._on_attached()

    def _on_room(self) -> None:
        if self._stream is not None and not self._stopping:
            self._stream.credit(1)

    # Events

    def _on_event(self, stream: AgentStream, frame: pb.AttachResponse.Event) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "cancelled":
            cancelled = frame.cancelled
            self._cancel(frame.isolation_key, cancelled.stream_id, cancelled.message_id)
            return
        if self._stopping:
            return  # it was under way when this worker left: not acknowledged, it goes to another
        delivery_id = frame.delivery_id
        event = _event_from(frame, kind, self._context_of(frame))
        if event is None or not self._memory.is_new(delivery_id, event, redelivered=frame.redelivered):
            self._dispatcher.own(frame.isolation_key, delivery_id)
            stream.acknowledge(delivery_id)
            stream.credit(1)
            return
        if isinstance(event, Closed):
            event.context.ended = True
            self._contexts.pop(frame.isolation_key, None)
        self._dispatcher.receive(event, delivery_id, cancelled=self._memory.is_cancelled(event))

    def begun(self, event: AgentEvent) -> None:
        """The reader has that event: it is this process's."""
        self._dispatcher.begun(event)

    def _give_back(self) -> None:
        """Who is not attached holds nothing back that others may have: it comes again, here or to another worker."""
        for each in self._dispatcher.give_back():
            self._memory.forget(each.delivery_id, each.event)

    def _acknowledge(self, delivery_id: str) -> None:
        """While it is not attached nothing is said: the event comes again then, is known, and is acknowledged."""
        if self._stream is not None:
            self._stream.acknowledge(delivery_id)

    def _context_of(self, frame: pb.AttachResponse.Event) -> AgentContext:
        """The context as its holders know it, with the token that came."""
        context = self._contexts.get(frame.isolation_key)
        if context is None:
            context = AgentContext(frame.isolation_key, user_context_from(frame.context), self._ports)
            context.renew(frame.context_token)
            self._contexts[frame.isolation_key] = context
            self._refresh.keep(context)
        else:
            context.renew(frame.context_token)
            self._refresh.renewed(context)
        return context

    def _on_stream_cancelled(self, cancellation: StreamCancellation) -> None:
        self._cancel(*cancellation)

    def _cancel(self, isolation_key: str, stream_id: str, message_id: str) -> None:
        if message_id:
            self._memory.cancelled(isolation_key, message_id)
        self._dispatcher.cancel(isolation_key, stream_id, message_id)

    # The end

    async def stop(self, grace_s: float) -> None:
        """See `Agent.stop`. A second call waits for the first; one with a shorter grace has the handlers end sooner."""
        if self._stop is not None and grace_s <= 0:
            self._dispatcher.give_up()
        if self._stop is None:
            self._stopping = True
            self._stop = asyncio.create_task(self._stop_in_order(grace_s))
        await asyncio.shield(self._stop)

    async def _stop_in_order(self, grace_s: float) -> None:
        """Leave first, so that nobody waits for this worker's grace whom another could answer."""
        self._dispatcher.give_back()
        leaving = asyncio.create_task(self._half_close())
        try:
            await self._dispatcher.finish(grace_s)
        finally:
            self._end_events()
            await asyncio.wait({leaving})
            await _end(self._refreshing)
            if self._owns_client:
                await self._client.close()
            else:
                await self._sender.close()

    async def _half_close(self) -> None:
        """Say what is still to be said, then be attached no more; the sidecar hands on what is not acknowledged."""
        attaching, stream = self._attaching, self._stream
        if attaching is not None and stream is not None and self._attached.is_set():
            stream.leave()
            await asyncio.wait({attaching}, timeout=HALF_CLOSE_TIMEOUT_S)
        await _end(attaching)


async def _end(task: asyncio.Task[None] | None) -> None:
    """Cancel it and wait; how it ended is not asked here."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})


def _event_from(frame: pb.AttachResponse.Event, kind: str | None, context: AgentContext) -> AgentEvent | None:
    """The event as its handlers know it; None for a kind that came after this version."""
    match kind:
        case "opened":
            return Opened(context)
        case "away":
            return Away(context)
        case "back":
            return Back(context)
        case "closed":
            return Closed(context, frame.closed.code, frame.closed.reason)
        case "message":
            message = frame.message
            return InboundMessage(
                context,
                message.message_id,
                message.event_type,
                message.payload,
                _CONTENT_TYPES.get(message.content_type, ContentType.BINARY),
                frame.redelivered,
            )
    return None
