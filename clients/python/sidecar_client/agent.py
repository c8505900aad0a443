"""An agent service: attaches to the sidecar, is told of its users, answers them. Runs no server of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import grpc

from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import AgentEvent, Away, Back, Closed, InboundMessage, Opened
from sidecar_client.agent_loop import AgentLoop
from sidecar_client.agent_stream import Registration, Subscription
from sidecar_client.client import AsyncSidecarClient
from sidecar_client.hand_over import HandOver

DEFAULT_CREDITS: Final = 64
DEFAULT_GRACE_S: Final = 10.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[..., Awaitable[None]]
OnContext = TypeVar("OnContext", bound=Callable[[AgentContext], Awaitable[None]])
OnClosed = TypeVar("OnClosed", bound=Callable[[AgentContext, Closed], Awaitable[None]])
OnMessage = TypeVar("OnMessage", bound=Callable[[AgentContext, InboundMessage], Awaitable[None]])

logger = logging.getLogger("sidecar_client")


class Agent:
    """One worker of an agent service. Give it handlers with its decorators and `run` it, or read it:

        async with Agent("answers") as agent:
            async for event in agent: ...

    Events of one context are handled one after the other, those of different contexts side by side, `credits` at most.
    A handler that raises is logged, and nothing else ends for it. An event is acknowledged when its handler begins,
    under load within 10 ms; one that waits behind another of its context when half of `ack_timeout_s` is over. Another
    worker gets it only where this process is lost or stopped before that.
    """

    def __init__(  # noqa: PLR0913 - each has a default, and is said by name
        self,
        service_name: str,
        *,
        subscriptions: Sequence[str | Subscription] | None = None,
        credits: int = DEFAULT_CREDITS,
        ack_timeout_s: float | None = None,
        grace_s: float = DEFAULT_GRACE_S,
        client: AsyncSidecarClient | None = None,
        endpoint: str | None = None,
        service_token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`service_name`: the same for all workers of the service. `subscriptions`: the events that it takes, default
        those that it has handlers for, or `*`, whatever no other service takes. `credits`: events in hand at most.
        `ack_timeout_s`: default the sidecar's. `grace_s`: what handlers have to end in when it stops.

        `client`: one to share, which is not closed; else `endpoint`, `service_token` and `credentials` as for
        `AsyncSidecarClient`. `uniform`: the randomness of the back-off, numbers of [0, 1).
        """
        if credits < 1:
            raise ValueError("credits is at least 1")
        if client is not None and (endpoint, service_token, credentials) != (None, None, None):
            raise ValueError("give either a client, or where one is to connect")
        self._service_name = service_name
        self._subscriptions = subscriptions
        self._credits = credits
        self._ack_timeout_s = ack_timeout_s
        self._grace_s = grace_s
        self._owns_client = client is None
        self._client = client or AsyncSidecarClient(
            endpoint=endpoint, service_token=service_token, credentials=credentials, uniform=uniform
        )
        self._uniform = uniform
        self._handlers: dict[type[AgentEvent], Handler] = {}
        self._message_handlers: dict[str, Handler] = {}
        self._attached: Callable[[], None] = lambda: None
        self._loop: AgentLoop | None = None
        self._reader: HandOver | None = None

    def __repr__(self) -> str:
        return f"Agent({self._service_name!r}, {'idle' if self._loop is None else self._loop.state})"

    # What handles what

    def on_opened(self, handler: OnContext) -> OnContext:
        """A context was made: `async def handler(context)`. Told of every context of the service's tenants."""
        self._on(Opened, handler)
        return handler

    def on_away(self, handler: OnContext) -> OnContext:
        """The user's connection is lost, for now: `async def handler(context)`."""
        self._on(Away, handler)
        return handler

    def on_back(self, handler: OnContext) -> OnContext:
        """The user is connected again: `async def handler(context)`."""
        self._on(Back, handler)
        return handler

    def on_closed(self, handler: OnClosed) -> OnClosed:
        """The context has ended: `async def handler(context, closed)`."""
        self._on(Closed, handler)
        return handler

    @overload
    def on_message(self, event: OnMessage, /) -> OnMessage: ...
    @overload
    def on_message(self, event: str, /) -> Callable[[OnMessage], OnMessage]: ...
    def on_message(self, event: Any, /) -> Any:
        """A message of the user's: `async def handler(context, message)`. Of one event: `@agent.on_message("ask")`."""
        if not isinstance(event, str):
            return self._on_event("*", event)
        return lambda handler: self._on_event(event, handler)

    def _on(self, kind: type[AgentEvent], handler: Handler) -> None:
        if kind in self._handlers:
            raise ValueError(f"{kind.__name__} has a handler")
        self._handlers[kind] = self._checked(handler)

    def _on_attached(self, call: Callable[[], None]) -> None:
        """For the adapter of old services: call it at each attachment, before anything that is told on it."""
        self._attached = call

    def _on_event(self, event: str, handler: Any) -> Any:
        if event in self._message_handlers:
            raise ValueError(f"the event {event!r} has a handler")
        self._message_handlers[event] = self._checked(handler)
        return handler

    def _checked(self, handler: Any) -> Handler:
        if self._loop is not None:
            raise RuntimeError("the agent has been started")
        called = getattr(handler, "__call__", None)  # noqa: B004 - not whether, but what
        if not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)):
            raise TypeError(f"a handler is an `async def` function: {handler!r} would hold up every other user")
        return handler  # type: ignore[no-any-return]

    # Running

    async def run(self, *, stop_on: Iterable[signal.Signals] = ()) -> None:
        """Serve until `stop`, or one of these signals (main thread only). Cancelled, it stops without grace.

        Raises what the sidecar refuses for good: SubscriptionTaken, ServiceDenied, TokenError, BadRequest.
        """
        running = self._start()
        loop = asyncio.get_running_loop()
        stopping: list[asyncio.Task[None]] = []
        for number in (stop_on := tuple(stop_on)):
            loop.add_signal_handler(number, lambda: stopping.append(asyncio.ensure_future(self.stop())))
        try:
            await running.ended()
        except asyncio.CancelledError:
            await self.stop(grace_s=0.0)
            raise
        finally:
            for number in stop_on:
                loop.remove_signal_handler(number)
            await self.stop()
            await asyncio.gather(*stopping)

    def run_forever(self) -> None:
        """Serve as a program of its own, until SIGTERM or SIGINT."""
        asyncio.run(self.run(stop_on=SIGNALS))

    async def __aenter__(self) -> Self:
        """Begin to attach; does not wait for the sidecar."""
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who has left the loop over the events asks for no more of them.
        await self.stop(grace_s=0.0 if self._reader is not None else None)
        if error is None and self._loop is not None:
            self._loop.raise_refusal()

    async def wait_attached(self, timeout_s: float | None = None) -> None:
        """Return when the sidecar has registered this worker. Raises its refusal, or TransportError when time is up."""
        await self._started().wait_attached(timeout_s)

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Detach, let handlers end within the grace, cancel the others. Idempotent, bounded.

        What is not acknowledged, and what comes from now on, other workers of the service have at once; what is, is
        handled here. A handler that is cancelled fails its response streams, so that their users see an end.
        """
        if self._loop is not None:
            await self._loop.stop(self._grace_s if grace_s is None else grace_s)

    def _start(self) -> AgentLoop:
        if self._loop is not None:
            raise RuntimeError("an agent is started once")
        if not self._handlers and not self._message_handlers:
            self._reader = HandOver()
        registration = Registration(self._service_name, self._taken(), self._ack_timeout_s)
        handle = self._handle if self._reader is None else self._reader.handle
        self._loop = AgentLoop(
            self._client,
            registration,
            self._credits,
            handle,
            owns_client=self._owns_client,
            uniform=self._uniform,
            on_attached=self._attached,
            read=self._reader is not None,
        )
        self._loop.start()
        if self._reader is not None:
            self._loop.when_over(self._reader.wake)
        return self._loop

    def _started(self) -> AgentLoop:
        if self._loop is None:
            raise RuntimeError("the agent has not been started")
        return self._loop

    def _taken(self) -> tuple[Subscription, ...]:
        named = self._subscriptions
        if named is None:
            named = tuple(self._message_handlers) or ("*",)
        return tuple(Subscription(each) if isinstance(each, str) else each for each in named)

    # Events

    async def _handle(self, event: AgentEvent) -> None:
        match event:
            case InboundMessage():
                handler = self._message_handlers.get(event.event) or self._message_handlers.get("*")
                if handler is None:
                    logger.warning("no handler takes the event %s", event.event)
                else:
                    await handler(event.context, event)
            case Closed():
                if Closed in self._handlers:
                    await self._handlers[Closed](event.context, event)
            case _:
                if type(event) in self._handlers:
                    await self._handlers[type(event)](event.context)

    def __aiter__(self) -> Self:
        """Read the events instead; asking for the next says that the one before is handled."""
        if self._reader is None:
            raise RuntimeError("an agent with handlers is not read" if self._loop else "enter the agent first")
        return self

    async def __anext__(self) -> AgentEvent:
        """The next event. Raises what the sidecar refuses for good; ends when the agent stops."""
        assert self._reader is not None
        return await self._reader.next(self._started())
