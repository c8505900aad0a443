"""The outbox and the manager against their model, in any order of sends, losses, acks, expiry and store answers.

When a store answers, and what, are rules of the machine that is given one.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW_S
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES, DeliveryState, PendingReceipt, Receipt
from tests.core.manager_model import LIMITS, TTL_S, Modelled, Screen, Sent
from tests.support.core import Core, attempt

PAYLOADS = st.sampled_from([b"1", b"22", b"[3,3]", b'"' + b"4" * 300 + b'"'])
MESSAGE_IDS = st.sampled_from(["", "", "a", "b", "c"])
TTLS = st.sampled_from([None, None, 1.0, 5.0, 30.0])


class OneUser(RuleBasedStateMachine):
    """Two contexts of one user, which share nothing but the user's limits."""

    answers_later = False
    """The store does, so that a receipt is pending at first."""

    def begin(self, core: Core, both: Iterable[IsolatedWebSocketManager]) -> None:
        """With that core and two managers of one user in it."""
        self.core = core
        self.both = [Modelled(core, manager) for manager in both]

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

    @rule(ttl_s=TTLS)
    def fill(self, ttl_s: float | None) -> None:
        """The user has about all that a user may have, in both contexts."""
        for one in self.both:
            for _ in range(3):
                self.send_one(one, b"22", "", False, ttl_s)

    def send_one(self, one: Modelled, payload: bytes, message_id: str, critical: bool, ttl_s: float | None) -> None:
        now = self.core.clock.monotonic()
        known = one.by_id.get(message_id)
        if known is not None and now - known.accepted <= IDEMPOTENCY_WINDOW_S:
            self.repeat(one, known, payload, critical, ttl_s)
            return
        # A refused send changes nothing: all is compared but what has expired, which goes at its time and not for it.
        before = one.snapshot()
        kept = set(one.kept)
        expected = one.refusal_of(len(payload) + MESSAGE_OVERHEAD_BYTES, critical, self.both, now)
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
            assert self.answers_later
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

    def confirm_first(self, one: Modelled) -> None:
        """The store has just confirmed the oldest that was unconfirmed."""
        first = one.unconfirmed.pop(0)
        assert isinstance(first.outcome, PendingReceipt)
        assert first.outcome.receipt is not None
        self.settle(one, first, first.outcome.receipt)

    def check_failed(self, failed: Iterable[Sent], reason: ErrorReason) -> None:
        """The store could not keep those."""
        for sent in failed:
            assert isinstance(sent.outcome, PendingReceipt)
            assert sent.outcome.error is not None
            assert sent.outcome.error.reason is reason

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
        one.expire(now)
        assert set(one.manager.outbox.entries) == one.kept

    @rule(which=st.integers(0, 1))
    def listen(self, which: int) -> None:
        """A lane begins to report, or ends."""
        one = self.both[which]
        one.listening = not one.listening
        (one.manager.listen if one.listening else one.manager.leave)(one.lane)

    @rule(seconds=st.integers(1, 12))
    def run(self, seconds: int) -> None:
        """Time passes with a tick a second, as it does: a lane is told of each loss by the tick that follows it."""
        for _ in range(seconds):
            self.core.tick(1.0)
            now = self.core.clock.monotonic()
            for one in self.both:
                over = one.over(now)
                if one.listening:
                    assert over.isdisjoint(one.manager.outbox.entries)
                    assert over <= set(one.lane.lost)
                    one.kept -= over

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
        self.a_loss_is_told_once_and_of_what_is_lost()

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

    def a_loss_is_told_once_and_of_what_is_lost(self) -> None:
        for one in self.both:
            assert len(one.lane.lost) == len(set(one.lane.lost))
            assert all(one.manager.outbox.state_of(sequence) is DeliveryState.DROPPED for sequence in one.lane.lost)

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
        self.close_store()
        assert self.core.factory.managers_of_user(self.both[0].manager.context.identity) == ()

    def close_store(self) -> None:
        """Every manager has ended; late answers of the store must change nothing."""
