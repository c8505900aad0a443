"""The recovery queue on its own: bounds, order, expiry, holes, and what it keeps in memory."""

from __future__ import annotations

import sys
from math import inf

import pytest

from sidecar.core.errors import ErrorReason, ResourceExhausted
from sidecar.core.gaps import MAX_HOLES, GapReason, Hole
from sidecar.core.message import DeliveryState
from sidecar.core.outbox import Outbox, OutboxEntry, OutboxLimits

SIZE = 100


def add(
    outbox: Outbox, count: int = 1, *, now: float = 0.0, ttl_s: float | None = None, critical: bool = False
) -> list[OutboxEntry]:
    """Append and confirm that many messages."""
    added = []
    for _ in range(count):
        outbox.make_room(SIZE, critical, True, now)
        added.append(outbox.append(b"frame", SIZE, now, ttl_s, critical))
        outbox.confirmed = outbox.head
    return added


def write(outbox: Outbox, through: int) -> None:
    """Move the cursor as the writer does."""
    while outbox.cursor < through:
        entry = outbox.entries.get(outbox.cursor + 1)
        if entry is None:
            announce(outbox)
        else:
            outbox.cursor = entry.sequence


def announce(outbox: Outbox) -> tuple[int, int, GapReason]:
    """Announce the gap behind the cursor as the writer does."""
    hole = outbox.gap_at(outbox.cursor + 1)
    hole.announced = True
    outbox.cursor = hole.last
    return described(hole)


def described(hole: Hole) -> tuple[int, int, GapReason]:
    return hole.first, hole.last, hole.reason


def full(outbox: Outbox, size: int = SIZE, *, critical: bool = False, yielding: bool = False, now: float = 0.0) -> bool:
    """True when `size` more bytes are refused."""
    try:
        outbox.make_room(size, critical, yielding, now)
    except ResourceExhausted as error:
        return (error.reason, error.retry_after_s) == (ErrorReason.OUTBOX_FULL, 1.0)
    return False


def test_sequences_begin_at_one_and_have_no_holes() -> None:
    outbox = Outbox(OutboxLimits())
    assert [entry.sequence for entry in add(outbox, 3)] == [1, 2, 3]
    assert (outbox.head, outbox.confirmed, outbox.cursor, outbox.acknowledged) == (3, 3, 0, 0)


@pytest.mark.parametrize(
    ("limits", "critical"),
    [
        (OutboxLimits(max_messages=2), False),
        (OutboxLimits(max_bytes=2 * SIZE), False),
        (OutboxLimits(critical_reserve=2), True),
        (OutboxLimits(critical_reserve_bytes=2 * SIZE), True),
    ],
)
def test_each_bound_at_the_limit_and_one_past_it(limits: OutboxLimits, critical: bool) -> None:
    outbox = Outbox(limits)
    add(outbox, 2, critical=critical)
    assert full(outbox, critical=critical)
    assert outbox.queued_bytes == 2 * SIZE
    assert outbox.head == 2


def test_bytes_are_counted_to_the_last() -> None:
    outbox = Outbox(OutboxLimits(max_bytes=3 * SIZE))
    add(outbox, 2)
    assert not full(outbox, SIZE)
    assert full(outbox, SIZE + 1)


def test_critical_and_ordinary_messages_have_room_of_their_own() -> None:
    outbox = Outbox(OutboxLimits(max_messages=1, critical_reserve=1))
    add(outbox)
    assert full(outbox)
    add(outbox, critical=True)
    assert full(outbox, critical=True)
    write(outbox, 2)
    outbox.acknowledge(1)
    assert not full(outbox)
    assert full(outbox, critical=True)


def test_written_messages_give_way_oldest_first_and_no_more_than_needed() -> None:
    outbox = Outbox(OutboxLimits(max_bytes=4 * SIZE))
    add(outbox, 4)
    write(outbox, 3)
    assert outbox.make_room(2 * SIZE, False, True, 0.0) == 2 * SIZE
    assert list(outbox.entries) == [3, 4]
    assert outbox.ordinary_bytes == 2 * SIZE


def test_nothing_gives_way_when_it_must_not() -> None:
    outbox = Outbox(OutboxLimits(max_messages=2))
    add(outbox, 2)
    write(outbox, 2)
    assert full(outbox, yielding=False)
    assert list(outbox.entries) == [1, 2]


