"""One manager's life in time: registers its sockets, health-checks them, expires them, disposes of them.

Driven from outside: `auto_cleanup_expired` is called when the time it last returned has come. Monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.events import ContextTokenDue, TokenExpiring
from sidecar.core.message import Instant

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext
    from sidecar.core.limits import Limits
    from sidecar.core.manager import IsolatedWebSocketManager
    from sidecar.core.ports import Socket

WARNING_S: Final = 60.0
"""How long before its end a user token is announced to be expiring, and a context token is replaced."""


class _SocketHealth:
    __slots__ = (
        "blocked_since",
        "context_token_due_at",
        "next_ping_at",
        "pinged_at",
        "socket",
        "token_ends_at",
        "token_expires_at",
        "warned",
    )

    def __init__(self, socket: Socket, next_ping_at: float) -> None:
        self.socket = socket
        self.next_ping_at = next_ping_at
        self.pinged_at: float | None = None
        self.blocked_since: float | None = None
        self.token_ends_at = inf
        self.token_expires_at = 0
        self.warned = False
        self.context_token_due_at = inf


class ConnectionLifecycleManager:
    """See the module. Holds the health of each socket of one manager, and when it must next be looked at."""

    __slots__ = ("_limits", "_manager", "_schedule", "_sockets")

    def __init__(
        self,
        manager: IsolatedWebSocketManager,
        limits: Limits,
        schedule: Callable[[IsolatedWebSocketManager, float], None],
    ) -> None:
        self._manager = manager
        self._limits = limits
        self._schedule = schedule
        self._sockets: dict[str, _SocketHealth] = {}

    def register_connection(self, socket: Socket, token_expires_at: int, at: Instant) -> None:
        """Watch a socket whose user token ends at `token_expires_at` (Unix seconds)."""
        self._sockets[socket.attach_id] = _SocketHealth(socket, at.monotonic + self._limits.health_check_interval_s)
        self.token_refreshed(socket.attach_id, token_expires_at, at)

    def token_refreshed(self, attach_id: str, token_expires_at: int, at: Instant) -> None:
        """The socket's user token now ends then (Unix seconds); turned to the monotonic clock once, here."""
        health = self._sockets.get(attach_id)
        if health is not None:
            health.token_expires_at = token_expires_at
            health.token_ends_at = at.monotonic + (token_expires_at - at.unix)
            health.warned = False
            self.reschedule()

    def context_token_minted(self, attach_id: str, expires_at: int, at: Instant) -> None:
        """The client holds a context token until then (Unix seconds); ask for another before it ends."""
        health = self._sockets.get(attach_id)
        if health is not None:
            remaining_s = expires_at - at.unix
            health.context_token_due_at = at.monotonic + max(remaining_s - WARNING_S, remaining_s / 2)
            self.reschedule()

    def pong_received(self, attach_id: str) -> None:
        """The client answered the last ping."""
        health = self._sockets.get(attach_id)
        if health is not None:
            health.pinged_at = None
            self.reschedule()

    def writing_paused(self, attach_id: str, at: Instant) -> None:
        """The socket's transport takes no more for now."""
        health = self._sockets.get(attach_id)
        if health is not None and health.blocked_since is None:
            health.blocked_since = at.monotonic
            self.reschedule()

    def writing_resumed(self, attach_id: str) -> None:
        """The socket's transport takes more again."""
        health = self._sockets.get(attach_id)
        if health is not None and health.blocked_since is not None:
            health.blocked_since = None
            # Nothing is read while writing is paused: its pong, if it came, has not been seen.
            health.pinged_at = None
            self.reschedule()

    def health_check_connection(self, context: UserExecutionContext, attach_id: str, at: Instant) -> Close | None:
        """Ping the socket when it is time; the close it has earned when it is overdue, slow or expired, else None."""
        health = self._sockets.get(attach_id)
        if health is None or context is not self._manager.context:
            return None
        now = at.monotonic
        if now >= health.token_ends_at:
            return catalogued(CloseCode.TOKEN_EXPIRED)
        if health.blocked_since is not None:
            if now >= health.blocked_since + self._limits.slow_consumer_timeout_s:
                return catalogued(CloseCode.SLOW_CONSUMER)
        elif health.pinged_at is not None and now >= health.pinged_at + self._limits.pong_timeout_s:
            return catalogued(CloseCode.PONG_TIMEOUT)
        self._remind(health, now)
        return None

    def auto_cleanup_expired(self, at: Instant) -> float:
        """End what is over: sockets, messages, the context itself. Returns when to call again; inf once ended."""
        manager, limits, now = self._manager, self._limits, at.monotonic
        if manager.ended:
            return inf
        if manager.detached_at is not None and now >= manager.detached_at + limits.outbox.resume_window_s:
            manager.end("resume_window_over", catalogued(CloseCode.GOING_AWAY), at)
            return inf
        silence = manager.end_silent_streams(at)
        if now >= self._idle_at() and not manager.conversation.streaming:
            manager.end("idle", catalogued(CloseCode.IDLE), at)
            return inf
        for attach_id, health in tuple(self._sockets.items()):
            close = self.health_check_connection(manager.context, attach_id, at)
            if close is not None:
                manager.close_connection(health.socket, close, at)
        if manager.ended:  # a raw context ends with its socket
            return inf
        manager.drop_expired(now)
        # One that found no room is tried again at the next look.
        return min(self._next_due(now), max(silence, now + 1.0))

    def force_cleanup_all(self, close: Close, reason: str, at: Instant) -> None:
        """End the context now."""
        self._manager.end(reason, close, at)

    def forget(self, attach_id: str) -> None:
        """The socket is no longer the manager's."""
        self._sockets.pop(attach_id, None)

    def dispose(self) -> None:
        """Forget every socket; the manager has ended."""
        self._sockets.clear()

    def reschedule(self) -> None:
        """Something got an earlier end: have the next look no later than that."""
        self.look_by(self._next_due(None))

    def look_by(self, due: float) -> None:
        """Somebody waits for what happens then: have the next look no later than that."""
        scheduled_for = self._manager.scheduled_for
        if scheduled_for is None or due < scheduled_for:
            self._schedule(self._manager, due)

    def _remind(self, health: _SocketHealth, now: float) -> None:
        if not health.warned and now >= health.token_ends_at - WARNING_S:
            health.warned = True
            health.socket.notify(TokenExpiring(health.token_expires_at))
        if now >= health.context_token_due_at:
            health.context_token_due_at = now + WARNING_S / 4  # asked again should the minting fail
            health.socket.notify(ContextTokenDue())
        if now >= health.next_ping_at and health.pinged_at is None and health.blocked_since is None:
            health.pinged_at = now
            health.next_ping_at = now + self._limits.health_check_interval_s
            health.socket.ping(b"")

    def _next_check(self, health: _SocketHealth) -> float:
        """When the socket's pings are next to be looked at; the next one waits for the pong of the last."""
        if health.blocked_since is not None:
            return health.blocked_since + self._limits.slow_consumer_timeout_s
        if health.pinged_at is not None:
            return health.pinged_at + self._limits.pong_timeout_s
        return health.next_ping_at

    def _idle_at(self) -> float:
        """When it has idled for too long. While it is detached its window counts, and that time is no idleness."""
        manager = self._manager
        if manager.detached_at is not None:
            return inf
        return manager.last_activity.monotonic + manager.away_s + self._limits.idle_timeout_s

    def _next_due(self, now: float | None) -> float:
        manager, limits = self._manager, self._limits
        due = self._idle_at()
        if now is not None and manager.conversation.streaming:
            due = max(due, now + 1.0)
        if manager.detached_at is not None:
            due = min(due, manager.detached_at + limits.outbox.resume_window_s)
        for health in self._sockets.values():
            due = min(due, health.token_ends_at, health.context_token_due_at)
            if not health.warned:
                due = min(due, health.token_ends_at - WARNING_S)
            due = min(due, self._next_check(health))
        if now is None:
            return due
        # Messages come and go too often to reschedule for each: their time is looked at once an interval, and when the
        # outbox is full or written from. Where somebody is to be told, `look_by` has it looked at when it comes.
        expiry = max(manager.outbox.next_expiry(), now + 1.0)
        return min(due, expiry, now + limits.health_check_interval_s)
