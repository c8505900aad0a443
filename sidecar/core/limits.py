"""Per-user limits, decided in one synchronous step each: managers, sockets, queued bytes, rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.core.errors import ErrorReason, ResourceExhausted
from sidecar.core.identity import UserIdentity
from sidecar.core.outbox import OutboxLimits

if TYPE_CHECKING:
    from sidecar.core.manager import IsolatedWebSocketManager


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound the core decides by. Times in seconds, sizes in bytes; a rate of 0 is no limit."""

    managers_per_user: int = 5
    connections_per_manager: int = 10
    max_managers: int = 100_000
    idle_timeout_s: float = 1800.0
    health_check_interval_s: float = 60.0
    pong_timeout_s: float = 20.0
    slow_consumer_timeout_s: float = 30.0
    max_message_bytes: int = 262_144
    queued_bytes_per_user: int = 16 * 1024 * 1024
    messages_per_second_per_user: float = 0.0
    stream_idle_timeout_s: float = 120.0
    outbox: OutboxLimits = field(default_factory=OutboxLimits)


class TokenBucket:
    """A rate with a burst of one second's worth (at least one)."""

    __slots__ = ("_burst", "_level", "_rate", "_seen")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = self._level = max(rate, 1.0)
        self._seen = now

    def wait(self, now: float, amount: float = 1.0) -> float:
        """The seconds until `amount` may be taken; 0.0 when it may be now."""
        self._level = min(self._burst, self._level + (now - self._seen) * self._rate)
        self._seen = now
        return 0.0 if self._level >= amount else (amount - self._level) / self._rate

    def give_back(self, amount: float = 1.0) -> None:
        """What was taken is not used after all."""
        self._level = min(self._burst, self._level + amount)

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take `amount` and return 0.0, or take nothing and return the seconds until it may be had."""
        level = self._level + (now - self._seen) * self._rate
        self._seen = now
        if level > self._burst:  # noqa: PLR1730 - `min` would be a call more for each frame of a client
            level = self._burst
        if level < amount:
            self._level = level
            return (amount - level) / self._rate
        self._level = level - amount
        return 0.0


class UserAccount:
    """What one user of one tenant holds now."""

    __slots__ = ("bucket", "identity", "managers", "queued_bytes")

    def __init__(self, identity: UserIdentity, bucket: TokenBucket | None) -> None:
        self.identity = identity
        self.managers: dict[str, IsolatedWebSocketManager] = {}
        self.queued_bytes = 0
        self.bucket = bucket

    def drop_expired(self, now: float) -> int:
        """Have each of the user's managers drop what has outlived its ttl. Returns the bytes set free."""
        before = self.queued_bytes
        for manager in tuple(self.managers.values()):
            manager.drop_expired(now)
        return before - self.queued_bytes


class UserLevelResourceManager:
    """The accounts of all users who hold a manager, and the limits they are held to."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.limit_hits = 0
        self._accounts: dict[UserIdentity, UserAccount] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def account_of(self, identity: UserIdentity) -> UserAccount | None:
        """The user's account; None when the user holds nothing."""
        return self._accounts.get(identity)

    def open_account(self, identity: UserIdentity, now: float) -> UserAccount:
        """The user's account, made if need be. One without a manager is closed with `release`."""
        account = self._accounts.get(identity)
        if account is None:
            rate = self.limits.messages_per_second_per_user
            account = self._accounts[identity] = UserAccount(identity, TokenBucket(rate, now) if rate else None)
        return account

    def to_give_way(self, account: UserAccount) -> IsolatedWebSocketManager | None:
        """None when one more manager fits; else the longest-detached one, to be ended for it.

        Raises USER_LIMIT when all are attached.
        """
        if len(account.managers) < self.limits.managers_per_user:
            return None
        detached = [manager for manager in account.managers.values() if manager.detached_at is not None]
        self.limit_hits += 1
        if not detached:
            raise ResourceExhausted(ErrorReason.USER_LIMIT)
        return min(detached, key=lambda manager: manager.detached_at or 0.0)

    def excess(self, account: UserAccount) -> list[IsolatedWebSocketManager]:
        """The managers over the user's limit, longest detached first, then oldest."""
        over = len(account.managers) - self.limits.managers_per_user
        if over <= 0:
            return []
        ranked = sorted(
            account.managers.values(),
            key=lambda m: (m.detached_at is None, m.detached_at or 0.0, m.created.monotonic),
        )
        return ranked[:over]

    def admit_connection(self, connections: int) -> None:
        """Raise USER_LIMIT when a manager with that many sockets may not have one more."""
        if connections >= self.limits.connections_per_manager:
            self.limit_hits += 1
            raise ResourceExhausted(ErrorReason.USER_LIMIT)

    def admit_rate(self, account: UserAccount, now: float) -> None:
        """Raise RATE_LIMITED unless the user's rate allows one more message; `TokenBucket.take` is what spends it."""
        if account.bucket is not None:
            wait_s = account.bucket.wait(now)
            if wait_s:
                self.limit_hits += 1
                raise ResourceExhausted(ErrorReason.RATE_LIMITED, retry_after_s=wait_s)

    def release(self, account: UserAccount) -> None:
        """Forget an account that holds no manager."""
        if not account.managers:
            self._accounts.pop(account.identity, None)
