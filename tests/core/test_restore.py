"""What a store kept becomes a manager again: the same positions, gaps, ids and messages, detached."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.errors import AlreadyExists, ErrorReason, Unavailable
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import DeliveryState, Message, PendingReceipt, Receipt, StreamPlace, StreamState
from sidecar.core.outbox import OutboxLimits
from sidecar.core.stored import Creation, RestoredContext, StoredMessage
from tests.support.core import Core
from tests.support.doubles import LaterStore, RecordingSocket


class Kept:
    """A core with a store that survives, whose next run begins with what it kept."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.store = LaterStore()
        self.core = Core(limits, store=self.store)
        self.messages: list[StoredMessage] = []

    def send(self, manager: IsolatedWebSocketManager, message: Message) -> Receipt:
        """Send, have the store confirm it, and keep what it was given."""
        at = self.core.clock.now()
        pending = manager.send_to_user(manager.context, message, at)
        assert isinstance(pending, PendingReceipt)
        appended = self.store.waiting[-1]
        entry = manager.outbox.entries[appended.sequence]
        expires_at = at.unix + entry.expires_at - at.monotonic
        self.messages.append(
            StoredMessage(
                appended.sequence, entry.frame, entry.size, expires_at, entry.critical, at.unix, appended.identity
            )
        )
        self.store.confirm_all()
        assert pending.receipt is not None
        return pending.receipt

    def restart(self, manager: IsolatedWebSocketManager) -> tuple[Core, IsolatedWebSocketManager]:
        """Another process, with another monotonic clock, and that manager in it."""
        state = self.store.state_of(manager.isolation_key)
        gone = set(state.dropped) | set(range(1, state.released + 1))
        kept = [
            message._replace(frame=None) if message.sequence in gone else message
            for message in self.messages
            if message.sequence not in gone or message.identity is not None
        ]
        (stored,) = self.store.created
        core = Core(self.core.factory.limits, store=LaterStore())
        core.clock.advance(5_000.0)
        core.clock.step_wall(self.core.clock.time() - core.clock.time())
        context = core.contexts.restore_context(stored)
        restored = RestoredContext(stored, state, kept)
        return core, core.factory.restore_manager(context, core.encoder, restored, core.clock.now())


def message(number: int, **members: Any) -> Message:
    return Message(f"m-{number}", "", b"%d" % number)._replace(**members)


def resumed(core: Core, manager: IsolatedWebSocketManager, last_sequence: int) -> tuple[bool, RecordingSocket]:
    socket = core.socket()
    full = manager.resume(manager.context, socket, last_sequence, core.clock.now())
    manager.resume_writing(core.clock.now())
    return full, socket


def test_what_was_not_acknowledged_is_written_again() -> None:
    kept = Kept()
    manager, socket = kept.core.connect()
    for number in range(5):
        kept.send(manager, message(number))
    manager.acknowledge(socket.attach_id, 2, kept.core.clock.now())
    core, again = kept.restart(manager)
    assert again.context is not manager.context
    assert again.isolation_key == manager.isolation_key
    assert again.detached_at == core.clock.monotonic()
    assert again.created.unix == again.context.created_at
    assert again.messages_sent == again.outbox.head == 5
    full, now = resumed(core, again, 2)
    assert full
    assert now.frames == socket.frames[2:]


def test_ids_are_known_though_their_messages_were_acknowledged() -> None:
    kept = Kept()
    manager, socket = kept.core.connect()
    first = kept.send(manager, message(1))
    kept.send(manager, message(2))
    manager.acknowledge(socket.attach_id, 1, kept.core.clock.now())
    core, again = kept.restart(manager)
    repeat = again.send_to_user(again.context, message(1), core.clock.now())
    assert isinstance(repeat, Receipt)
    assert repeat == first._replace(duplicate=True, state=DeliveryState.ACKNOWLEDGED, connections=0)
    with pytest.raises(AlreadyExists):
        again.send_to_user(again.context, message(2, payload=b'"other"'), core.clock.now())
    core.clock.advance(601.0)
    assert isinstance(
        again.send_to_user(again.context, message(2, payload=b'"other"'), core.clock.now()), PendingReceipt
    )


def test_the_head_is_kept_though_everything_was_acknowledged() -> None:
    kept = Kept()
    manager, socket = kept.core.connect()
    for number in range(3):
        kept.send(manager, message(number, message_id=""))
    manager.acknowledge(socket.attach_id, 3, kept.core.clock.now())
    core, again = kept.restart(manager)
    assert again.outbox.entries == {}
    again.send_to_user(again.context, message(9), core.clock.now())
    assert again.outbox.head == 4


def test_time_passes_for_messages_while_nobody_runs() -> None:
    kept = Kept()
    manager = kept.core.create()
    kept.send(manager, message(1, ttl_s=10.0))
    kept.send(manager, message(2, ttl_s=100.0))
    kept.send(manager, message(3, critical=True))
    kept.core.clock.advance(50.0)
    core, again = kept.restart(manager)
    full, socket = resumed(core, again, 0)
    assert not full
    assert socket.frames[0] == core.encoder.gap(1, 1, "expired")
    assert len(socket.frames) == 3
    core.clock.advance(1_000.0)
    again.drop_expired(core.clock.monotonic())
    assert list(again.outbox.entries) == [3]


