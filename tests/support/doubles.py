"""Small real objects in place of the core's ports: they record, pause, delay or fail as told. None needs a loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from sidecar.core.close_codes import Close
from sidecar.core.events import SocketEvent
from sidecar.core.identity import UserExecutionContext
from sidecar.core.message import Durability, Instant, Message
from sidecar.core.outbox import OutboxEntry
from sidecar.core.ports import AuditEvent, AuditValue, Confirmed
from sidecar.core.stored import MessageIdentity, StoredContext, StoredInbound, StoredState

WALL_START = 1_700_000_000.0
"""Unix seconds at which every fake clock starts."""


class FakeClock:
    """Time that moves only when told to. The two clocks start far apart, so that mixing them up shows."""

    def __init__(self, monotonic: float = 1_000.0, wall: float = WALL_START) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._wall

    def now(self) -> Instant:
        """One reading of both clocks."""
        return Instant(self._monotonic, self._wall)

    def advance(self, seconds: float) -> Instant:
        """Let time pass on both clocks; the reading after."""
        assert seconds >= 0
        self._monotonic += seconds
        self._wall += seconds
        return self.now()

    def step_wall(self, seconds: float) -> Instant:
        """Set the wall clock forward or back, as an operator or NTP does; no time passes."""
        self._wall += seconds
        return self.now()


class RecordingSocket:
    """A socket that keeps what it is given, and whose transport can be paused. It holds callers to the port's rules."""

    def __init__(self, attach_id: str = "a-1", *, paused: bool = False) -> None:
        self.attach_id = attach_id
        self.paused = paused
        self.frames: list[bytes] = []
        self.events: list[SocketEvent] = []
        self.pings: list[bytes] = []
        self.closes: list[Close] = []

    def __repr__(self) -> str:
        state = "closed" if self.closes else "paused" if self.paused else "open"
        return f"<RecordingSocket {self.attach_id} {state} frames={len(self.frames)}>"

    @property
    def writable(self) -> bool:
        return not self.paused and not self.closes

    @property
    def closed_with(self) -> Close | None:
        """The first close; the others did nothing."""
        return self.closes[0] if self.closes else None

    def write(self, frame: bytes) -> None:
        assert self.writable, f"written to while {self!r}"
        self.frames.append(frame)

    def notify(self, event: SocketEvent) -> None:
        self.events.append(event)

    def ping(self, payload: bytes) -> None:
        self.pings.append(payload)

    def close(self, close: Close) -> None:
        self.closes.append(close)

    def take(self) -> list[bytes]:
        """The frames since the last `take`."""
        frames, self.frames = self.frames, []
        return frames


class RecordedEvent(NamedTuple):
    """One audit record as the core gave it."""

    event: AuditEvent
    context: UserExecutionContext | None
    fields: dict[str, AuditValue]


class RecordingAudit:
    """An audit trail that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[RecordedEvent] = []

    def record(self, event: AuditEvent, context: UserExecutionContext | None = None, /, **fields: AuditValue) -> None:
        self.records.append(RecordedEvent(event, context, fields))

    def of(self, event: AuditEvent) -> list[RecordedEvent]:
        """Every record of that event, oldest first."""
        return [record for record in self.records if record.event is event]


class TextEncoder:
    """Frames a test can read: `message <sequence> <id> <payload>` and `gap <first> <last> <reason>`."""

    def message(self, sequence: int, message_id: str, message: Message) -> bytes:
        return b"message %d %s %s" % (sequence, message_id.encode(), message.payload)

    def gap(self, first: int, last: int, reason: str) -> bytes | None:
        return f"gap {first} {last} {reason}".encode()


class GaplessEncoder:
    """Payloads as they are, and no frame for a gap: what the raw protocol's is like."""

    def message(self, sequence: int, message_id: str, message: Message) -> bytes:
        return message.payload

    def gap(self, first: int, last: int, reason: str) -> bytes | None:
        return None


