"""The outbox and the manager against a simple model, in any order of sends, losses, acks, expiry and store answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW_S
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES, DeliveryState, PendingReceipt, Receipt
from sidecar.core.outbox import OutboxLimits
from tests.support.core import Core, attempt
from tests.support.doubles import LaterStore, RecordingSocket

TTL_S = 10.0
LIMITS = Limits(
    connections_per_manager=3,
    queued_bytes_per_user=10 * (MESSAGE_OVERHEAD_BYTES + 4),
    outbox=OutboxLimits(
        max_messages=6,
        max_bytes=5 * (MESSAGE_OVERHEAD_BYTES + 8),
        ttl_s=TTL_S,
        critical_reserve=2,
        critical_reserve_bytes=2 * (MESSAGE_OVERHEAD_BYTES + 8),
    ),
)
PAYLOADS = st.sampled_from([b"1", b"22", b"[3,3]", b'"' + b"4" * 300 + b'"'])
MESSAGE_IDS = st.sampled_from(["", "", "a", "b", "c"])
TTLS = st.sampled_from([None, None, 1.0, 5.0, 30.0])


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


class Modelled:
    """One manager beside its model: what is appended, confirmed, kept, and on the primaries' wire."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.manager: IsolatedWebSocketManager
        self.manager, self.primary = core.connect()
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

    @property
    def position(self) -> int:
        return self.manager.outbox.cursor

    @property
    def writing(self) -> bool:
        return self.attached and self.primary.writable

    def kept_of(self, critical: bool) -> list[Sent]:
        return [self.sent[sequence] for sequence in sorted(self.kept) if self.sent[sequence].critical == critical]

    def expire(self, now: float) -> None:
        """What the outbox may have dropped by now, it has dropped when it needs room or writes."""
        self.kept -= {one.sequence for one in self.kept_of(False) if one.expires_at <= now} & self.confirmed_kept()

    def confirmed_kept(self) -> set[int]:
        return {sequence for sequence in self.kept if sequence <= self.confirmed}

    def has_room(self, size: int, kept: list[Sent]) -> bool:
        limits = LIMITS.outbox
        return len(kept) < limits.max_messages and sum(one.size for one in kept) + size <= limits.max_bytes

    def refusal_of(self, size: int, critical: bool, queued_by_user: int, now: float) -> ErrorReason | None:
        """Decide as the contract says, and let go what must give way."""
        over_user = queued_by_user + size - LIMITS.queued_bytes_per_user
        if critical:
            reserve = self.kept_of(True)
            total = sum(one.size for one in reserve) + size
            if len(reserve) >= LIMITS.outbox.critical_reserve or total > LIMITS.outbox.critical_reserve_bytes:
                return ErrorReason.OUTBOX_FULL
        if over_user <= 0 and (critical or self.has_room(size, self.kept_of(False))):
            return None
        before = sum(one.size for one in self.kept_of(False))
        self.expire(now)
        over_user -= before - sum(one.size for one in self.kept_of(False))
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


