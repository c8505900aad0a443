"""For services that are moving: the methods of the WebSocket manager that one process's users shared, over the sidecar.

    2026-12-01  deprecated: calls that name only a user warn
    2027-03-01  compatibility off by default: those calls are refused
    2027-06-01  removed

A call with a context is safe and does not warn. One without finds the user's context by itself, where there is exactly
one; it is never guessed. docs/migration.md has the way.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Awaitable, Callable, Mapping
from datetime import date
from functools import cache
from types import TracebackType
from typing import Any, Final, Protocol, Self

from sidecar_client.agent import Agent
from sidecar_client.agent_context import AgentContext
from sidecar_client.agent_events import Closed
from sidecar_client.agent_stream import Subscription
from sidecar_client.client import AsyncSidecarClient
from sidecar_client.errors import IsolationViolation, ManagerGone, TokenError, error_from_reason
from sidecar_client.legacy_contexts import AmbiguousUser, GivenContext, UserContexts
from sidecar_client.legacy_survivors import Survivors
from sidecar_client.values import BroadcastScope

__all__ = [
    "COMPATIBILITY_OFF",
    "DEPRECATED",
    "REMOVED",
    "STRICT_VARIABLE",
    "AmbiguousUser",
    "BoundManager",
    "ContextRequired",
    "GivenContext",
    "WebSocketManagerAdapter",
    "get_websocket_manager",
]

DEPRECATED: Final = date(2026, 12, 1)
COMPATIBILITY_OFF: Final = date(2027, 3, 1)
REMOVED: Final = date(2027, 6, 1)
STRICT_VARIABLE: Final = "SIDECAR_LEGACY_STRICT"
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.:@|-]{1,128}")


class Context(Protocol):
    """What a call goes by: a GivenContext, or an agent's AgentContext."""

    @property
    def isolation_key(self) -> str: ...
    @property
    def context_token(self) -> str: ...


Make = Callable[[Context], Awaitable[Any]]
Find = Callable[[UserContexts, str], AgentContext | None]


