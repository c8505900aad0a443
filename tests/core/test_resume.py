"""Resume decided by the manager alone, where the machine of test_resume_machine.py rarely goes."""

from __future__ import annotations

from sidecar.core.close_codes import Close
from sidecar.core.gaps import MAX_HOLES
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import DeliveryState, Receipt, StreamPlace, StreamState
from sidecar.core.outbox import OutboxLimits
from sidecar.core.stored import RestoredContext, StoredMessage, StoredState
from sidecar.core.streams import MAX_REMEMBERED
from tests.support.core import Core
from tests.support.doubles import LaterStore, RecordingSocket


def back(core: Core, manager: IsolatedWebSocketManager, position: int, *, paused: bool = False) -> RecordingSocket:
    socket = core.socket(paused=paused)
    manager.resume(manager.context, socket, position, core.clock.now())
    manager.resume_writing(core.clock.now())
    return socket


def test_a_promise_ends_with_the_socket_it_was_made_to() -> None:
    core = Core(Limits(outbox=OutboxLimits(ttl_s=10.0)))
    manager = core.create()
    core.send(manager, b"1")
    socket = back(core, manager, 0, paused=True)
    core.clock.advance(20.0)
    manager.drop_expired(core.clock.monotonic())
    assert list(manager.outbox.entries) == [1]
    core.lose(manager, socket)
    manager.drop_expired(core.clock.monotonic())
    assert manager.outbox.entries == {}
    assert back(core, manager, 0).frames == [core.encoder.gap(1, 1, "expired")]


def test_what_comes_after_the_promise_expires_as_ever() -> None:
    core = Core(Limits(outbox=OutboxLimits(ttl_s=10.0)))
    manager = core.create()
    core.send(manager, b"1")
    socket = back(core, manager, 0, paused=True)
    core.send(manager, b"2", ttl_s=1.0)
    core.clock.advance(20.0)
    core.resume(manager, socket)
    assert [frame.split()[0] for frame in socket.frames] == [b"message", b"gap"]


def test_a_client_in_the_middle_of_a_gap_is_told_of_the_rest() -> None:
    core = Core(Limits(outbox=OutboxLimits(max_messages=1)))
    manager, _ = core.connect()
    told: list[int] = []
    for number in range(4):
        sequence = core.send(manager, b"%d" % number).sequence
        manager.wait_for_outcome(sequence, lambda sequence=sequence: told.append(sequence))  # type: ignore[misc]
    socket = back(core, manager, 1)
    assert socket.frames[0] == core.encoder.gap(2, 3, "evicted")
    assert told == [1, 2, 3]
    states = [manager.outbox.state_of(sequence) for sequence in range(1, 5)]
    assert states == [
        DeliveryState.ACKNOWLEDGED,
        DeliveryState.DROPPED,
        DeliveryState.DROPPED,
        DeliveryState.WRITTEN,
    ]


def test_less_than_was_acknowledged_undoes_no_acknowledgement() -> None:
    core = Core()
    manager, socket = core.connect()
    for number in range(3):
        core.send(manager, b"%d" % number)
    manager.acknowledge(socket.attach_id, 3, core.clock.now())
    again = back(core, manager, 0)
    assert again.frames == [core.encoder.gap(1, 3, "acknowledged")]
    assert manager.outbox.state_of(1) is DeliveryState.ACKNOWLEDGED
    assert (manager.outbox.cursor, manager.outbox.acknowledged) == (3, 3)


def test_what_was_never_told_to_be_gone_is_announced_as_lost() -> None:
    """More holes than are remembered: the first are forgotten, and still no client takes them for nothing."""
    core = Core(Limits(outbox=OutboxLimits(max_messages=1)))
    manager, _ = core.connect()
    for number in range(3):
        core.send(manager, b"%d" % number)
    manager.outbox._gaps.clear()
    socket = core.socket()
    assert manager.resume(manager.context, socket, 0, core.clock.now()) is False
    manager.resume_writing(core.clock.now())
    assert socket.frames[0] == core.encoder.gap(1, 2, "lost")
    assert len(socket.frames) == 2


def test_the_time_away_is_no_idleness() -> None:
    """A window longer than the idle time is kept, and who comes back late is not sent away at once."""
    core = Core(Limits(idle_timeout_s=100.0, outbox=OutboxLimits(resume_window_s=1_000.0)))
    manager, socket = core.connect()
    core.run(60)
    core.lose(manager, socket)
    core.run(900)
    assert not manager.ended
    again = back(core, manager, 0)
    manager.lifecycle.register_connection(again, int(core.clock.time()) + 10_000, core.clock.now())
    core.run(39)
    assert not manager.ended
    core.run(1)
    assert again.closed_with == Close(4507, "idle")


def test_activity_while_away_counts_from_its_own_time() -> None:
    core = Core(
        Limits(idle_timeout_s=100.0, health_check_interval_s=1_000.0, outbox=OutboxLimits(resume_window_s=1_000.0))
    )
    manager, socket = core.connect()
    core.run(60)
    core.lose(manager, socket)
    core.run(500)
    core.send(manager, b"1")
    core.run(50)
    again = back(core, manager, 0)
    manager.lifecycle.register_connection(again, int(core.clock.time()) + 10_000, core.clock.now())
    core.run(99)
    assert not manager.ended
    core.run(1)
    assert manager.ended


def test_the_first_chunk_of_a_forgotten_stream_is_a_repeat_by_its_id() -> None:
    core = Core()
    manager, _ = core.connect()

    def first(stream_id: str, message_id: str) -> Receipt:
        place = StreamPlace(stream_id, 0, StreamState.END)
        return core.send(manager, b"1", message_id, stream=place)

    one = first("s-0", "m-0")
    for number in range(1, MAX_REMEMBERED + 2):
        first(f"s-{number}", f"m-{number}")
    again = first("s-0", "m-0")
    assert (again.duplicate, again.sequence) == (True, one.sequence)


def test_more_gaps_than_are_remembered_keep_their_reason_while_they_are_to_be_announced() -> None:
    store = LaterStore()
    core = Core(store=store)
    kept = core.create()
    now = core.clock.time()
    messages = [
        StoredMessage(number, b"message %d m {}" % number, 300, now + 1.0 + number % 2 * 50, False, now, None)
        for number in range(1, 3 * MAX_HOLES)
    ]
    (stored,) = store.created
    kept.end("over", None, core.clock.now())
    state = StoredState(0, 0, len(messages), (), (), -1, 0.0)
    context = core.contexts.restore_context(stored)
    restored = RestoredContext(stored, state, messages)
    manager = core.factory.restore_manager(context, core.encoder, restored, core.clock.now())
    core.clock.advance(10.0)
    socket = back(core, manager, 0)
    assert socket.frames[1] == core.encoder.gap(2, 2, "expired")
    assert b"lost" not in b"".join(socket.frames)