class OneUser(RuleBasedStateMachine):
    """Two contexts of one user, which share nothing but the user's limits."""

    @initialize(later=st.booleans())
    def start(self, later: bool) -> None:
        self.store = LaterStore() if later else None
        self.core = Core(LIMITS, self.store)
        self.both = [Modelled(self.core), Modelled(self.core)]

    @rule(
        which=st.integers(0, 1),
        payload=PAYLOADS,
        message_id=MESSAGE_IDS,
        critical=st.booleans(),
        ttl_s=TTLS,
        times=st.integers(1, 4),
    )
    def send(
        self, which: int, payload: bytes, message_id: str, critical: bool, ttl_s: float | None, times: int
    ) -> None:
        for _ in range(times if not message_id else 1):
            self.send_one(self.both[which], payload, message_id, critical, ttl_s)

    def send_one(self, one: Modelled, payload: bytes, message_id: str, critical: bool, ttl_s: float | None) -> None:
        now = self.core.clock.monotonic()
        known = one.by_id.get(message_id)
        if known is not None and now - known.accepted <= IDEMPOTENCY_WINDOW_S:
            self.repeat(one, known, payload, critical, ttl_s)
            return
        # A refused send changes nothing: all is compared but what has expired, which goes at its time and not for it.
        queued = sum(other.manager.outbox.queued_bytes for other in self.both)
        before = one.snapshot()
        kept = set(one.kept)
        expected = one.refusal_of(len(payload) + MESSAGE_OVERHEAD_BYTES, critical, queued, now)
        expired = sum(one.sent[sequence].size for sequence in kept - one.kept) if expected else 0
        outcome = attempt(lambda: self.core.offer(one.manager, payload, message_id, critical=critical, ttl_s=ttl_s))
        if isinstance(outcome, SidecarError):
            assert outcome.reason is expected
            after = one.snapshot()
            assert after[:4] + after[5:] == before[:4] + before[5:]
            assert after[4] == before[4] - expired  # type: ignore[operator]
            one.refused += 1
            return
        assert expected is None
        expires_at = float("inf") if critical else now + (TTL_S if ttl_s is None else ttl_s)
        sequence = one.manager.outbox.head
        assert sequence == before[0] + 1  # type: ignore[operator]
        sent = Sent(sequence, payload, critical, expires_at, now, message_id, (payload, critical), outcome)
        one.sent[sequence] = sent
        one.kept.add(sequence)
        if message_id:
            one.by_id[message_id] = sent
        if isinstance(outcome, Receipt):
            self.settle(one, sent, outcome)
        else:
            assert self.store is not None
            one.unconfirmed.append(sent)

    def repeat(self, one: Modelled, known: Sent, payload: bytes, critical: bool, ttl_s: float | None) -> None:
        before = one.snapshot()
        message_id = known.message_id
        outcome = attempt(lambda: self.core.offer(one.manager, payload, message_id, critical=critical, ttl_s=ttl_s))
        if isinstance(outcome, SidecarError):
            assert outcome.reason is ErrorReason.MESSAGE_ID_REUSED
            assert (payload, critical) != known.fingerprint
            assert one.snapshot() == before
            one.refused += 1
            return
        assert (payload, critical) == known.fingerprint
        if isinstance(outcome, PendingReceipt):
            assert known in one.unconfirmed
            outcome.add_done_callback(lambda repeat: self.same_outcome(known, repeat))
        else:
            one.expire(self.core.clock.monotonic())
            assert (outcome.sequence, outcome.duplicate, outcome.connections) == (known.sequence, True, 0)
            assert outcome.state is self.state_of(one, known)
        assert one.snapshot()[:4] == before[:4]

    def same_outcome(self, known: Sent, repeat: PendingReceipt) -> None:
        first = known.outcome
        assert isinstance(first, PendingReceipt)
        assert repeat.error is first.error
        if repeat.receipt is not None and first.receipt is not None:
            assert repeat.receipt == first.receipt._replace(duplicate=True, connections=0)

    def state_of(self, one: Modelled, sent: Sent) -> DeliveryState:
        if any(first <= sent.sequence <= last for first, last in self.gaps(one)):
            return DeliveryState.DROPPED
        if sent.sequence <= one.acknowledged:
            return DeliveryState.ACKNOWLEDGED
        if sent.sequence <= one.position:
            return DeliveryState.WRITTEN
        return DeliveryState.QUEUED if sent.sequence in one.kept else DeliveryState.DROPPED

    def settle(self, one: Modelled, sent: Sent, receipt: Receipt) -> None:
        one.confirm(sent)
        if one.writing:
            one.expire(sent.accepted)  # the writer drops what was over when the message came
        written = sent.sequence <= one.position
        assert (receipt.sequence, receipt.duplicate) == (sent.sequence, False)
        assert receipt.state is (DeliveryState.WRITTEN if written else DeliveryState.QUEUED)
        mirrors = sum(screen.socket.closed_with is None for screen in one.mirrors)
        assert receipt.connections == written + mirrors
        for screen in one.mirrors:
            if screen.socket.closed_with is not None and screen.expected[-1:] == [sent.sequence]:
                screen.expected.pop()  # closed rather than given it

    # The store

    @precondition(lambda self: self.store is not None and self.store.waiting)
    @rule(count=st.integers(1, 4))
    def store_confirms(self, count: int) -> None:
        assert self.store is not None
        for _ in range(min(count, len(self.store.waiting))):
            append = self.store.waiting[0]
            one = self.owner(append.isolation_key)
            # Answers to what has failed already are passed over: those appends are no longer in the model.
            first = one.unconfirmed[0] if one.unconfirmed else None
            if first is None or append.frame is not one.manager.outbox.entries[first.sequence].frame:
                before = one.snapshot()
                self.store.confirm()
                assert one.snapshot() == before
                continue
            del one.unconfirmed[0]
            self.store.confirm()
            assert isinstance(first.outcome, PendingReceipt)
            assert first.outcome.receipt is not None
            self.settle(one, first, first.outcome.receipt)

    @precondition(lambda self: self.store is not None and self.store.waiting)
    @rule()
    def store_fails(self) -> None:
        assert self.store is not None
        append = self.store.waiting[0]
        one = self.owner(append.isolation_key)
        first = one.unconfirmed[0] if one.unconfirmed else None
        if first is None or append.frame is not one.manager.outbox.entries[first.sequence].frame:
            return
        failed = list(one.unconfirmed)
        one.fall_back()
        self.store.fail()
        for sent in failed:
            assert isinstance(sent.outcome, PendingReceipt)
            assert sent.outcome.error is not None
            assert sent.outcome.error.reason is ErrorReason.STORAGE_UNAVAILABLE
        assert one.manager.outbox.head == one.confirmed

    def owner(self, isolation_key: str) -> Modelled:
        return next(one for one in self.both if one.manager.isolation_key == isolation_key)

    # The client

    @rule(which=st.integers(0, 1))
    def pause(self, which: int) -> None:
        one = self.both[which]
        if one.attached:
            self.core.pause(one.manager, one.primary)

    @rule(which=st.integers(0, 1))
    def take_more(self, which: int) -> None:
        one = self.both[which]
        if one.attached:
            one.expire(self.core.clock.monotonic())
            self.core.resume(one.manager, one.primary)

    @rule(which=st.integers(0, 1))
    def lose(self, which: int) -> None:
        one = self.both[which]
        assert self.core.lose(one.manager, one.primary) is one.attached
        one.attached = False

    @rule(which=st.integers(0, 1), paused=st.booleans())
    def come_back(self, which: int, paused: bool) -> None:
        one = self.both[which]
        one.expire(self.core.clock.monotonic())
        one.primary = self.core.attach(one.manager, paused=paused)
        one.sockets.append(one.primary)
        one.attached = True

    @rule(which=st.integers(0, 1), back=st.integers(0, 4))
    def acknowledge(self, which: int, back: int) -> None:
        one = self.both[which]
        sequence = max(0, one.position - back)
        assert one.manager.acknowledge(one.primary.attach_id, sequence, self.core.clock.now())
        if one.attached and sequence > one.acknowledged:
            one.acknowledged = sequence
            one.ever_acknowledged = True
            one.kept = {kept for kept in one.kept if kept > sequence}

    @rule(which=st.integers(0, 1), ahead=st.integers(1, 3))
    def acknowledge_the_future(self, which: int, ahead: int) -> None:
        one = self.both[which]
        before = one.snapshot()
        answer = one.manager.acknowledge(one.primary.attach_id, one.position + ahead, self.core.clock.now())
        assert answer is not one.attached
        assert one.snapshot() == before

    @rule(which=st.integers(0, 1))
    def join(self, which: int) -> None:
        one = self.both[which]
        live = [screen for screen in one.mirrors if screen.socket.closed_with is None]
        joined = attempt(lambda: self.core.attach(one.manager, mirror=True))
        if isinstance(joined, SidecarError):
            assert joined.reason is ErrorReason.USER_LIMIT
            assert len(live) == 2
        else:
            assert len(live) < 2
            one.mirrors.append(Screen(joined))

    @rule(which=st.integers(0, 1))
    def slow_mirrors(self, which: int) -> None:
        for screen in self.both[which].mirrors:
            screen.socket.paused = True

    # Time

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 10.0, 30.0, 601.0]), step=st.sampled_from([0.0, 600.0, -600.0]))
    def pass_time(self, seconds: float, step: float) -> None:
        self.core.clock.advance(seconds)
        self.core.clock.step_wall(step)

    @rule(which=st.integers(0, 1))
    def sweep(self, which: int) -> None:
        one = self.both[which]
        now = self.core.clock.monotonic()
        one.manager.drop_expired(now)
        # What stands behind one that the store has yet to confirm may stay for now.
        swept = set(one.manager.outbox.entries)
        assert one.kept - swept <= {sequence for sequence in one.kept if one.sent[sequence].expires_at <= now}
        if not one.unconfirmed:
            one.expire(now)

    # What holds at every step

    @invariant()
    def everything_holds(self) -> None:
        """One invariant to Hypothesis, so that a failure's story shows the steps and not the checks."""
        self.positions_are_in_order()
        self.what_is_kept_is_what_the_model_keeps()
        self.what_is_counted_is_what_is_kept()
        self.bounds_hold()
        self.the_wire_is_one_run()
        self.gaps_account_for_what_was_not_received()
        self.mirrors_have_what_was_sent_from_then_on()
        self.nothing_is_written_where_it_must_not()

    def positions_are_in_order(self) -> None:
        for one in self.both:
            outbox = one.manager.outbox
            assert 0 <= outbox.acknowledged <= outbox.cursor <= outbox.confirmed <= outbox.head
            assert (outbox.confirmed, outbox.acknowledged) == (one.confirmed, one.acknowledged)
            assert outbox.head == one.confirmed + len(one.unconfirmed)
            assert outbox.ever_acknowledged is one.ever_acknowledged
            assert outbox.cursor == one.confirmed or not one.writing

    def what_is_kept_is_what_the_model_keeps(self) -> None:
        now = self.core.clock.monotonic()
        for one in self.both:
            kept = set(one.manager.outbox.entries)
            over = {sequence for sequence in kept ^ one.kept if one.sent[sequence].expires_at <= now}
            assert kept ^ one.kept == over  # the two may differ only on when they look at what is over
            one.kept = kept
            critical = {sequence for sequence, sent in one.sent.items() if sent.critical}
            assert kept & critical == {sequence for sequence in critical if sequence > one.acknowledged}

    def what_is_counted_is_what_is_kept(self) -> None:
        for one in self.both:
            outbox = one.manager.outbox
            stats = one.manager.get_manager_stats(one.manager.context, self.core.clock.now())
            assert outbox.ordinary_bytes == sum(sent.size for sent in one.kept_of(False))
            assert outbox.queued_bytes == sum(one.sent[sequence].size for sequence in one.kept)
            assert (stats.outbox_messages, stats.outbox_bytes) == (len(one.kept), outbox.queued_bytes)
            assert (stats.messages_sent_total, stats.messages_failed_total) == (one.accepted, one.refused)
            assert stats.cleanup_scheduled is not one.attached
        assert self.core.user_bytes(self.both[0].manager) == sum(one.manager.outbox.queued_bytes for one in self.both)

    def bounds_hold(self) -> None:
        limits = LIMITS.outbox
        for one in self.both:
            ordinary, critical = one.kept_of(False), one.kept_of(True)
            assert len(ordinary) <= limits.max_messages
            assert sum(sent.size for sent in ordinary) <= limits.max_bytes
            assert len(critical) <= limits.critical_reserve
            assert sum(sent.size for sent in critical) <= limits.critical_reserve_bytes
            assert len(one.manager.connections) <= LIMITS.connections_per_manager
            outbox = one.manager.outbox
            for queue in (outbox._ordinary or (), outbox._in_time or (), outbox._deadlines):
                assert len(queue) <= 2 * len(outbox.entries) + 65
            assert all(entry.frame for entry in outbox.entries.values())
            assert not any(entry.frame for entry in (outbox._ordinary or ()) if not entry.kept)
        assert sum(one.manager.outbox.queued_bytes for one in self.both) <= LIMITS.queued_bytes_per_user

    def the_wire_is_one_run(self) -> None:
        """Sequences rise by one over all primaries; gaps stand exactly where a message expired unwritten."""
        for one in self.both:
            last = 0
            for frame in (frame for socket in one.sockets for frame in socket.frames):
                kind, first, rest = frame.split(b" ", 2)
                assert int(first) == last + 1
                if kind == b"message":
                    last = int(first)
                    assert rest.split(b" ", 1)[1] == one.sent[last].payload
                else:
                    end, reason = rest.split()
                    last = int(end)
                    assert reason == b"expired"
                    for sequence in range(int(first), last + 1):
                        assert one.sent[sequence].expires_at <= self.core.clock.monotonic()
                        assert sequence not in one.kept
            assert last == one.position

    def gaps_account_for_what_was_not_received(self) -> None:
        for one in self.both:
            received = sum(frame[:1] == b"m" for socket in one.sockets for frame in socket.frames)
            assert one.position - received == sum(last - first + 1 for first, last in self.gaps(one))

    def mirrors_have_what_was_sent_from_then_on(self) -> None:
        for one in self.both:
            for screen in one.mirrors:
                assert [int(frame.split()[1]) for frame in screen.socket.frames] == screen.expected

    def nothing_is_written_where_it_must_not(self) -> None:
        for one in self.both:
            for socket in one.sockets[:-1]:
                assert not socket.closed_with or socket.closed_with.code == 4503

    def gaps(self, one: Modelled) -> list[tuple[int, int]]:
        frames = (frame.split() for socket in one.sockets for frame in socket.frames if frame[:1] == b"g")
        return [(int(first), int(last)) for _, first, last, _ in frames]

    def teardown(self) -> None:
        if not hasattr(self, "both"):
            return
        waiting = [sent for one in self.both for sent in one.unconfirmed]
        for one in self.both:
            one.manager.end("over", None, self.core.clock.now())
            assert (one.manager.outbox.entries, one.manager.outbox.queued_bytes) == ({}, 0)
        assert all(isinstance(sent.outcome, PendingReceipt) and sent.outcome.error for sent in waiting)
        assert len(self.core.factory) == 0
        assert self.core.factory.get_factory_stats().users_with_active_managers == 0
        if self.store is not None:
            self.store.confirm_all()
        assert self.core.factory.managers_of_user(self.both[0].manager.context.identity) == ()


TestOneUser = OneUser.TestCase
TestOneUser.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