class ContextRequired(RuntimeError):
    """A call names only a user, in strict mode: which of the user's contexts is meant must be said."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} needs a context: adapter.for_context(isolation_key, context_token), or context=")


class WebSocketManagerAdapter:
    """The old manager's methods. With a context they go there; without, to the user's one context, while that lasts.

    Entered with `async with`, it attaches to the sidecar and is told of its users' contexts from then on. That is what
    calls without a context need, in one process only, as the old manager was; calls with a context need nothing.
    Each time it has attached again it asks which of the contexts that it knows live on, and forgets the others.

    It may be entered again after it was left: with a client of its own made anew, as the environment says by then, and
    knowing no contexts. Entered while it is entered it raises RuntimeError, and stays as it is.
    """

    def __init__(
        self,
        *,
        strict: bool | None = None,
        service_name: str = "legacy",
        client: AsyncSidecarClient | None = None,
        endpoint: str | None = None,
        service_token: str | None = None,
        today: Callable[[], date] = date.today,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`strict`: refuse calls without a context; default $SIDECAR_LEGACY_STRICT (1 or 0), else by the date.

        `client`: one to share, which is not closed; else `endpoint` and `service_token` as for `AsyncSidecarClient`.
        """
        said = environment.get(STRICT_VARIABLE, "")
        if strict is None:
            strict = said == "1" if said in {"0", "1"} else today() >= COMPATIBILITY_OFF
        self.strict = strict
        self._owns_client = client is None
        self._endpoint = endpoint
        self._service_token = service_token
        self._client = client or self._make_client()
        self._service_name = service_name
        self._entered = False
        self._closed = False
        self._agent: Agent | None = None
        self._forget()
        self._sent = 0
        self._failed = 0

    def __repr__(self) -> str:
        return f"WebSocketManagerAdapter({'strict' if self.strict else 'compatible'})"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("the adapter is entered already: enter it once, where the service starts")
        self._entered = True
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, timeout_s: float = 30.0) -> None:
        """Attach, unless strict; after `close` too. Idempotent.

        Raises the sidecar's refusal, TransportError when time is up: `close` then, or wait on by another call.
        """
        if self._closed and self._owns_client:
            self._client = self._make_client()
        self._closed = False
        if self.strict:
            return
        agent = self._agent
        if agent is None:
            agent = self._agent = self._make_agent()
            await agent.__aenter__()
        await agent.wait_attached(timeout_s)

    async def close(self) -> None:
        """Detach, forget the contexts, and close a client of its own. Idempotent."""
        agent, survivors, client = self._agent, self._survivors, self._client
        self._agent, self._entered, self._closed = None, False, True
        self._forget()
        await survivors.close()
        if agent is not None:
            await agent.stop()
        if self._owns_client:
            await client.close()

    def _make_client(self) -> AsyncSidecarClient:
        return AsyncSidecarClient(endpoint=self._endpoint, service_token=self._service_token)

    def _forget(self) -> None:
        """Know no contexts: nobody tells of their ends, and nobody keeps their tokens good."""
        self._contexts = UserContexts()
        self._survivors = Survivors(self._contexts, self._client.get_context)

    def _make_agent(self) -> Agent:
        self._forget()
        contexts = self._contexts
        # It takes no messages; but who attaches must subscribe to something.
        nothing = Subscription(f"{self._service_name}.takes-none")
        agent = Agent(self._service_name, subscriptions=[nothing], client=self._client)

        async def opened(context: AgentContext) -> None:
            contexts.opened(context)

        async def away(context: AgentContext) -> None:
            contexts.away(context)

        async def closed(context: AgentContext, closed: Closed) -> None:
            contexts.closed(context)

        agent.on_opened(opened)
        agent.on_back(opened)
        agent.on_away(away)
        agent.on_closed(closed)
        agent._on_attached(self._survivors.attached)
        return agent

    # With a context

    def for_context(self, isolation_key: str, context_token: str) -> BoundManager:
        """The same methods, all of that context; `user_id` in them is whom you have authenticated."""
        return BoundManager(self, GivenContext(isolation_key, context_token))

    # The old methods

    async def connect_user(self, user_id: str, websocket: Any = None) -> None:
        """Nothing: the sidecar holds the sockets, and tells of them."""
        self._old_call("connect_user")

    async def disconnect_user(self, user_id: str, *, context: Context | None = None) -> bool:
        """End the context; False when there was none. Needs the scope `close`."""
        return await self._call(
            "disconnect_user",
            user_id,
            context,
            lambda found: self._close(user_id, found),
        )

    async def send_to_user(self, user_id: str, message: Any, *, context: Context | None = None) -> bool:
        """Send any JSON value; a `type` in it is the event. False when the context has ended or there is none."""
        return await self._call(
            "send_to_user",
            user_id,
            context,
            lambda found: self._client.send_to_user(
                found.isolation_key,
                found.context_token,
                json=message,
                event_type=_type_of(message),
                expected_user_id=user_id,
            ),
        )

    async def emit_critical_event(
        self, user_id: str, event_type: str, data: Any, *, context: Context | None = None
    ) -> bool:
        """Send an event that is never dropped for another. False when the context has ended or there is none."""
        return await self._call(
            "emit_critical_event",
            user_id,
            context,
            lambda found: self._client.emit_critical_event(
                found.isolation_key, found.context_token, event_type, data, expected_user_id=user_id
            ),
        )

    async def broadcast_to_user(self, user_id: str, message: Any, *, context: Context | None = None) -> bool:
        """Send to every context of that user. Needs the scope `broadcast:user`, which a client's token has not."""
        return await self._call(
            "broadcast_to_user",
            user_id,
            context,
            lambda found: self._broadcast(user_id, found, message),
            find=UserContexts.any_of,
        )

    def is_user_connected(self, user_id: str) -> bool:
        """Whether the user has a client now, as far as this process has been told."""
        self._old_call("is_user_connected")
        return bool(self._contexts.connections(user_id))

    def get_connections(self, user_id: str) -> list[str]:
        """The connection_id of each of the user's contexts that has a client now."""
        self._old_call("get_connections")
        return self._contexts.connections(user_id)

    def get_stats(self) -> dict[str, int]:
        """What this process has done and knows; says nothing of any one user."""
        connections = sum(len(self._contexts.connections(user)) for user in self._contexts.users())
        return {
            "connected_users": sum(bool(self._contexts.connections(user)) for user in self._contexts.users()),
            "total_connections": connections,
            "messages_sent": self._sent,
            "messages_failed": self._failed,
        }

    # Within

    async def _close(self, user_id: str, context: Context) -> None:
        await self._check(user_id, context)
        await self._client.close_manager(context.isolation_key, context.context_token)

    async def _broadcast(self, user_id: str, context: Context, message: Any) -> None:
        await self._check(user_id, context)
        await self._client.broadcast(
            context.context_token, BroadcastScope.USER, json=message, event_type=_type_of(message)
        )

    async def _check(self, user_id: str, context: Context) -> None:
        """For calls that carry no user: whose the context is, its token says. Raises IsolationViolation."""
        facts = await self._client.get_context(context.context_token)
        if (facts.context.user_id, facts.isolation_key) != (user_id, context.isolation_key):
            raise error_from_reason("ISOLATION_VIOLATION", "the context is not that user's")

    async def _call(
        self,
        method: str,
        user_id: str,
        context: Context | None,
        make: Make,
        *,
        find: Find = UserContexts.the_one_of,
    ) -> bool:
        if context is not None:
            return await self._counted(_made(make, context))
        self._old_call(method, depth=4)
        known = await self._known(user_id, find)
        return known is not None and await self._counted(self._made_to_known(make, known, user_id, find))

    async def _counted(self, sending: Awaitable[bool]) -> bool:
        self._failed += 1  # until it has been sent
        sent = await sending
        self._failed -= sent
        self._sent += sent
        return sent

    async def _known(self, user_id: str, find: Find) -> AgentContext | None:
        """The user's context; where there are several, once the sidecar has said which of them live."""
        await self._survivors.ask(self._contexts.to_ask(user_id))
        return find(self._contexts, user_id)

    async def _made_to_known(self, make: Make, known: AgentContext | None, user_id: str, find: Find) -> bool:
        """Make the call; again where its context turned out to be gone, nothing was sent, and there is one now."""
        while known is not None:
            try:
                await _by_newest_token(make, known)
            except (ManagerGone, TokenError, IsolationViolation) as error:
                if not self._contexts.refused(known, error):
                    raise
                if not error.definite:
                    return False
            else:
                return True
            known = await self._known(user_id, find)
        return False

    def _old_call(self, method: str, *, depth: int = 3) -> None:
        """A call that names only a user: refused, or warned of, `depth` frames up."""
        if self.strict:
            raise ContextRequired(method)
        if self._agent is None:
            raise RuntimeError("without a context the adapter must be started: async with get_websocket_manager(): ...")
        warnings.warn(
            f"{method} without a context is deprecated since {DEPRECATED}, refused by default from {COMPATIBILITY_OFF} "
            f"and removed on {REMOVED}: use adapter.for_context(isolation_key, context_token)",
            DeprecationWarning,
            stacklevel=depth,
        )