class CountingRandomness:
    """Text that differs from call to call and is the same from run to run. `calls` are the sizes asked for."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, size: int, /) -> str:
        self.calls.append(size)
        return f"{len(self.calls):0{2 * size}x}"


class RecordingOwners:
    """An owner directory that hands out the epochs it is told to, and keeps which keys are owned now."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.owned: list[str] = []

    def claim(self, isolation_key: str) -> int:
        self.owned.append(isolation_key)
        return self.epoch

    def release(self, isolation_key: str) -> None:
        self.owned.remove(isolation_key)


class StoreFailed(Exception):
    """An error of the store's own, foreign to the core."""


class Append(NamedTuple):
    """What a store was asked to keep."""

    isolation_key: str
    epoch: int
    sequence: int
    frame: bytes
    identity: MessageIdentity | None
    confirmed: Confirmed


class LaterStore:
    """A store that answers when the test says so, in the order it was asked.

    Appends are conditional on the expected sequence, as a real store's are: after one failed, those that were already
    under way behind it fail too, each with an answer of its own, and the sequence it failed at is expected again.
    """

    def __init__(
        self, durability: Durability = Durability.DISK, *, survives: bool = True, creates_later: bool = False
    ) -> None:
        self.durability = durability
        self.waiting: deque[Append] = deque()
        self.kept: dict[str, list[bytes]] = {}
        self.states: dict[str, Callable[[], StoredState]] = {}
        self.created: list[StoredContext] = []
        self.changes: list[str] = []
        self.forgotten: list[tuple[str, int]] = []
        self.received: deque[tuple[StoredInbound, Confirmed]] = deque()
        self.takings: list[tuple[str, int]] = []
        self.disposed: list[str] = []
        self.survives = survives
        self.creations: deque[Confirmed] | None = deque() if creates_later else None

    def create(
        self, context: StoredContext, epoch: int, state: Callable[[], StoredState], confirmed: Confirmed
    ) -> bool:
        self.created.append(context)
        self.states[context.isolation_key] = state
        if self.creations is None:
            return True
        self.creations.append(confirmed)
        return False

    def append(
        self,
        isolation_key: str,
        epoch: int,
        entry: OutboxEntry,
        identity: MessageIdentity | None,
        at: Instant,
        confirmed: Confirmed,
    ) -> bool:
        self.waiting.append(Append(isolation_key, epoch, entry.sequence, entry.frame, identity, confirmed))
        return False

    def changed(self, isolation_key: str) -> None:
        self.changes.append(isolation_key)

    def state_of(self, isolation_key: str) -> StoredState:
        """Where that context stands, as a store would ask."""
        return self.states[isolation_key]()

    def receive(self, isolation_key: str, inbound: StoredInbound, at: Instant, confirmed: Confirmed) -> bool:
        self.received.append((inbound, confirmed))
        return False

    def taken(self, isolation_key: str, number: int) -> None:
        self.takings.append((isolation_key, number))

    def forget(self, isolation_key: str, sequence: int) -> None:
        self.forgotten.append((isolation_key, sequence))

    def when_written(self, done: Callable[[], None]) -> bool:
        return True

    def dispose(self, isolation_key: str) -> None:
        self.kept.pop(isolation_key, None)
        self.disposed.append(isolation_key)

    def confirm(self, count: int = 1) -> None:
        """Answer the oldest `count` appends: kept, unless an earlier one of that context is missing."""
        for _ in range(count):
            one = self.waiting.popleft()
            kept = self.kept.setdefault(one.isolation_key, [])
            if one.sequence == len(kept) + 1:
                kept.append(one.frame)
                one.confirmed(None)
            else:
                one.confirmed(StoreFailed(f"expected {len(kept) + 1}, not {one.sequence}"))

    def confirm_all(self) -> None:
        """Answer every append that waits, and those that come meanwhile."""
        while self.waiting:
            self.confirm()

    def fail(self, error: Exception | None = None) -> None:
        """Answer the oldest append: not kept."""
        self.waiting.popleft().confirmed(error or StoreFailed("disk full"))