def test_what_is_not_written_never_gives_way() -> None:
    outbox = Outbox(OutboxLimits(max_messages=2))
    add(outbox, 2)
    assert full(outbox, yielding=True)
    assert list(outbox.entries) == [1, 2]


def test_nothing_gives_way_for_a_message_that_is_refused_all_the_same() -> None:
    outbox = Outbox(OutboxLimits(max_bytes=3 * SIZE))
    add(outbox, 3)
    write(outbox, 2)
    assert full(outbox, 3 * SIZE, yielding=True)
    assert list(outbox.entries) == [1, 2, 3]
    assert outbox.ordinary_bytes == 3 * SIZE


def test_a_critical_event_never_gives_way() -> None:
    outbox = Outbox(OutboxLimits(max_messages=2))
    add(outbox, critical=True)
    add(outbox, 2)
    write(outbox, 3)
    add(outbox)
    assert list(outbox.entries) == [1, 3, 4]


def test_what_left_in_the_middle_is_passed_over_when_room_is_made() -> None:
    outbox = Outbox(OutboxLimits(max_bytes=4 * SIZE))
    add(outbox, 4)
    write(outbox, 4)
    outbox.drop(outbox.entries[2], GapReason.LOST)
    assert outbox.make_room(3 * SIZE, False, True, 0.0) == 2 * SIZE
    assert list(outbox.entries) == [4]


def test_expired_messages_make_room_first() -> None:
    outbox = Outbox(OutboxLimits(max_messages=3))
    add(outbox, 1, ttl_s=1000.0)
    add(outbox, 2, ttl_s=5.0)
    write(outbox, 1)
    assert outbox.make_room(SIZE, False, True, 5.0) == 2 * SIZE
    assert list(outbox.entries) == [1]


def test_what_expired_goes_though_the_message_is_refused() -> None:
    outbox = Outbox(OutboxLimits(max_bytes=2 * SIZE))
    add(outbox, 1, ttl_s=5.0)
    add(outbox, 1)
    assert full(outbox, 2 * SIZE, now=5.0)
    assert list(outbox.entries) == [2]
    assert outbox.ordinary_bytes == SIZE


@pytest.mark.parametrize("ttl_s", [None, 120.0])
def test_a_message_expires_at_its_time_and_not_before(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=120.0))
    assert outbox.next_expiry() == inf
    add(outbox, now=10.0, ttl_s=ttl_s)
    assert outbox.next_expiry() == 130.0
    assert outbox.drop_expired(129.999) == 0
    assert outbox.drop_expired(130.0) == SIZE
    assert outbox.entries == {}
    assert outbox.next_expiry() == inf
    assert outbox.state_of(1) is DeliveryState.DROPPED


def test_the_next_expiry_is_the_earliest_of_both_kinds() -> None:
    outbox = Outbox(OutboxLimits(ttl_s=120.0))
    add(outbox, now=0.0, ttl_s=500.0)
    assert outbox.next_expiry() == 500.0
    add(outbox, now=0.0)
    assert outbox.next_expiry() == 120.0
    add(outbox, now=0.0, ttl_s=7.0)
    assert outbox.next_expiry() == 7.0


def test_messages_expire_each_in_its_own_time() -> None:
    outbox = Outbox(OutboxLimits(ttl_s=10.0))
    add(outbox, now=0.0, ttl_s=30.0)
    add(outbox, now=0.0)
    add(outbox, now=0.0, ttl_s=20.0)
    left = []
    for now in (5.0, 10.0, 20.0, 30.0):
        outbox.drop_expired(now)
        left.append(list(outbox.entries))
    assert left == [[1, 2, 3], [1, 3], [1], []]


@pytest.mark.parametrize("ttl_s", [None, 5.0])
def test_what_left_before_its_time_leaves_no_hole_when_it_comes(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=5.0))
    add(outbox, 2, ttl_s=ttl_s)
    write(outbox, 1)
    outbox.acknowledge(1)
    assert outbox.drop_expired(5.0) == SIZE
    assert outbox.state_of(1) is DeliveryState.ACKNOWLEDGED
    assert announce(outbox) == (2, 2, GapReason.EXPIRED)


def test_a_critical_event_never_expires() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, critical=True, ttl_s=1.0)
    assert outbox.next_expiry() == inf
    assert outbox.drop_expired(1e9) == 0
    assert list(outbox.entries) == [1]


