"""A client that is cut off and comes back in any state, against a model of what it must then be given or told.

When a store answers, and what, are rules of the machine that is given one.
"""

from __future__ import annotations

from math import inf

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import MESSAGE_OVERHEAD_BYTES, DeliveryState, PendingReceipt, Receipt
from sidecar.core.outbox import OutboxLimits
from tests.support.core import Core, attempt

LIMITS = Limits(
    # Nothing ends but messages, whatever time passes.
    idle_timeout_s=inf,
    pong_timeout_s=inf,
    slow_consumer_timeout_s=inf,
    outbox=OutboxLimits(
        max_messages=5,
        max_bytes=50 * MESSAGE_OVERHEAD_BYTES,
        ttl_s=20.0,
        critical_reserve=2,
        critical_reserve_bytes=4 * MESSAGE_OVERHEAD_BYTES,
        resume_window_s=inf,
    ),
)
CRITICAL = st.sampled_from([False, False, False, True])


class Listener:
    """A lane that asked for reports."""

    def __init__(self) -> None:
        self.through = 0
        self.lost: set[int] = set()

    def acknowledged(self, sequence: int) -> None:
        assert sequence > self.through
        self.through = sequence

    def dropped(self, first: int, last: int) -> None:
        told = set(range(first, last + 1))
        assert not told & self.lost, "told twice"
        self.lost |= told