class BoundManager:
    """The old methods, of one context. Made by `for_context`; `user_id` must be the context's, or nothing is sent."""

    def __init__(self, adapter: WebSocketManagerAdapter, context: Context) -> None:
        self._adapter = adapter
        self._context = context

    def __repr__(self) -> str:
        return f"BoundManager(isolation_key={self._context.isolation_key!r})"

    async def send_to_user(self, user_id: str, message: Any) -> bool:
        """See the adapter's."""
        return await self._adapter.send_to_user(user_id, message, context=self._context)

    async def emit_critical_event(self, user_id: str, event_type: str, data: Any) -> bool:
        """See the adapter's."""
        return await self._adapter.emit_critical_event(user_id, event_type, data, context=self._context)

    async def broadcast_to_user(self, user_id: str, message: Any) -> bool:
        """See the adapter's."""
        return await self._adapter.broadcast_to_user(user_id, message, context=self._context)

    async def disconnect_user(self, user_id: str) -> bool:
        """See the adapter's."""
        return await self._adapter.disconnect_user(user_id, context=self._context)


@cache
def get_websocket_manager() -> WebSocketManagerAdapter:
    """The process's one adapter, set up by the environment. Enter it where the service starts, once at a time."""
    return WebSocketManagerAdapter()


async def _by_newest_token(make: Make, known: AgentContext) -> None:
    await known.call(lambda token: make(GivenContext(known.isolation_key, token)))


async def _made(make: Make, context: Context) -> bool:
    """Make the call to a context that was given; False when that has ended."""
    try:
        await make(context)
    except ManagerGone:
        return False
    return True


def _type_of(message: Any) -> str:
    """What an old client dispatches on, where it can be an event's name."""
    kind = message.get("type") if isinstance(message, dict) else None
    return kind if isinstance(kind, str) and _IDENTIFIER.fullmatch(kind) else ""