@pytest.mark.parametrize("ttl_s", [None, 5.0])
def test_what_the_store_has_yet_to_confirm_does_not_expire(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=5.0))
    outbox.append(b"frame", SIZE, 0.0, ttl_s, False)
    assert outbox.drop_expired(100.0) == 0
    outbox.confirmed = 1
    assert outbox.drop_expired(100.0) == SIZE


@pytest.mark.parametrize("own_ttl", [False, True])
def test_what_was_promised_keeps_none_behind_it_from_its_end(own_ttl: bool) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=5.0))
    add(outbox, 3, ttl_s=5.0 if own_ttl else None)
    outbox.rewind(2)
    assert outbox.promised == 3
    add(outbox, 2, now=1.0)
    add(outbox, now=1.0, ttl_s=2.0)
    add(outbox, now=1.0, ttl_s=90.0)
    outbox.drop(outbox.entries[4], GapReason.LOST)
    assert outbox.drop_expired(2.9) == 0
    assert outbox.drop_expired(3.0) == SIZE
    assert outbox.drop_expired(5.0) == 0  # the promised one's
    assert outbox.drop_expired(6.0) == SIZE
    assert outbox.take_lost() == [(4, 4), (6, 6), (5, 5)]
    assert list(outbox.entries) == [3, 7]
    write(outbox, 3)
    assert outbox.drop_expired(6.0) == SIZE
    assert outbox.state_of(3) is DeliveryState.WRITTEN
    assert outbox.next_expiry() == 91.0


@pytest.mark.parametrize("ttl_s", [None, 5.0])
def test_what_outlived_a_broken_promise_expires_at_once(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=5.0))
    add(outbox, 4, ttl_s=ttl_s)
    outbox.rewind(0)
    write(outbox, 1)
    for freed in (SIZE, 0):
        assert outbox.drop_expired(5.0) == freed
        assert list(outbox.entries) == [2, 3, 4]
        assert outbox.next_expiry() <= 5.0
    outbox.break_promise()
    assert outbox.drop_expired(5.0) == 3 * SIZE
    assert outbox.take_lost() == [(2, 4)]
    assert outbox.next_expiry() == inf


def test_what_is_not_confirmed_keeps_no_other_from_its_end() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, ttl_s=5.0)
    outbox.append(b"frame", SIZE, 0.0, 1.0, False)
    assert outbox.drop_expired(1.0) == 0
    assert outbox.drop_expired(5.0) == SIZE
    assert list(outbox.entries) == [2]
    outbox.confirmed = 2
    assert outbox.drop_expired(5.0) == SIZE


def test_what_was_over_and_fell_back_is_forgotten() -> None:
    outbox = Outbox(OutboxLimits())
    outbox.append(b"frame", SIZE, 0.0, 1.0, False)
    outbox.drop_expired(1.0)
    outbox.fall_back()
    assert outbox.next_expiry() == inf
    add(outbox, now=1.0, ttl_s=5.0)
    assert outbox.drop_expired(5.9) == 0
    assert outbox.drop_expired(6.0) == SIZE


@pytest.mark.parametrize("ttl_s", [None, 5.0])
def test_a_message_that_fell_back_does_not_keep_others_from_expiring(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(ttl_s=10.0, max_messages=1_000))
    add(outbox, 1, ttl_s=20.0 if ttl_s else None)
    outbox.append(b"frame", SIZE, 0.0, ttl_s, False)
    outbox.fall_back()
    outbox.drop_expired(100.0)
    assert outbox.entries == {}


def test_falling_back_forgets_what_was_not_confirmed() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, 2)
    outbox.append(b"frame", SIZE, 0.0, None, False)
    outbox.append(b"frame", SIZE, 0.0, None, True)
    assert outbox.fall_back() == 2 * SIZE
    assert (outbox.head, outbox.confirmed) == (2, 2)
    assert list(outbox.entries) == [1, 2]
    assert outbox.queued_bytes == 2 * SIZE
    assert outbox.fall_back() == 0
    assert add(outbox)[0].sequence == 3


