"""The ordered, bounded recovery queue of one manager: sequences from 1 without holes.

Four positions, acknowledged <= cursor <= confirmed <= head:
acknowledged (the client said so), cursor (given to the primary's transport, or announced as a gap),
confirmed (the store keeps it), head (the last sequence handed out).
The cursor is below what is acknowledged only after a client came back with less than it once had; what it acknowledged
is then announced to it as a gap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from sidecar.core.errors import ErrorReason, ResourceExhausted
from sidecar.core.gaps import GapReason, Gaps, Hole
from sidecar.core.message import MAX_TTL_S, DeliveryState
from sidecar.core.overdue import Overdue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.core.message import Instant, StreamPlace
    from sidecar.core.stored import StoredGap, StoredMessage, StoredState


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """The bounds of one outbox; sizes in bytes (payload + 256 each), times in seconds."""

    max_messages: int = 10_000
    max_bytes: int = 2 * 1024 * 1024
    ttl_s: float = 120.0
    critical_reserve: int = 100
    critical_reserve_bytes: int = 1024 * 1024
    resume_window_s: float = 120.0


class OutboxEntry:
    """One kept message: its frame, encoded once, and what decides how long it stays."""

    __slots__ = ("critical", "expires_at", "frame", "kept", "sequence", "size", "stream")

    def __init__(self, sequence: int, frame: bytes, size: int, expires_at: float, critical: bool) -> None:
        self.kept = True
        self.sequence = sequence
        self.frame = frame
        self.size = size
        self.expires_at = expires_at
        self.critical = critical
        self.stream: StreamPlace | None = None


class Outbox:
    """See the module. Every method is synchronous; sizes are bytes, times monotonic seconds."""

    __slots__ = (
        "_critical",
        "_critical_bytes",
        "_deadlines",
        "_gaps",
        "_in_time",
        "_lost",
        "_ordinary",
        "_overdue",
        "acknowledged",
        "confirmed",
        "cursor",
        "dropped",
        "entries",
        "ever_acknowledged",
        "head",
        "limits",
        "ordinary_bytes",
        "promised",
        "uncertain",
    )

    def __init__(self, limits: OutboxLimits) -> None:
        self.limits = limits
        self.head = self.confirmed = self.cursor = self.acknowledged = self.promised = 0
        self.uncertain = 0
        """Up to here a client may have been written to by a process that is no more; it will say when it comes back."""
        self.ever_acknowledged = False
        self.ordinary_bytes = 0
        self.entries: dict[int, OutboxEntry] = {}
        self._critical: dict[int, OutboxEntry] = {}
        self._critical_bytes = 0
        # The entries again, in the orders in which they leave. What left another way stays behind as `not kept` until
        # `_compact` sweeps it out (which leaves no deque with such a front), for finding a dict's first live key is
        # not constant time.
        # Made with the first message: empty they would be a tenth of what an idle context takes up.
        self._ordinary: deque[OutboxEntry] | None = None
        # Nearly every message has the default ttl and so expires in the order it came; the others go on the heap. Until
        # there is one of those this is None: what it would hold is what `_ordinary` does.
        self._in_time: deque[OutboxEntry] | None = None
        self._deadlines: list[tuple[float, int, OutboxEntry]] = []
        self._overdue: Overdue | None = None
        self._gaps = Gaps()
        self._lost: list[tuple[int, int]] | None = None
        self.dropped: list[int] | None = None
        """Gathers the sequences that are dropped, where a store keeps rows of them."""

    @property
    def queued_bytes(self) -> int:
        """What is queued, payload + 256 bytes each."""
        return self.ordinary_bytes + self._critical_bytes

    def make_room(self, size: int, critical: bool, yielding: bool, now: float, over_user: int = 0) -> int:
        """Raise OUTBOX_FULL unless `size` more bytes fit, after what expired has gone and written messages gave way.

        They do when `yielding`: the client is attached and its writer runs, or it never acknowledged anything. So much
        gives way that the user, who would be `over_user` bytes over the limit, is within it too, or USER_LIMIT is
        raised. None gives way for a message that is refused all the same; what has expired goes whatever becomes of it.
        Returns the bytes set free.
        """
        if critical:
            self._check_reserve(size)
        if over_user <= 0 and (critical or self.fits(size)):
            return 0
        freed = self.drop_expired(now)
        messages, surplus = (0, 0) if critical else self._excess(size)
        chosen = self._giving_way(messages, max(surplus, over_user - freed), yielding)
        if chosen is None:
            full = self._giving_way(messages, surplus, yielding) is None
            raise ResourceExhausted(ErrorReason.OUTBOX_FULL if full else ErrorReason.USER_LIMIT, retry_after_s=1.0)
        for entry in chosen:
            freed += entry.size
            self.drop(entry, GapReason.EVICTED)
        return freed

    def append(self, frame: bytes, size: int, now: float, ttl_s: float | None, critical: bool) -> OutboxEntry:
        """Keep one more message as head + 1. Call `make_room` first; raise `confirmed` when the store has it."""
        sequence = self.head = self.head + 1
        if critical:
            entry = OutboxEntry(sequence, frame, size, inf, True)
            self._critical[sequence] = entry
            self._critical_bytes += size
        else:
            entry = OutboxEntry(sequence, frame, size, now + (self.limits.ttl_s if ttl_s is None else ttl_s), False)
            self.ordinary_bytes += size
            ordinary, in_time = self._ordinary, self._in_time
            if ordinary is None:
                ordinary = self._ordinary = deque()
            if ttl_s is not None:
                if in_time is None:
                    self._in_time = ordinary.copy()
                heappush(self._deadlines, (entry.expires_at, sequence, entry))
            elif in_time is not None:
                in_time.append(entry)
            ordinary.append(entry)
        self.entries[sequence] = entry
        return entry

    def fall_back(self) -> int:
        """Forget every unconfirmed append: the head is the last confirmed again, which nobody has seen past.

        Returns the bytes set free.
        """
        freed = 0
        while self.head > self.confirmed:
            entry = self.entries[self.head]
            freed += entry.size
            self._remove(entry)
            self.head -= 1
        # None stays behind in a queue: their sequences come again.
        self._compact(most=0)
        if self._overdue:
            self._overdue.forget_what_left()
        return freed

    def acknowledge(self, sequence: int) -> int:
        """The client has everything up to `sequence` (at most the cursor). Returns the bytes set free."""
        if sequence <= self.acknowledged:
            return 0
        self.ever_acknowledged = True
        self.acknowledged = sequence
        return self.release(sequence)

    def release(self, sequence: int) -> int:
        """Keep nothing up to `sequence` (at most the cursor) any more. Returns the bytes set free."""
        freed = 0
        for entry in [entry for kept, entry in self._critical.items() if kept <= sequence] if self._critical else ():
            freed += entry.size
            self._remove(entry)
        ordinary = self._ordinary
        while ordinary and ordinary[0].sequence <= sequence:
            entry = ordinary.popleft()
            if entry.kept:
                freed += entry.size
                self._remove(entry)
        self._compact()
        return freed

    def rewind(self, sequence: int) -> tuple[bool, int]:
        """A client comes back that has everything up to `sequence` (at most `confirmed`): acknowledge it, go on there.

        Returns whether all that it missed is kept, and the bytes set free. What is kept then does not expire before it
        is written, until `break_promise`.
        """
        self.cursor = max(self.cursor, sequence)
        freed = self.acknowledge(sequence)
        self.cursor = sequence
        self.uncertain = 0
        for first, last in self._gaps.lose_after(max(sequence, self.acknowledged)):
            self._lose(first, last)
        kept = len(self.entries) - (self.head - self.confirmed)
        full = kept == self.confirmed - sequence
        self.promised = self.confirmed if full else 0
        return full, freed

    def break_promise(self) -> None:
        """The socket that was promised what `rewind` found is gone."""
        self.promised = 0

    def drop(self, entry: OutboxEntry, reason: GapReason) -> None:
        """Take one confirmed message out of the order, leaving a hole of that reason."""
        self._remove(entry)
        if self.dropped is not None:
            self.dropped.append(entry.sequence)
        written = max(self.cursor, self.uncertain)
        if entry.sequence > written:
            self._lose(entry.sequence, entry.sequence)
        self._gaps.dig(entry.sequence, reason, self.cursor, written)
        self._compact()

    def announced(self, hole: Hole) -> None:
        """The client was told of that gap: its cursor is behind it."""
        hole.announced = True
        if not hole.lost:
            hole.lost = True
            self._lose(hole.first, hole.last)
        self.cursor = hole.last

    def take_lost(self) -> list[tuple[int, int]]:
        """The runs that were dropped since this was last asked: expired unwritten, or announced as a gap."""
        lost, self._lost = self._lost, None
        return lost or []

    def drop_expired(self, now: float) -> int:
        """Drop every ordinary message whose time is over. Returns the bytes set free.

        One that was promised, or whose append is on its way, stays, and keeps none behind it from its end.
        """
        before = self.ordinary_bytes
        if self._overdue:
            for entry in self._overdue.take(self.cursor, self.promised, self.confirmed):
                self.drop(entry, GapReason.EXPIRED)
        while (in_time := self._by_expiry()) and in_time[0].expires_at <= now:
            entry = in_time[0]
            if entry.sequence > self.confirmed:  # and so is all that stands behind it
                break
            if self._must_stay(entry):
                if self._in_time is None:  # it stays in `_ordinary`, whose order is another now
                    in_time = self._in_time = in_time.copy()
                self._set_aside(in_time.popleft())
                self._compact()
            else:
                self.drop(entry, GapReason.EXPIRED)
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heappop(self._deadlines)[2]
            if entry.kept and self._must_stay(entry):
                self._set_aside(entry)
            elif entry.kept:
                self.drop(entry, GapReason.EXPIRED)
        return before - self.ordinary_bytes

    def next_expiry(self) -> float:
        """When `drop_expired` may next have work, monotonic seconds; may be early, never late; inf for never."""
        if self._overdue:
            return -inf
        in_time = self._by_expiry()
        return min(in_time[0].expires_at if in_time else inf, self._deadlines[0][0] if self._deadlines else inf)

    def gap_at(self, sequence: int) -> Hole:
        """The hole from `sequence` on, to be announced."""
        if sequence <= self.acknowledged:
            return Hole(sequence, self.acknowledged, GapReason.ACKNOWLEDGED, announced=True, lost=True)
        return self._gaps.begin_at(sequence, self.confirmed, self.entries, self.cursor)

    def state_of(self, sequence: int) -> DeliveryState:
        """How far the message of that sequence has come, as of now."""
        hole = self._gaps.covering(sequence)
        written = max(self.cursor, self.acknowledged, self.uncertain)
        if hole is not None and (hole.announced or hole.lost or sequence > written):
            return DeliveryState.DROPPED
        if sequence <= self.acknowledged:
            return DeliveryState.ACKNOWLEDGED
        # What gave way though it may have been written is not waiting any more.
        return DeliveryState.WRITTEN if sequence <= self.cursor or hole is not None else DeliveryState.QUEUED

    def gaps(self) -> tuple[StoredGap, ...]:
        """Every run that is not kept any more, in order."""
        return tuple(self._gaps)

    def restore(self, state: StoredState, messages: Sequence[StoredMessage], at: Instant) -> None:
        """Be as the store kept it. Nobody is attached: what is not acknowledged is to be written again."""
        self.acknowledged = self.cursor = state.acknowledged
        self.ever_acknowledged = state.acknowledged > 0
        self.head = self.confirmed = state.head
        self._gaps.restore(state.gaps)
        for message in messages:
            if message.frame is not None and message.sequence > state.released:
                ttl_s = min(max(message.expires_at - at.unix, 0.0), MAX_TTL_S)
                self.head = message.sequence - 1
                self.append(message.frame, message.size, at.monotonic, ttl_s, message.critical)
        self.head = self.confirmed = self.uncertain = max(state.head, messages[-1].sequence if messages else 0)

    def clear(self) -> None:
        """Drop every frame; the positions stay readable."""
        self.entries.clear()
        self._critical.clear()
        self._ordinary = self._in_time = self._overdue = None
        self._deadlines.clear()
        self._gaps.clear()
        self.ordinary_bytes = self._critical_bytes = 0

    def _check_reserve(self, size: int) -> None:
        full = len(self._critical) >= self.limits.critical_reserve
        if full or self._critical_bytes + size > self.limits.critical_reserve_bytes:
            raise ResourceExhausted(ErrorReason.OUTBOX_FULL, retry_after_s=1.0)

    def fits(self, size: int) -> bool:
        """True when one more ordinary message of that size needs nobody to give way."""
        room = len(self.entries) - len(self._critical) < self.limits.max_messages
        return room and self.ordinary_bytes + size <= self.limits.max_bytes

    def _excess(self, size: int) -> tuple[int, int]:
        """How many messages and how many bytes too many there would be with one more message of that size."""
        messages = len(self.entries) - len(self._critical) + 1 - self.limits.max_messages
        return messages, self.ordinary_bytes + size - self.limits.max_bytes

    def _giving_way(self, messages: int, surplus: int, yielding: bool) -> list[OutboxEntry] | None:
        """The oldest written messages that are at least so many and so large; None when there are not enough."""
        chosen: list[OutboxEntry] = []
        for entry in (self._ordinary or ()) if yielding else ():
            if entry.sequence > self.cursor or (messages <= 0 and surplus <= 0):
                break
            if entry.kept:
                chosen.append(entry)
                messages -= 1
                surplus -= entry.size
        return None if messages > 0 or surplus > 0 else chosen

    def _remove(self, entry: OutboxEntry) -> None:
        del self.entries[entry.sequence]
        entry.kept = False
        entry.frame = b""  # no copy of a payload outlives its message
        if entry.critical:
            del self._critical[entry.sequence]
            self._critical_bytes -= entry.size
        else:
            self.ordinary_bytes -= entry.size

    def _by_expiry(self) -> deque[OutboxEntry] | None:
        """Those with the default ttl, in the order in which they expire."""
        return self._ordinary if self._in_time is None else self._in_time

    def _must_stay(self, entry: OutboxEntry) -> bool:
        """True for what a client was told that it will get and has yet to be written, and for what is unconfirmed."""
        return self.cursor < entry.sequence <= self.promised or entry.sequence > self.confirmed

    def _set_aside(self, entry: OutboxEntry) -> None:
        if self._overdue is None:
            self._overdue = Overdue()
        self._overdue.add(entry)

    def _compact(self, most: int | None = None) -> None:
        ordinary, in_time = self._ordinary, self._in_time
        if ordinary is None:
            return
        while ordinary and not ordinary[0].kept:
            ordinary.popleft()
        while in_time and not in_time[0].kept:
            in_time.popleft()
        most = 2 * len(self.entries) + 64 if most is None else most
        if len(ordinary) > most:
            self._ordinary = deque(entry for entry in ordinary if entry.kept)
        if in_time and len(in_time) > most:
            self._in_time = deque(entry for entry in in_time if entry.kept)
        if len(self._deadlines) > most:
            self._deadlines = [item for item in self._deadlines if item[2].kept]
            heapify(self._deadlines)

    def _lose(self, first: int, last: int) -> None:
        lost = self._lost
        if lost and lost[-1][1] == first - 1:
            lost[-1] = (lost[-1][0], last)
        elif lost:
            lost.append((first, last))
        else:
            self._lost = [(first, last)]
