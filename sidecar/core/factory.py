"""The only place that creates, finds and ends managers. It holds no message state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

from sidecar.core.agents import AgentRegistry
from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.errors import ErrorReason, ManagerGone, ResourceExhausted, Unavailable
from sidecar.core.limits import UserLevelResourceManager
from sidecar.core.manager import IsolatedWebSocketManager, ManagerPorts
from sidecar.core.message import Instant
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import FactoryStatistics, SecurityCounters

if TYPE_CHECKING:
    from sidecar.core.identity import UserExecutionContext, UserIdentity
    from sidecar.core.limits import Limits, UserAccount
    from sidecar.core.ports import Clock, Encoder, OutboxStore, OwnerDirectory, Randomness
    from sidecar.core.stored import RestoredContext
    from sidecar.core.writes import WriteBatch


class WebSocketManagerFactory:
    """Creates, finds, sweeps and ends managers; each call is one synchronous step, so limits hold at every instant."""

    def __init__(
        self,
        limits: Limits,
        *,
        store: OutboxStore,
        owners: OwnerDirectory,
        clock: Clock,
        counters: SecurityCounters,
        randomness: Randomness,
        writes: WriteBatch,
        agents: AgentRegistry | None = None,
    ) -> None:
        self.limits = limits
        self.agents = agents or AgentRegistry(randomness)
        self.writes = writes
        self.draining = False
        self._resources = UserLevelResourceManager(limits)
        self._ports = ManagerPorts(self._resources, store, self.agents, self._forget, self._schedule, self.writes)
        self._owners = owners
        self._clock = clock
        self._counters = counters
        self._randomness = randomness
        self._managers: dict[str, IsolatedWebSocketManager] = {}
        self._by_connection_id: dict[str, IsolatedWebSocketManager] = {}
        # By hash: how long a look-up takes tells nothing of any token, since nobody chooses a hash's bytes.
        self._by_resume_digest: dict[bytes, IsolatedWebSocketManager] = {}
        # By key, so that a manager that has ended is not kept until its time would have come.
        self._due: list[tuple[float, str]] = []
        self._created = 0
        self._ended = 0
        self._lifetimes_s = 0.0

    @property
    def survives(self) -> bool:
        """What managers accept outlives the process."""
        return self._ports.store.survives

    def __len__(self) -> int:
        return len(self._managers)

    def __iter__(self) -> Iterator[IsolatedWebSocketManager]:
        return iter(tuple(self._managers.values()))

    def create_manager(
        self,
        context: UserExecutionContext,
        encoder: Encoder,
        at: Instant,
        *,
        ends_with_socket: bool = False,
        resume_digest: bytes = b"",
    ) -> IsolatedWebSocketManager:
        """Make the manager of a new context, in one step with the limit check.

        At the user's limit that user's longest-detached context ends for it (`replaced`). Raises USER_LIMIT when all
        are attached, RATE_LIMITED when the sidecar is full, DRAINING while it drains. `resume_digest` is the SHA-256 of
        its resume token. The store may yet have to keep it: tell nobody of it before a `manager.creation` is settled.
        """
        if self.draining:
            raise Unavailable(ErrorReason.DRAINING, retry_after_s=5.0)
        if len(self._managers) >= self.limits.max_managers:
            raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=5.0)
        self._make_way(context.identity, at)
        manager = self._make(context, encoder, at, ends_with_socket=ends_with_socket, resume_digest=resume_digest)
        manager.create_stored()
        return manager

    def restore_manager(
        self, context: UserExecutionContext, encoder: Encoder, kept: RestoredContext, at: Instant
    ) -> IsolatedWebSocketManager:
        """Make the manager of a context that a store kept, detached from now on, whatever the limits are by now."""
        manager = self._make(
            context,
            encoder,
            at,
            ends_with_socket=kept.context.ends_with_socket,
            resume_digest=kept.context.resume_digest,
        )
        manager.restore(kept, at)
        return manager

    def find_by_resume_digest(self, digest: bytes) -> IsolatedWebSocketManager | None:
        """The live manager whose resume token has that SHA-256, whoever's it is; or None."""
        return self._by_resume_digest.get(digest)

    def _make(
        self,
        context: UserExecutionContext,
        encoder: Encoder,
        at: Instant,
        *,
        ends_with_socket: bool,
        resume_digest: bytes,
    ) -> IsolatedWebSocketManager:
        account = self._resources.open_account(context.identity, at.monotonic)
        manager = IsolatedWebSocketManager(
            context,
            self._ports,
            account,
            encoder,
            at,
            epoch=self._owners.claim(context.get_isolation_key()),
            message_id_prefix=f"m-{self._randomness(6)}-",
            ends_with_socket=ends_with_socket,
            resume_digest=resume_digest,
        )
        self._register(manager, account)
        return manager

    def get_manager(self, isolation_key: str) -> IsolatedWebSocketManager:
        """The live manager of that key. Raises MANAGER_GONE; ask only with a key that a verified token names."""
        manager = self._managers.get(isolation_key)
        if manager is None:
            raise ManagerGone
        return manager

    def find_by_connection_id(self, connection_id: str) -> IsolatedWebSocketManager | None:
        """The live manager of that context, or None."""
        return self._by_connection_id.get(connection_id)

    def managers_of_user(self, identity: UserIdentity) -> tuple[IsolatedWebSocketManager, ...]:
        """Every live manager of one user of one tenant."""
        account = self._resources.account_of(identity)
        return () if account is None else tuple(account.managers.values())

    def managers_of_tenant(self, tenant_id: str) -> tuple[IsolatedWebSocketManager, ...]:
        """Every live manager of one tenant."""
        return tuple(manager for manager in self._managers.values() if manager.context.tenant_id == tenant_id)

    def when_written(self, done: Callable[[], None]) -> bool:
        """True: what has ended stays so, whatever becomes of the process. False: `done` is called once that is true."""
        return self._ports.store.when_written(done)

    def cleanup_manager(self, isolation_key: str, close: Close, reason: str, at: Instant) -> int:
        """End that manager and all it holds. Returns how many sockets it had. Raises MANAGER_GONE."""
        manager = self.get_manager(isolation_key)
        count = len(manager.connections)
        self._end(manager, reason, close, at)
        return count

    def enforce_resource_limits(self, identity: UserIdentity, at: Instant) -> tuple[int, int]:
        """End what one user holds over the limits or past its time. Returns (managers, sockets) ended."""
        before = self.managers_of_user(identity)
        sockets = sum(len(manager.connections) for manager in before)
        for manager in before:
            manager.lifecycle.auto_cleanup_expired(at)
        account = self._resources.account_of(identity)
        for manager in self._resources.excess(account) if account is not None else []:
            self._counters.resource_limit_enforcements += 1
            manager.context.audit_log_action(AuditEvent.LIMIT_ENFORCED, limit="managers_per_user")
            self._end(manager, "limit_enforced", catalogued(CloseCode.LIMIT_REACHED), at)
        after = self.managers_of_user(identity)
        return len(before) - len(after), sockets - sum(len(manager.connections) for manager in after)

    def get_factory_stats(self) -> FactoryStatistics:
        """Counters since the start."""
        mean_s = self._lifetimes_s / self._ended if self._ended else 0.0
        return FactoryStatistics(
            total_managers_created=self._created,
            active_managers=len(self._managers),
            managers_cleaned_up=self._ended,
            users_with_active_managers=len(self._resources),
            resource_limit_hits=self._resources.limit_hits,
            average_manager_lifetime_minutes=mean_s / 60.0,
        )

    def tick(self, at: Instant) -> None:
        """Look after every manager whose time has come: each once, even should it name a time that is past."""
        come = []
        while self._due and self._due[0][0] <= at.monotonic:
            come.append(heappop(self._due))
        for due, isolation_key in come:
            manager = self._managers.get(isolation_key)
            if manager is None or manager.scheduled_for != due:
                continue
            manager.scheduled_for = None
            next_due = manager.lifecycle.auto_cleanup_expired(at)
            if not manager.ended:
                self._schedule(manager, next_due)

    def end_all(self, close: Close, reason: str, at: Instant, *, most: int | None = None) -> int:
        """End every manager, or `most` of them. Returns how many are left."""
        for manager in islice(self, most):
            self._end(manager, reason, close, at)
        return len(self._managers)

    def _make_way(self, identity: UserIdentity, at: Instant) -> None:
        account = self._resources.account_of(identity)
        if account is None:
            return
        try:
            replaced = self._resources.to_give_way(account)
        except ResourceExhausted:
            self._counters.resource_limit_enforcements += 1
            raise
        if replaced is not None:
            self._counters.resource_limit_enforcements += 1
            replaced.context.audit_log_action(AuditEvent.LIMIT_ENFORCED, limit="managers_per_user")
            self._end(replaced, "replaced", catalogued(CloseCode.REPLACED), at)

    def _end(self, manager: IsolatedWebSocketManager, reason: str, close: Close, at: Instant) -> None:
        manager.lifecycle.force_cleanup_all(close, reason, at)

    def _register(self, manager: IsolatedWebSocketManager, account: UserAccount) -> None:
        context = manager.context
        self._created += 1
        self._managers[manager.isolation_key] = manager
        self._by_connection_id[context.connection_id] = manager
        if manager.resume_digest:
            self._by_resume_digest[manager.resume_digest] = manager
        account.managers[manager.isolation_key] = manager
        bindings = context.bindings
        bindings.connections = lambda: manager.connections
        bindings.cleanup = lambda reason: self._end(
            manager, reason, catalogued(CloseCode.GOING_AWAY), self._clock.now()
        )
        manager.lifecycle.reschedule()

    def _forget(self, manager: IsolatedWebSocketManager, account: UserAccount, reason: str, at: Instant) -> None:
        """The manager has just ended: nothing leads to it any more."""
        context = manager.context
        del self._managers[manager.isolation_key]
        del self._by_connection_id[context.connection_id]
        self._by_resume_digest.pop(manager.resume_digest, None)
        del account.managers[manager.isolation_key]
        self._resources.release(account)
        self._owners.release(manager.isolation_key)
        context.bindings.connections = tuple
        context.bindings.cleanup = None
        self._ended += 1
        self._lifetimes_s += at.monotonic - manager.created.monotonic
        context.audit_log_action(AuditEvent.CONTEXT_CLOSED, reason=reason, messages=manager.messages_sent)

    def _schedule(self, manager: IsolatedWebSocketManager, due: float) -> None:
        manager.scheduled_for = due
        heappush(self._due, (due, manager.isolation_key))
        if len(self._due) > 4 * len(self._managers) + 1_024:  # of managers that have ended, and looks put forward
            live = self._managers
            self._due = [(at, key) for at, key in self._due if key in live and live[key].scheduled_for == at]
            heapify(self._due)