def test_a_sequence_that_fell_back_may_come_again_with_the_same_end() -> None:
    outbox = Outbox(OutboxLimits())
    for _ in range(3):
        outbox.append(b"frame", SIZE, 0.0, 5.0, False)
        outbox.fall_back()
    add(outbox, 3, ttl_s=5.0)
    assert outbox.drop_expired(5.0) == 3 * SIZE


def test_acknowledging_frees_everything_up_to_there() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, 2)
    add(outbox, critical=True)
    add(outbox, 2)
    write(outbox, 5)
    assert not outbox.ever_acknowledged
    assert outbox.acknowledge(4) == 4 * SIZE
    assert outbox.ever_acknowledged
    assert list(outbox.entries) == [5]
    assert outbox.acknowledge(4) == 0
    assert outbox.acknowledge(1) == 0
    assert outbox.acknowledged == 4
    assert outbox.queued_bytes == SIZE


def test_acknowledging_nothing_is_no_acknowledgement() -> None:
    outbox = Outbox(OutboxLimits())
    outbox.acknowledge(0)
    assert not outbox.ever_acknowledged


def test_releasing_frees_without_an_acknowledgement() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, 2)
    write(outbox, 2)
    assert outbox.release(2) == 2 * SIZE
    assert (outbox.acknowledged, outbox.ever_acknowledged) == (0, False)
    assert outbox.state_of(1) is DeliveryState.WRITTEN


def test_states() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, 2)
    add(outbox, ttl_s=1.0)
    add(outbox)
    write(outbox, 2)
    outbox.acknowledge(1)
    outbox.drop_expired(1.0)
    assert [outbox.state_of(sequence) for sequence in range(1, 5)] == [
        DeliveryState.ACKNOWLEDGED,
        DeliveryState.WRITTEN,
        DeliveryState.DROPPED,
        DeliveryState.QUEUED,
    ]
    write(outbox, 4)
    outbox.acknowledge(4)
    # What was announced as a gap is never acknowledged.
    assert [outbox.state_of(sequence) for sequence in range(1, 5)] == [
        DeliveryState.ACKNOWLEDGED,
        DeliveryState.ACKNOWLEDGED,
        DeliveryState.DROPPED,
        DeliveryState.ACKNOWLEDGED,
    ]


def test_a_written_message_that_gave_way_was_written_and_may_be_acknowledged() -> None:
    outbox = Outbox(OutboxLimits(max_messages=1))
    add(outbox)
    write(outbox, 1)
    add(outbox)
    assert outbox.state_of(1) is DeliveryState.WRITTEN
    outbox.acknowledge(1)
    assert outbox.state_of(1) is DeliveryState.ACKNOWLEDGED


def test_a_run_is_one_gap_in_whatever_order_it_was_dug() -> None:
    for order in ([2, 3, 4], [4, 3, 2], [2, 4, 3], [3, 2, 4]):
        outbox = Outbox(OutboxLimits())
        added = add(outbox, 5)
        for sequence in order:
            outbox.drop(added[sequence - 1], GapReason.EXPIRED)
        write(outbox, 1)
        assert described(outbox.gap_at(2)) == (2, 4, GapReason.EXPIRED)
        assert described(outbox.gap_at(3)) == (3, 4, GapReason.EXPIRED)  # whoever stands within it is told of the rest


def test_gaps_of_different_reasons_are_two() -> None:
    outbox = Outbox(OutboxLimits())
    first, second = add(outbox, 2)
    outbox.drop(first, GapReason.EXPIRED)
    outbox.drop(second, GapReason.EVICTED)
    assert announce(outbox) == (1, 1, GapReason.EXPIRED)
    assert announce(outbox) == (2, 2, GapReason.EVICTED)


def test_an_announced_gap_does_not_grow() -> None:
    outbox = Outbox(OutboxLimits())
    first, second = add(outbox, 2)
    outbox.drop(first, GapReason.EXPIRED)
    assert announce(outbox) == (1, 1, GapReason.EXPIRED)
    outbox.drop(second, GapReason.EXPIRED)
    assert announce(outbox) == (2, 2, GapReason.EXPIRED)


def test_a_hole_behind_the_cursor_and_one_ahead_are_two() -> None:
    outbox = Outbox(OutboxLimits())
    first, second, _ = add(outbox, 3)
    write(outbox, 1)
    outbox.drop(second, GapReason.EXPIRED)
    outbox.drop(first, GapReason.EXPIRED)
    assert outbox.state_of(1) is DeliveryState.WRITTEN
    assert outbox.state_of(2) is DeliveryState.DROPPED
    assert announce(outbox) == (2, 2, GapReason.EXPIRED)
    assert outbox.state_of(1) is DeliveryState.WRITTEN


