"""One manager beside a simple model of it: what is appended, confirmed, kept, and on the primaries' wire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from sidecar.core.errors import ErrorReason
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES, PendingReceipt, Receipt
from sidecar.core.outbox import OutboxLimits
from tests.support.core import Core
from tests.support.doubles import RecordingSocket

TTL_S = 10.0
LIMITS = Limits(
    connections_per_manager=3,
    # Nothing ends but messages, whatever time passes.
    idle_timeout_s=inf,
    pong_timeout_s=inf,
    slow_consumer_timeout_s=inf,
    queued_bytes_per_user=6 * (MESSAGE_OVERHEAD_BYTES + 4),
    outbox=OutboxLimits(
        max_messages=6,
        max_bytes=5 * (MESSAGE_OVERHEAD_BYTES + 8),
        ttl_s=TTL_S,
        critical_reserve=2,
        critical_reserve_bytes=2 * (MESSAGE_OVERHEAD_BYTES + 8),
        resume_window_s=inf,
    ),
)


@dataclass
class Sent:
    """A message as the model knows it, from the append on."""

    sequence: int
    payload: bytes
    critical: bool
    expires_at: float
    accepted: float
    message_id: str
    fingerprint: tuple[bytes, bool]
    outcome: Receipt | PendingReceipt

    @property
    def size(self) -> int:
        return len(self.payload) + MESSAGE_OVERHEAD_BYTES


@dataclass
class Screen:
    """A mirror, and what it must have been given."""

    socket: RecordingSocket
    expected: list[int] = field(default_factory=list)


class Lane:
    """Hears of outcomes; keeps what it was told is lost."""

    def __init__(self) -> None:
        self.lost: list[int] = []

    def acknowledged(self, sequence: int) -> None:
        """Nothing that anybody asks for."""

    def dropped(self, first: int, last: int) -> None:
        self.lost.extend(range(first, last + 1))


class Modelled:
    """See the module. `manager` has had nothing yet."""

    def __init__(self, core: Core, manager: IsolatedWebSocketManager) -> None:
        self.core = core
        self.manager = manager
        self.primary = core.attach(manager)
        self.sockets: list[RecordingSocket] = [self.primary]  # every primary there ever was: their frames are one run
        self.attached = True
        self.mirrors: list[Screen] = []
        self.sent: dict[int, Sent] = {}
        self.kept: set[int] = set()
        self.unconfirmed: list[Sent] = []
        self.by_id: dict[str, Sent] = {}
        self.confirmed = self.acknowledged = 0
        self.ever_acknowledged = False
        self.accepted = self.refused = 0
        self.lane = Lane()
        self.listening = True
        manager.listen(self.lane)

    @property
    def position(self) -> int:
        return self.manager.outbox.cursor

    @property
    def writing(self) -> bool:
        return self.attached and self.primary.writable

    def kept_of(self, critical: bool) -> list[Sent]:
        return [self.sent[sequence] for sequence in sorted(self.kept) if self.sent[sequence].critical == critical]

    def expire(self, now: float) -> int:
        """What the outbox may have dropped by now, it has dropped when it needs room or writes. The bytes of that."""
        before = self.queued()
        self.kept -= {one.sequence for one in self.kept_of(False) if one.expires_at <= now} & self.confirmed_kept()
        return before - self.queued()

    def over(self, now: float) -> set[int]:
        """What is kept, confirmed and to be written, and should have been dropped by now."""
        kept = {sequence for sequence in self.confirmed_kept() if sequence > self.position}
        return {sequence for sequence in kept if self.sent[sequence].expires_at <= now}

    def confirmed_kept(self) -> set[int]:
        return {sequence for sequence in self.kept if sequence <= self.confirmed}

    def has_room(self, size: int, kept: list[Sent]) -> bool:
        limits = LIMITS.outbox
        return len(kept) < limits.max_messages and sum(one.size for one in kept) + size <= limits.max_bytes

    def queued(self) -> int:
        return sum(self.sent[sequence].size for sequence in self.kept)

    def refusal_of(self, size: int, critical: bool, both: Iterable[Modelled], now: float) -> ErrorReason | None:
        """Decide as the contract says, and let go what must give way. `both` are the user's."""
        over_user = sum(one.queued() for one in both) + size - LIMITS.queued_bytes_per_user
        if over_user > 0:
            for one in both:
                over_user -= one.expire(now)
        if critical:
            reserve = self.kept_of(True)
            total = sum(one.size for one in reserve) + size
            if len(reserve) >= LIMITS.outbox.critical_reserve or total > LIMITS.outbox.critical_reserve_bytes:
                return ErrorReason.OUTBOX_FULL
        if over_user <= 0 and (critical or self.has_room(size, self.kept_of(False))):
            return None
        over_user -= self.expire(now)
        left = self.left_over(size, critical, over_user)
        if left is None:
            full = self.left_over(size, critical, 0) is None
            return ErrorReason.OUTBOX_FULL if full else ErrorReason.USER_LIMIT
        self.kept -= {one.sequence for one in self.kept_of(False)} - {one.sequence for one in left}
        return None

    def left_over(self, size: int, critical: bool, over_user: int) -> list[Sent] | None:
        """The ordinary messages left when enough gave way; None when not enough may."""
        kept = self.kept_of(False)
        while over_user > 0 or not (critical or self.has_room(size, kept)):
            may_go = (self.writing or not self.ever_acknowledged) and kept and kept[0].sequence <= self.position
            if not may_go:
                return None
            over_user -= kept.pop(0).size
        return kept

    def fall_back(self) -> None:
        for one in self.unconfirmed:
            self.kept.discard(one.sequence)
            del self.sent[one.sequence]
            if self.by_id.get(one.message_id) is one:
                del self.by_id[one.message_id]
        self.refused += len(self.unconfirmed)
        self.unconfirmed.clear()

    def confirm(self, one: Sent) -> None:
        self.confirmed = one.sequence
        self.accepted += 1
        for screen in self.mirrors:
            if screen.socket.closed_with is None:
                screen.expected.append(one.sequence)

    def snapshot(self) -> tuple[object, ...]:
        outbox = self.manager.outbox
        wire = [len(socket.frames) for socket in self.sockets]
        return outbox.head, outbox.confirmed, outbox.cursor, outbox.acknowledged, outbox.queued_bytes, wire