class OneClient(RuleBasedStateMachine):
    """One context and its client, which knows what it has: `have` by sequence, `position` up to where."""

    def begin_with(self, core: Core, manager: IsolatedWebSocketManager) -> None:
        """With that core and a manager in it that has had nothing yet."""
        self.core = core
        self.manager, self.socket = manager, core.attach(manager)
        self.listener = Listener()
        self.manager.listen(self.listener)
        self.read = 0  # frames of the present socket that the client has taken
        self.position = 0  # of the client, by what it has taken
        self.promised: set[int] = set()
        self.have: dict[int, bytes] = {}
        self.gone: dict[int, bytes] = {}
        self.sent: dict[int, tuple[bytes, bool, float]] = {}
        self.waits: dict[int, list[DeliveryState]] = {}
        self.attempt = 0

    # Services

    @rule(critical=CRITICAL, ttl_s=st.sampled_from([None, 1.0, 5.0]), waits=st.booleans())
    def send(self, critical: bool, ttl_s: float | None, waits: bool) -> None:
        now = self.core.clock.monotonic()
        payload = b"%d" % (len(self.sent) + 1_000)
        outcome = attempt(lambda: self.core.offer(self.manager, payload, "", critical=critical, ttl_s=ttl_s))
        if isinstance(outcome, SidecarError):
            assert outcome.reason is ErrorReason.OUTBOX_FULL
            return
        assert isinstance(outcome, Receipt | PendingReceipt)
        sequence = self.manager.outbox.head
        assert sequence not in self.sent
        ends = float("inf") if critical else now + (20.0 if ttl_s is None else ttl_s)
        self.sent[sequence] = (payload, critical, ends)
        if waits and isinstance(outcome, PendingReceipt):
            outcome.add_done_callback(self.wait_for)
        elif waits:
            self.wait_for(outcome)

    def wait_for(self, outcome: Receipt | PendingReceipt) -> None:
        """Whoever sent it waits for what becomes of it, once it was accepted."""
        receipt = outcome.receipt if isinstance(outcome, PendingReceipt) else outcome
        if receipt is not None:
            sequence = receipt.sequence
            told = self.waits[sequence] = []
            self.manager.wait_for_outcome(sequence, lambda: told.append(self.manager.outbox.state_of(sequence)))

    def failed_after(self, confirmed: int) -> None:
        """The store could not keep what is behind `confirmed`."""
        assert self.manager.outbox.head == self.manager.outbox.confirmed == confirmed
        self.sent = {sequence: sent for sequence, sent in self.sent.items() if sequence <= confirmed}

    # The client

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        """Take frames off the wire, checking each against what there must be."""
        for frame in self.socket.frames[self.read : self.read + count]:
            self.read += 1
            kind, first, rest = frame.split(b" ", 2)
            assert int(first) == self.position + 1, "a hole or a rewind"
            if kind == b"message":
                self.take_message(int(first), rest.split(b" ", 1)[1])
            else:
                end, reason = rest.split()
                self.take_gap(int(first), int(end), reason)

    def take_message(self, sequence: int, payload: bytes) -> None:
        assert payload == self.sent[sequence][0]
        assert self.have.setdefault(sequence, payload) == payload
        assert sequence not in self.listener.lost, "dropped, and delivered all the same"
        assert sequence not in self.gone
        self.position = sequence

    def take_gap(self, first: int, last: int, reason: bytes) -> None:
        for sequence in range(first, last + 1):
            assert sequence not in self.promised, "promised by `full`"
            _, critical, ends = self.sent[sequence]
            if reason == b"acknowledged":
                assert sequence <= self.manager.outbox.acknowledged
                continue
            assert not critical
            assert reason == b"evicted" or ends <= self.core.clock.monotonic()
            self.gone[sequence] = reason
        self.position = last

    @rule(back=st.integers(0, 3))
    def acknowledge(self, back: int) -> None:
        sequence = max(self.position - back, 0)
        assert self.manager.acknowledge(self.socket.attach_id, sequence, self.core.clock.now())

    @rule()
    def pause(self) -> None:
        if self.manager.primary is not None:
            self.core.pause(self.manager, self.socket)

    @rule()
    def take_more(self) -> None:
        if self.manager.primary is not None:
            self.core.resume(self.manager, self.socket)

    @rule()
    def lose(self) -> None:
        self.core.lose(self.manager, self.socket)
        self.promised = set()

    @rule(less=st.integers(0, 3), paused=st.booleans())
    def come_back(self, less: int, paused: bool) -> None:
        """With what it has, or less: a page that was loaded again may have forgotten."""
        self.attempt += 1
        assert self.manager.note_attempt(self.attempt)
        assert not self.manager.note_attempt(self.attempt)
        former, written = self.socket, len(self.socket.frames)
        fenced = self.manager.primary is not None
        at = self.core.clock.now()
        position = max(self.position - less, 0)
        acknowledged = max(self.manager.outbox.acknowledged, position)
        self.socket = self.core.socket(paused=paused)
        full = self.manager.resume(self.manager.context, self.socket, position, at)
        missed = set(range(position + 1, self.manager.outbox.confirmed + 1))
        assert self.manager.outbox.acknowledged == acknowledged
        assert self.manager.outbox.cursor == position
        assert full is (missed <= self.manager.outbox.entries.keys())
        self.manager.lifecycle.register_connection(self.socket, int(at.unix) + 100_000, at)
        if paused:
            self.manager.lifecycle.writing_paused(self.socket.attach_id, at)
        self.manager.resume_writing(at)
        assert len(former.frames) == written, "written to after it was fenced"
        assert not fenced or (former.closed_with is not None and former.closed_with.code == 4503)
        self.position = position
        self.read = 0
        self.promised = missed if full else set()

    # Time

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.core.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.manager.drop_expired(self.core.clock.monotonic())
        assert set(self.manager.outbox.entries).isdisjoint(self.over(waiting=False))

    @rule(seconds=st.integers(1, 12))
    def run(self, seconds: int) -> None:
        """Time passes with a tick a second, as it does: a loss is told by the tick that follows it."""
        for _ in range(seconds):
            before = set(self.manager.outbox.entries)
            self.core.tick(1.0)
            over = self.over(waiting=True)
            assert over.isdisjoint(self.manager.outbox.entries)
            assert over & before <= self.listener.lost

    def over(self, *, waiting: bool) -> set[int]:
        """What the store has and whose time is over, but what was promised; all of it, or what is to be written."""
        outbox, now = self.manager.outbox, self.core.clock.monotonic()
        over = {sequence for sequence, (_, _, ends) in self.sent.items() if ends <= now}
        written = {sequence for sequence in over if sequence <= outbox.cursor}
        over = {sequence for sequence in over if sequence <= outbox.confirmed} - (self.promised - written)
        return over - written if waiting else over

    # What holds at every step

    @invariant()
    def everything_holds(self) -> None:
        outbox = self.manager.outbox
        assert outbox.cursor <= outbox.confirmed <= outbox.head
        assert outbox.acknowledged <= outbox.confirmed
        assert self.listener.through == outbox.acknowledged
        assert self.core.user_bytes(self.manager) == outbox.queued_bytes
        assert not [sequence for sequence in outbox.entries if sequence <= outbox.acknowledged]
        critical = {sequence for sequence, sent in self.sent.items() if sent[1] and sequence > outbox.acknowledged}
        assert critical <= outbox.entries.keys(), "a critical event was let go"
        for sequence in self.listener.lost:
            assert outbox.state_of(sequence) is DeliveryState.DROPPED
        for sequence, told in self.waits.items():
            state = outbox.state_of(sequence)
            final = state in (DeliveryState.ACKNOWLEDGED, DeliveryState.DROPPED)
            assert told == ([state] if final else []), f"{sequence}: {told} is {state!r}"

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.manager.end("over", None, self.core.clock.now())
            self.close_store()

    def close_store(self) -> None:
        """The manager has ended; late answers of the store must change nothing."""