def test_what_nobody_remembers_is_announced_as_lost() -> None:
    outbox = Outbox(OutboxLimits())
    outbox.head = outbox.confirmed = 1
    assert announce(outbox) == (1, 1, GapReason.LOST)
    assert announce(outbox) == (2, 2, GapReason.LOST)


def test_every_hole_ahead_of_the_cursor_is_remembered_with_its_reason() -> None:
    outbox = Outbox(OutboxLimits())
    for _ in range(2 * MAX_HOLES):
        add(outbox)
        add(outbox, ttl_s=1.0)
    outbox.drop_expired(1.0)
    assert all(outbox.state_of(2 * n + 2) is DeliveryState.DROPPED for n in range(2 * MAX_HOLES))
    for sequence in range(1, 4 * MAX_HOLES, 2):
        write(outbox, sequence)
        assert announce(outbox) == (sequence + 1, sequence + 1, GapReason.EXPIRED)


@pytest.mark.parametrize("reason", [GapReason.EXPIRED, GapReason.LOST])
def test_holes_behind_the_cursor_are_bounded_and_the_latest_remembered(reason: GapReason) -> None:
    outbox = Outbox(OutboxLimits())
    for _ in range(2 * MAX_HOLES):
        add(outbox)
        if reason is GapReason.EXPIRED:
            outbox.drop(add(outbox)[0], reason)
        else:
            outbox.head = outbox.confirmed = outbox.head + 1
        write(outbox, outbox.head)
        outbox.release(outbox.head)
    assert len(outbox.gaps()) <= MAX_HOLES + 1
    assert outbox.state_of(outbox.head) is DeliveryState.DROPPED


def test_no_frame_is_kept_once_its_message_left() -> None:
    outbox = Outbox(OutboxLimits(max_messages=5))
    frames, entries = [b"payload %d" % number for number in range(7)], []
    for number in range(1, 7):
        entries.append(outbox.append(frames[number], SIZE, 0.0, 1.0 if number == 4 else None, number == 5))
        outbox.confirmed = min(number, 5)
    write(outbox, 3)
    outbox.acknowledge(1)
    outbox.drop(entries[2], GapReason.EVICTED)
    outbox.drop_expired(1.0)
    outbox.fall_back()
    assert held(frames) == [2, 5]
    outbox.clear()
    entries.clear()
    assert held(frames) == []


def held(frames: list[bytes]) -> list[int]:
    """Which frames somebody refers to beside the list; nobody was ever given the first."""
    counts = list(map(sys.getrefcount, frames))
    return [number for number, count in enumerate(counts) if count > counts[0]]


def test_clearing_keeps_the_positions() -> None:
    outbox = Outbox(OutboxLimits())
    add(outbox, 3, ttl_s=5.0)
    add(outbox, critical=True)
    outbox.drop(outbox.entries[2], GapReason.LOST)
    write(outbox, 2)
    outbox.clear()
    assert (outbox.head, outbox.confirmed, outbox.cursor) == (4, 4, 2)
    assert (outbox.entries, outbox.queued_bytes, outbox.next_expiry()) == ({}, 0, inf)


@pytest.mark.parametrize("ttl_s", [None, 50.0], ids=["default ttl", "own ttl"])
def test_what_left_from_the_middle_does_not_pile_up(ttl_s: float | None) -> None:
    outbox = Outbox(OutboxLimits(max_messages=100))
    add(outbox, ttl_s=1e6)
    stuck = add(outbox, ttl_s=ttl_s)[0]  # never expires here, so it stands before all that leave behind it
    for _ in range(2_000):
        gone = add(outbox, ttl_s=ttl_s)[0]
        write(outbox, gone.sequence)
        outbox.drop(gone, GapReason.LOST)
    assert stuck.kept
    bound = 2 * len(outbox.entries) + 64
    assert len(outbox._ordinary or ()) <= bound
    assert len(outbox._in_time or ()) <= bound
    assert len(outbox._deadlines) <= bound
    assert outbox._overdue is None
    assert outbox.next_expiry() == (120.0 if ttl_s is None else ttl_s)