def test_what_the_client_may_have_is_not_called_lost_before_it_says_so() -> None:
    """The process that was killed wrote it, and nobody acknowledged it: expired now, it may have come all the same."""
    kept = Kept()
    manager, _ = kept.core.connect()
    for number in (1, 2):
        kept.send(manager, message(number, ttl_s=10.0))
    core, again = kept.restart(manager)
    told: list[int] = []
    for sequence in (1, 2):
        again.wait_for_outcome(sequence, lambda sequence=sequence: told.append(sequence))  # type: ignore[misc]
    core.clock.advance(20.0)
    again.drop_expired(core.clock.monotonic())
    assert told == []
    assert again.outbox.state_of(1) is DeliveryState.WRITTEN
    full, socket = resumed(core, again, 1)  # it has the first
    assert not full
    assert socket.frames == [core.encoder.gap(2, 2, "expired")]
    assert told == [1, 2]
    states = [again.outbox.state_of(sequence) for sequence in (1, 2)]
    assert states == [DeliveryState.ACKNOWLEDGED, DeliveryState.DROPPED]


def test_a_stream_that_stays_silent_is_ended_in_time() -> None:
    kept = Kept(Limits(stream_idle_timeout_s=5.0))
    manager, _ = kept.core.connect()
    kept.send(manager, Message("", "", b"0", stream=StreamPlace("s", 0, StreamState.OPEN)))
    core, again = kept.restart(manager)
    core.run(4.0)
    assert again.outbox.head == 1
    core.run(1.0)
    assert again.outbox.head == 2


def test_a_wall_clock_set_back_or_forward_keeps_no_message_longer_than_a_day() -> None:
    kept = Kept()
    manager = kept.core.create()
    kept.send(manager, message(1))
    kept.core.clock.step_wall(-1_000_000.0)
    core, again = kept.restart(manager)
    assert again.outbox.next_expiry() == core.clock.monotonic() + 86_400.0


def test_gaps_stand_where_they_stood() -> None:
    kept = Kept(Limits(outbox=OutboxLimits(max_messages=2)))
    manager, _ = kept.core.connect()
    for number in range(5):
        kept.send(manager, message(number))
    core, again = kept.restart(manager)
    full, socket = resumed(core, again, 1)
    assert not full
    assert socket.frames[0] == core.encoder.gap(2, 3, "evicted")
    assert again.outbox.state_of(2) is DeliveryState.DROPPED
    assert again.outbox.state_of(1) is DeliveryState.ACKNOWLEDGED


def test_a_stale_attempt_is_still_stale() -> None:
    kept = Kept()
    manager = kept.core.create()
    assert manager.note_attempt(7)
    _, again = kept.restart(manager)
    assert not again.note_attempt(7)
    assert again.note_attempt(8)


def test_bytes_count_for_the_user_again() -> None:
    kept = Kept()
    manager = kept.core.create()
    kept.send(manager, message(1))
    _, again = kept.restart(manager)
    assert again._account.queued_bytes == again.outbox.queued_bytes == manager.outbox.queued_bytes > 0


def test_what_was_dropped_is_told_to_the_store_once() -> None:
    kept = Kept()
    manager = kept.core.create()
    kept.send(manager, message(1, ttl_s=1.0))
    kept.core.clock.advance(2.0)
    manager.drop_expired(kept.core.clock.monotonic())
    assert kept.store.changes == [manager.isolation_key]
    assert kept.store.state_of(manager.isolation_key).dropped == (1,)
    assert kept.store.state_of(manager.isolation_key).dropped == ()


def test_the_store_is_told_which_id_is_forgotten() -> None:
    kept = Kept()
    manager = kept.core.create()
    for number in range(4_097):
        kept.send(manager, message(number, ttl_s=1.0, critical=False))
        kept.core.clock.advance(2.0)
    assert kept.store.forgotten == [(manager.isolation_key, 1)]


def test_a_creation_settles_once_for_whoever_asks() -> None:
    creation, told = Creation(), list[int]()
    creation.add_done_callback(lambda: told.append(1))
    creation.settle(OSError("text that nobody is to see"))
    creation.add_done_callback(lambda: told.append(2))
    assert told == [1, 2]
    assert creation.error is not None
    assert creation.error.reason is ErrorReason.STORAGE_UNAVAILABLE
    refusal = Unavailable(ErrorReason.OUTCOME_UNKNOWN)
    other = Creation()
    other.settle(refusal)
    assert other.error is refusal


def test_a_store_that_answers_later_is_waited_for() -> None:
    core = Core(store=LaterStore(creates_later=True))
    manager = core.create()
    assert manager.creation is not None
    assert not manager.creation.settled
