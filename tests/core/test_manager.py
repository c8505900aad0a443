"""One context's manager: its sockets, the way of a message, repeats, stores that answer later, its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.close_codes import Close, CloseCode, catalogued
from sidecar.core.errors import (
    AlreadyExists,
    BadRequest,
    ErrorReason,
    FailedPrecondition,
    IsolationViolation,
    ManagerGone,
    ResourceExhausted,
    SidecarError,
    Unavailable,
)
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW, IDEMPOTENCY_WINDOW_S
from sidecar.core.limits import Limits
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import (
    MESSAGE_OVERHEAD_BYTES,
    ContentType,
    DeliveryState,
    Durability,
    Message,
    PendingReceipt,
    Receipt,
)
from sidecar.core.outbox import OutboxLimits
from sidecar.core.ports import AuditEvent
from sidecar.core.statistics import ManagerStatistics
from sidecar.ws.frames import JsonEncoder
from tests.support.core import Core
from tests.support.doubles import GaplessEncoder, LaterStore, RecordingSocket

SIZE = MESSAGE_OVERHEAD_BYTES + 2
ONE_MESSAGE = Limits(outbox=OutboxLimits(max_messages=1))


def sequences(socket: RecordingSocket) -> list[int]:
    """The sequences of the messages on that socket."""
    return [int(frame.split()[1]) for frame in socket.frames if frame.startswith(b"message")]


def gaps(socket: RecordingSocket) -> list[tuple[int, int, str]]:
    """The gaps announced on that socket."""
    found = [frame.decode().split() for frame in socket.frames if frame.startswith(b"gap")]
    return [(int(first), int(last), reason) for _, first, last, reason in found]


def reason_of(core: Core, manager: IsolatedWebSocketManager, payload: bytes = b"{}", **members: object) -> ErrorReason:
    """Why a send is refused."""
    with pytest.raises(SidecarError) as caught:
        core.offer(manager, payload, **members)  # type: ignore[arg-type]
    return caught.value.reason


def queued_bytes(core: Core, manager: IsolatedWebSocketManager) -> int:
    return manager.get_manager_stats(manager.context, core.clock.now()).outbox_bytes


def closes(core: Core) -> list[tuple[object, object]]:
    """What the audit trail says of sockets that closed: (attach_id, code)."""
    records = core.audit.of(AuditEvent.SOCKET_CLOSED)
    return [(record.fields["attach_id"], record.fields["code"]) for record in records]


# Sending


def test_a_message_is_written_at_once_and_the_receipt_says_so() -> None:
    core = Core()
    manager, socket = core.connect()
    receipt = core.send(manager, b'{"a":1}', "id-1")
    assert receipt == Receipt(
        "id-1", 1, DeliveryState.WRITTEN, Durability.MEMORY, 1, duplicate=False, accepted_time=core.clock.time()
    )
    assert socket.frames == [b'message 1 id-1 {"a":1}']


def test_without_a_socket_a_message_waits() -> None:
    core = Core()
    manager = core.create()
    receipt = core.send(manager)
    assert (receipt.state, receipt.connections) == (DeliveryState.QUEUED, 0)
    socket = core.attach(manager)
    assert sequences(socket) == [1]


def test_an_absent_message_id_is_made_up_and_differs() -> None:
    core = Core()
    one, two = core.create(), core.create()
    ids = {core.send(manager).message_id for manager in (one, one, two, two)}
    assert len(ids) == 4
    assert "" not in ids


def test_a_paused_socket_gets_what_waits_in_order_when_it_takes_more() -> None:
    core = Core()
    manager, socket = core.connect(paused=True)
    states = [core.send(manager).state for _ in range(3)]
    assert states == [DeliveryState.QUEUED] * 3
    assert socket.frames == []
    core.resume(manager, socket)
    assert sequences(socket) == [1, 2, 3]
    assert core.send(manager).state is DeliveryState.WRITTEN
    assert sequences(socket) == [1, 2, 3, 4]


def test_what_waits_goes_before_what_comes() -> None:
    core = Core()
    manager = core.create()
    core.send(manager)
    socket = core.socket()
    manager.add_connection(manager.context, socket, core.clock.now())
    receipt = core.send(manager)
    assert sequences(socket) == [1, 2]
    assert (receipt.state, receipt.connections) == (DeliveryState.WRITTEN, 1)


def test_a_socket_that_pauses_in_the_middle_stops_the_writer_there() -> None:
    class OneAtATime(RecordingSocket):
        def write(self, frame: bytes) -> None:
            super().write(frame)
            self.paused = True

    core = Core()
    manager = core.create()
    for _ in range(3):
        core.send(manager)
    socket = OneAtATime()
    manager.add_connection(manager.context, socket, core.clock.now())
    for expected in ([1], [1, 2], [1, 2, 3], [1, 2, 3]):
        core.resume(manager, socket)
        assert sequences(socket) == expected


@pytest.mark.parametrize(
    ("payload", "members", "reason"),
    [
        (b"{", {}, ErrorReason.BAD_REQUEST),
        (b"1" * (Limits().max_message_bytes + 1), {}, ErrorReason.BAD_REQUEST),
        (b"{}", {"ttl_s": 0.0}, ErrorReason.BAD_REQUEST),
        (b"{}", {"min_durability": Durability.DISK}, ErrorReason.DURABILITY_UNAVAILABLE),
    ],
)
def test_a_refused_send_changes_nothing_but_the_count(
    payload: bytes, members: dict[str, object], reason: ErrorReason
) -> None:
    core = Core()
    manager, socket = core.connect()
    before = manager.get_manager_stats(manager.context, core.clock.now())
    core.clock.advance(1.0)
    assert reason_of(core, manager, payload, message_id="id", **members) is reason
    after = manager.get_manager_stats(manager.context, core.clock.now())
    assert after == before._replace(messages_failed_total=1, manager_age_seconds=1.0)
    assert socket.frames == []
    assert not core.send(manager, message_id="id").duplicate


def test_a_message_that_was_checked_is_not_parsed_again() -> None:
    core = Core()
    manager, socket = core.connect()
    assert core.send(manager, b"{", checked=True).sequence == 1
    assert reason_of(core, manager, b"{") is ErrorReason.BAD_REQUEST
    assert sequences(socket) == [1]


def test_the_stores_durability_is_every_messages() -> None:
    core = Core()
    manager = core.create()
    assert core.send(manager, min_durability=Durability.MEMORY).durability is Durability.MEMORY
    with pytest.raises(FailedPrecondition):
        core.send(manager, min_durability=Durability.REPLICATED)


def test_a_critical_event_is_json_with_a_reserve_of_its_own() -> None:
    core = Core(Limits(outbox=OutboxLimits(max_messages=1, critical_reserve=1, ttl_s=5.0)))
    manager = core.create()
    core.send(manager, ttl_s=1_000.0)
    receipt = manager.emit_critical_event(manager.context, "alarm", b"{}", "id", core.clock.now())
    assert isinstance(receipt, Receipt)
    assert receipt.sequence == 2
    assert reason_of(core, manager, critical=True) is ErrorReason.OUTBOX_FULL
    core.clock.advance(500.0)
    socket = core.attach(manager)
    assert sequences(socket) == [1, 2]
    with pytest.raises(BadRequest):
        manager.emit_critical_event(manager.context, "alarm", b"not json", "", core.clock.now())


# Whose it is


def test_another_context_opens_nothing_and_changes_nothing() -> None:
    core = Core()
    manager, socket = core.connect("alice")
    stranger, _ = core.connect("mallory")
    # Not even one that says the same: a context is itself or another.
    for context in (stranger.context, replace(manager.context)):
        at = core.clock.now()
        before = manager.get_manager_stats(manager.context, at)
        with pytest.raises(IsolationViolation):
            manager.emit_critical_event(context, "e", b"{}", "", at)
        with pytest.raises(IsolationViolation):
            manager.add_connection(context, core.socket(), at)
        with pytest.raises(IsolationViolation):
            manager.remove_connection(context, socket.attach_id, 1006, at)
        with pytest.raises(IsolationViolation):
            manager.cleanup_all_connections(context, catalogued(CloseCode.NORMAL), "x", at)
        with pytest.raises(IsolationViolation):
            manager.get_manager_stats(context, at)
        assert manager.get_manager_stats(manager.context, at) == before
    assert (socket.frames, socket.closed_with) == ([], None)


def test_an_ended_manager_answers_nothing_more() -> None:
    core = Core()
    manager, socket = core.connect()
    at = core.clock.now()
    manager.end("over", None, at)
    context = manager.context
    assert reason_of(core, manager) is ErrorReason.MANAGER_GONE
    with pytest.raises(ManagerGone):
        manager.add_connection(context, core.socket(), at)
    with pytest.raises(ManagerGone):
        manager.remove_connection(context, socket.attach_id, 1006, at)
    with pytest.raises(ManagerGone):
        manager.cleanup_all_connections(context, catalogued(CloseCode.NORMAL), "x", at)
    with pytest.raises(ManagerGone):
        manager.get_manager_stats(context, at)
    assert manager.acknowledge(socket.attach_id, 1, at)
    manager.resume_writing(at)
    assert socket.frames == []


# Sockets


def test_connections_are_the_primary_first() -> None:
    core = Core()
    manager = core.create()
    mirror = core.attach(manager, mirror=True)
    primary = core.attach(manager)
    assert manager.connections == (primary, mirror)


def test_nine_mirrors_and_always_room_for_the_primary() -> None:
    core = Core()
    manager, primary = core.connect()
    core.lose(manager, primary)
    for _ in range(9):
        core.attach(manager, mirror=True)
    with pytest.raises(ResourceExhausted) as caught:
        core.attach(manager, mirror=True)
    assert caught.value.reason is ErrorReason.USER_LIMIT
    assert core.factory.get_factory_stats().resource_limit_hits == 1
    core.attach(manager)
    assert len(manager.connections) == 10
    with pytest.raises(ResourceExhausted):
        core.attach(manager, mirror=True)


def test_a_new_primary_fences_the_one_before() -> None:
    core = Core()
    manager, old = core.connect()
    core.send(manager)
    new = core.attach(manager)
    assert old.closed_with == Close(4503, "taken_over")
    core.send(manager)
    assert (sequences(old), sequences(new)) == ([1], [2])
    assert manager.acknowledge(old.attach_id, 2, core.clock.now())
    assert manager.outbox.acknowledged == 0
    assert core.lose(manager, old, 1000) is False
    assert manager.primary is new
    assert manager.detached_at is None
    assert closes(core) == [(old.attach_id, 4503)]


def test_losing_the_primary_detaches_and_the_context_lives_on() -> None:
    core = Core()
    manager, socket = core.connect()
    core.clock.advance(5.0)
    assert core.lose(manager, socket, 1006)
    assert not manager.ended
    assert manager.detached_at == core.clock.monotonic()
    assert manager.get_manager_stats(manager.context, core.clock.now()).cleanup_scheduled
    assert core.lose(manager, socket, 1006) is False
    assert closes(core) == [(socket.attach_id, 1006)]


@pytest.mark.parametrize("code", [1001, 1005, 1006, 4999])
def test_only_the_clients_own_1000_ends_the_context(code: int) -> None:
    core = Core()
    manager, socket = core.connect()
    core.lose(manager, socket, code)
    assert not manager.ended
    other, other_socket = core.connect()
    mirror = core.attach(other, mirror=True)
    core.lose(other, other_socket, 1000)
    assert other.ended
    assert mirror.closed_with == Close(1001, "going_away")
    (closed,) = core.audit.of(AuditEvent.CONTEXT_CLOSED)
    assert closed.fields["reason"] == "client_closed"


def test_a_mirrors_1000_is_only_its_own() -> None:
    core = Core()
    manager, primary = core.connect()
    mirror = core.attach(manager, mirror=True)
    assert core.lose(manager, mirror, 1000)
    assert not manager.ended
    assert manager.connections == (primary,)
    assert core.lose(manager, mirror, 1000) is False
    assert closes(core) == [(mirror.attach_id, 1000)]


def test_a_mirror_gets_what_is_sent_from_then_on_and_counts_for_nothing() -> None:
    core = Core()
    manager, primary = core.connect(paused=True)
    core.send(manager)
    core.clock.advance(10.0)
    mirror = core.attach(manager, mirror=True)
    activity = manager.last_activity
    receipt = core.send(manager)
    assert sequences(mirror) == [2]
    assert (receipt.state, receipt.connections) == (DeliveryState.QUEUED, 1)
    assert manager.acknowledge(mirror.attach_id, 2, core.clock.now())
    assert manager.acknowledge(mirror.attach_id, 99, core.clock.now())
    assert manager.outbox.acknowledged == 0
    assert activity.monotonic == core.clock.monotonic() - 10.0  # joining is no activity either
    core.resume(manager, primary)
    assert sequences(primary) == [1, 2]
    assert core.send(manager).connections == 2


def test_the_frame_is_encoded_once_for_all_sockets() -> None:
    core = Core()
    manager, primary = core.connect()
    mirrors = [core.attach(manager, mirror=True) for _ in range(3)]
    core.send(manager)
    assert all(mirror.frames[0] is primary.frames[0] for mirror in mirrors)


def test_a_slow_mirror_is_closed_rather_than_given_a_hole() -> None:
    core = Core()
    manager, primary = core.connect()
    slow, quick = core.attach(manager, mirror=True, paused=True), core.attach(manager, mirror=True)
    assert core.send(manager).connections == 2
    assert slow.closed_with == Close(4003, "slow_consumer")
    assert manager.connections == (primary, quick)
    assert closes(core) == [(slow.attach_id, 4003)]


def test_closing_a_socket_from_this_side_detaches_in_the_same_step() -> None:
    core = Core()
    manager, socket = core.connect()
    manager.close_connection(socket, catalogued(CloseCode.BAD_FRAME), core.clock.now())
    assert socket.closed_with == Close(4500, "bad_frame")
    assert core.send(manager).state is DeliveryState.QUEUED
    assert core.lose(manager, socket, 1006) is False
    assert closes(core) == [(socket.attach_id, 4500)]


def test_closing_a_mirror_and_a_stranger() -> None:
    core = Core()
    manager, primary = core.connect()
    mirror, stranger = core.attach(manager, mirror=True), core.socket()
    manager.close_connection(mirror, catalogued(CloseCode.BAD_FRAME), core.clock.now())
    manager.close_connection(stranger, catalogued(CloseCode.BAD_FRAME), core.clock.now())
    assert manager.connections == (primary,)
    assert mirror.closed_with == stranger.closed_with == Close(4500, "bad_frame")
    assert closes(core) == [(mirror.attach_id, 4500)]


# Acknowledgement


def test_acknowledging_frees_and_is_cumulative_and_idempotent() -> None:
    core = Core()
    manager, socket = core.connect()
    for number in range(3):
        core.send(manager, message_id=f"id-{number}")
    at = core.clock.now()
    assert manager.acknowledge(socket.attach_id, 2, at)
    assert manager.acknowledge(socket.attach_id, 2, at)
    assert manager.acknowledge(socket.attach_id, 1, at)
    assert queued_bytes(core, manager) == SIZE
    states = [core.send(manager, message_id=f"id-{number}").state for number in range(3)]
    assert states == [DeliveryState.ACKNOWLEDGED, DeliveryState.ACKNOWLEDGED, DeliveryState.WRITTEN]


def test_what_was_never_written_cannot_be_acknowledged() -> None:
    core = Core()
    manager, socket = core.connect()
    core.send(manager)
    core.pause(manager, socket)
    core.send(manager)
    assert not manager.acknowledge(socket.attach_id, 2, core.clock.now())
    assert manager.outbox.acknowledged == 0
    assert queued_bytes(core, manager) == 2 * SIZE
    assert manager.acknowledge(socket.attach_id, 1, core.clock.now())


def test_the_store_is_told_what_is_no_longer_needed() -> None:
    store = LaterStore()
    core = Core(store=store)
    manager, socket = core.connect()
    for _ in range(2):
        core.offer(manager)
    store.confirm_all()
    at = core.clock.now()
    for sequence in (0, 2, 2, 1):
        manager.acknowledge(socket.attach_id, sequence, at)
    assert store.changes == [manager.isolation_key]
    assert store.state_of(manager.isolation_key).released == 2


# A full outbox


def test_a_full_outbox_lets_written_messages_go_while_the_client_reads() -> None:
    core = Core(ONE_MESSAGE)
    manager, socket = core.connect()
    core.send(manager)
    manager.acknowledge(socket.attach_id, 1, core.clock.now())
    for _ in range(3):
        core.send(manager)
    assert sequences(socket) == [1, 2, 3, 4]
    assert gaps(socket) == []
    assert queued_bytes(core, manager) == SIZE


@pytest.mark.parametrize("away", [True, False], ids=["away", "slow"])
def test_a_full_outbox_refuses_while_the_client_is_away_or_slow(away: bool) -> None:
    core = Core(ONE_MESSAGE)
    manager, socket = core.connect()
    core.send(manager)
    manager.acknowledge(socket.attach_id, 1, core.clock.now())
    core.send(manager)
    if away:
        core.lose(manager, socket)
    else:
        core.pause(manager, socket)
    assert reason_of(core, manager) is ErrorReason.OUTBOX_FULL
    assert list(manager.outbox.entries) == [2]


def test_a_client_that_never_acknowledges_may_be_away() -> None:
    core = Core(ONE_MESSAGE)
    manager, socket = core.connect()
    core.send(manager)
    core.pause(manager, socket)
    core.send(manager)
    assert list(manager.outbox.entries) == [2]
    assert reason_of(core, manager) is ErrorReason.OUTBOX_FULL  # what was not written never gives way


def test_what_expired_is_no_longer_counted_though_the_message_is_refused() -> None:
    core = Core(Limits(queued_bytes_per_user=5 * SIZE, outbox=OutboxLimits(max_bytes=3 * SIZE)))
    manager = core.create()
    core.send(manager, ttl_s=1.0)
    core.send(manager)
    core.send(manager)
    core.clock.advance(1.0)
    assert reason_of(core, manager, b"111") is ErrorReason.OUTBOX_FULL
    other = core.create()
    for _ in range(3):
        core.send(other)  # with the two that are left: exactly what the user may have
    assert reason_of(core, core.create()) is ErrorReason.USER_LIMIT


def test_over_the_users_bytes_the_own_written_messages_give_way() -> None:
    core = Core(Limits(queued_bytes_per_user=4 * SIZE))
    manager, socket = core.connect()
    other, _ = core.connect()
    for _ in range(2):
        core.send(manager)
        core.send(other)
    core.send(manager)
    assert [len(one.outbox.entries) for one in (manager, other)] == [2, 2]
    assert sequences(socket) == [1, 2, 3]
    assert manager.acknowledge(socket.attach_id, 3, core.clock.now())
    core.send(other)
    assert [len(one.outbox.entries) for one in (manager, other)] == [0, 3]


def test_a_refused_message_spends_nothing_of_the_rate() -> None:
    core = Core(Limits(messages_per_second_per_user=1.0, outbox=OutboxLimits(max_messages=1)))
    manager, socket = core.connect()
    core.send(manager)
    manager.acknowledge(socket.attach_id, 1, core.clock.now())
    core.clock.advance(1.0)
    core.pause(manager, socket)
    core.send(manager)
    core.clock.advance(1.0)
    assert reason_of(core, manager) is ErrorReason.OUTBOX_FULL
    core.resume(manager, socket)
    core.send(manager)
    assert reason_of(core, manager) is ErrorReason.RATE_LIMITED


# Expiry and gaps


def test_expired_messages_are_announced_in_their_place_as_one_gap() -> None:
    core = Core()
    manager = core.create()
    for ttl_s in (None, 5.0, 5.0, None):
        core.send(manager, ttl_s=ttl_s)
    core.clock.advance(5.0)
    socket = core.attach(manager)
    assert [frame.split()[:3] for frame in socket.frames if frame[:1] == b"g"] == [[b"gap", b"2", b"3"]]
    assert [frame.split()[0] for frame in socket.frames] == [b"message", b"gap", b"message"]
    assert sequences(socket) == [1, 4]
    assert gaps(socket) == [(2, 3, "expired")]
    assert not manager.acknowledge(socket.attach_id, 5, core.clock.now())
    assert manager.acknowledge(socket.attach_id, 4, core.clock.now())
    assert queued_bytes(core, manager) == 0


def test_a_send_after_an_expiry_comes_behind_the_gap() -> None:
    core = Core()
    manager, socket = core.connect(paused=True)
    core.send(manager, ttl_s=5.0)
    core.clock.advance(5.0)
    socket.paused = False  # the transport takes more; nobody has told the manager yet
    assert core.send(manager).connections == 1
    assert socket.frames[0] == b"gap 1 1 expired"
    assert sequences(socket) == [2]


def test_an_expired_message_is_dropped_to_whoever_asks_again() -> None:
    core = Core()
    manager = core.create()
    core.send(manager, message_id="id", ttl_s=5.0)
    core.clock.advance(5.0)
    receipt = core.send(manager, message_id="id", ttl_s=5.0)
    assert (receipt.state, receipt.duplicate) == (DeliveryState.DROPPED, True)
    assert queued_bytes(core, manager) == 0


# Repeats


def test_a_repeat_returns_the_first_receipt_with_the_state_of_now_and_delivers_nothing() -> None:
    core = Core()
    manager = core.create()
    first = core.send(manager, message_id="id")
    core.clock.advance(5.0)
    socket = core.attach(manager)
    again = core.send(manager, message_id="id")
    assert again == first._replace(duplicate=True, state=DeliveryState.WRITTEN)
    assert sequences(socket) == [1]
    assert manager.get_manager_stats(manager.context, core.clock.now()).messages_sent_total == 1


def test_the_same_id_with_other_content_is_refused() -> None:
    core = Core()
    manager = core.create()
    core.send(manager, message_id="id")
    with pytest.raises(AlreadyExists) as caught:
        core.send(manager, b"[]", message_id="id")
    assert caught.value.reason is ErrorReason.MESSAGE_ID_REUSED
    assert core.send(manager, message_id="id", ttl_s=9.0, headers={"a": "b"}).duplicate


def test_an_id_is_remembered_for_ten_minutes() -> None:
    core = Core()
    manager = core.create()
    core.send(manager, message_id="id")
    core.clock.advance(IDEMPOTENCY_WINDOW_S)
    assert core.send(manager, message_id="id").duplicate
    core.clock.advance(0.001)
    renewed = core.send(manager, message_id="id")
    assert (renewed.sequence, renewed.duplicate) == (2, False)
    assert core.send(manager, message_id="id").sequence == 2


def test_the_last_4096_ids_are_remembered_and_made_up_ones_take_no_place() -> None:
    core = Core()
    manager, socket = core.connect()
    for number in range(IDEMPOTENCY_WINDOW):
        core.send(manager, message_id=f"id-{number}")
        core.send(manager)
    manager.acknowledge(socket.attach_id, manager.outbox.cursor, core.clock.now())
    assert core.send(manager, message_id="id-0").duplicate
    core.send(manager, message_id="one-more")
    assert core.send(manager, message_id="id-1").duplicate
    assert not core.send(manager, message_id="id-0").duplicate


def test_refusals_are_not_remembered() -> None:
    core = Core(ONE_MESSAGE)
    manager = core.create()
    core.send(manager)
    assert reason_of(core, manager, message_id="id") is ErrorReason.OUTBOX_FULL
    socket = core.attach(manager)
    manager.acknowledge(socket.attach_id, 1, core.clock.now())
    assert not core.send(manager, message_id="id").duplicate


# A store that answers later


@pytest.fixture
def store() -> LaterStore:
    return LaterStore()


@pytest.fixture
def core(store: LaterStore) -> Core:
    return Core(store=store)


def test_nothing_is_written_and_no_receipt_given_before_the_store_confirmed(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    mirror = core.attach(manager, mirror=True)
    pending = core.send_later(manager, message_id="id")
    assert (pending.receipt, socket.frames, mirror.frames) == (None, [], [])
    accepted = core.clock.time()
    core.clock.advance(1.0)
    store.confirm()
    assert pending.receipt == Receipt(
        "id", 1, DeliveryState.WRITTEN, Durability.DISK, 2, duplicate=False, accepted_time=accepted
    )
    assert sequences(socket) == sequences(mirror) == [1]
    assert store.kept[manager.isolation_key] == socket.frames


def test_appends_carry_the_epoch_and_the_expected_sequence(core: Core, store: LaterStore) -> None:
    manager = core.create()
    for _ in range(2):
        core.offer(manager)
    appended = [(one.isolation_key, one.epoch, one.sequence) for one in store.waiting]
    assert appended == [(manager.isolation_key, 1, 1), (manager.isolation_key, 1, 2)]


def test_a_failed_append_fails_every_later_one_and_the_head_falls_back(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    pendings = [core.send_later(manager, message_id=f"id-{number}") for number in range(3)]
    store.confirm()
    store.fail()
    assert pendings[0].receipt is not None
    for pending in pendings[1:]:
        assert isinstance(pending.error, Unavailable)
        assert pending.error.reason is ErrorReason.STORAGE_UNAVAILABLE
        assert pending.error.retry_after_s
    assert (manager.outbox.head, manager.outbox.confirmed) == (1, 1)
    assert queued_bytes(core, manager) == SIZE
    stats = manager.get_manager_stats(manager.context, core.clock.now())
    assert (stats.messages_sent_total, stats.messages_failed_total) == (1, 2)
    store.confirm_all()
    again = core.send_later(manager, message_id="id-1")
    store.confirm()
    assert again.receipt is not None
    assert (again.receipt.sequence, again.receipt.duplicate) == (2, False)
    assert sequences(socket) == [1, 2]


def test_the_stores_late_answers_to_what_failed_are_not_taken_for_others(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    for _ in range(3):
        core.offer(manager)
    store.fail()
    pending = core.send_later(manager)  # behind two that the store has yet to refuse
    store.confirm(2)
    assert (pending.receipt, pending.error) == (None, None)
    store.confirm()
    assert pending.receipt is not None
    assert pending.receipt.sequence == 1
    assert sequences(socket) == [1]
    assert store.kept[manager.isolation_key] == socket.frames


def test_a_refusal_of_the_stores_own_reaches_the_caller(core: Core, store: LaterStore) -> None:
    pending = core.send_later(core.create())
    refusal = Unavailable(ErrorReason.CLUSTER_UNAVAILABLE)
    store.fail(refusal)
    assert pending.error is refusal


def test_a_repeat_before_the_store_confirmed_has_the_firsts_outcome(core: Core, store: LaterStore) -> None:
    manager, _ = core.connect()
    first = core.send_later(manager, message_id="id")
    repeat = core.send_later(manager, message_id="id")
    assert len(store.waiting) == 1
    with pytest.raises(AlreadyExists):
        core.send_later(manager, b"[]", message_id="id")
    store.confirm()
    assert first.receipt is not None
    assert repeat.receipt == first.receipt._replace(duplicate=True, connections=0)
    assert isinstance(core.offer(manager, message_id="id"), Receipt)


def test_a_repeat_of_one_that_fails_fails_and_is_new_the_next_time(core: Core, store: LaterStore) -> None:
    manager, _ = core.connect()
    first = core.send_later(manager, message_id="id")
    repeat = core.send_later(manager, message_id="id")
    store.fail()
    assert first.error is not None
    assert repeat.error is first.error
    assert isinstance(core.offer(manager, message_id="id"), PendingReceipt)


def test_an_id_used_again_while_its_first_use_waits_keeps_its_own_outcome(core: Core, store: LaterStore) -> None:
    manager, _ = core.connect()
    core.offer(manager, message_id="id")
    core.clock.advance(IDEMPOTENCY_WINDOW_S + 1.0)
    core.offer(manager, message_id="id")
    store.confirm()
    repeat = core.send_later(manager, message_id="id")
    store.confirm()
    assert repeat.receipt is not None
    assert repeat.receipt.sequence == 2


def test_an_id_forgotten_while_it_waits_is_simply_confirmed(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    core.offer(manager, message_id="id")
    for number in range(IDEMPOTENCY_WINDOW):
        core.offer(manager, message_id=f"id-{number}")
    store.confirm_all()
    assert len(socket.frames) == IDEMPOTENCY_WINDOW + 1
    again = core.send_later(manager, message_id="id")
    store.fail()
    assert again.error is not None


def test_a_waiting_append_does_not_hold_back_what_is_before_it(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect(paused=True)
    core.offer(manager, ttl_s=10.0)
    store.confirm()
    core.offer(manager, ttl_s=5.0)
    core.clock.advance(10.0)
    # The second one's time is over too, but the store may yet keep it: it is looked at when it is confirmed.
    core.resume(manager, socket)
    assert gaps(socket) == [(1, 1, "expired")]
    assert list(manager.outbox.entries) == [2]
    assert core.user_bytes(manager) == SIZE
    store.confirm()
    core.send_later(manager)
    store.confirm()
    assert sequences(socket) == [2, 3]


def test_only_an_accepted_send_is_activity(core: Core, store: LaterStore) -> None:
    manager = core.create()
    start = manager.last_activity
    core.clock.advance(5.0)
    core.offer(manager)
    store.fail()
    assert manager.last_activity == start
    core.clock.advance(5.0)
    core.offer(manager)
    sent = core.clock.now()
    core.clock.advance(5.0)
    store.confirm()
    assert manager.last_activity == sent
    core.offer(manager)
    touched = core.clock.advance(5.0)
    manager.touch(touched)
    store.confirm()
    assert manager.last_activity == touched


def test_ending_while_appends_wait_tells_them_so(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    pending = core.send_later(manager, message_id="id")
    repeat = core.send_later(manager, message_id="id")
    manager.end("over", None, core.clock.now())
    assert isinstance(pending.error, ManagerGone)
    assert isinstance(repeat.error, ManagerGone)
    assert store.disposed == [manager.isolation_key]
    store.confirm()
    assert socket.frames == []


def test_whoever_hears_of_an_outcome_finds_the_manager_whole(core: Core, store: LaterStore) -> None:
    manager, socket = core.connect()
    sent: list[Receipt | PendingReceipt] = []

    def send_again(_: PendingReceipt) -> None:
        sent.append(core.offer(manager, message_id=f"again-{len(sent)}"))

    for _ in range(2):
        core.send_later(manager).add_done_callback(send_again)
    store.fail()  # both fail, and each is sent again at once
    assert manager.outbox.head == 2
    assert queued_bytes(core, manager) == 2 * SIZE
    store.confirm_all()
    assert sequences(socket) == [1, 2]
    core.send_later(manager, message_id="third").add_done_callback(send_again)
    store.confirm_all()
    assert sequences(socket) == [1, 2, 3, 4]


def test_whoever_hears_of_the_end_finds_nothing_left(core: Core, store: LaterStore) -> None:
    manager, _ = core.connect()
    seen: list[tuple[int, int]] = []
    core.send_later(manager).add_done_callback(
        lambda _: seen.append((len(core.factory), manager.outbox.queued_bytes)),
    )
    manager.end("over", None, core.clock.now())
    assert seen == [(0, 0)]


# The raw protocol's


def raw(core: Core, *, paused: bool = False) -> tuple[IsolatedWebSocketManager, RecordingSocket]:
    manager = core.create(encoder=GaplessEncoder(), raw=True)
    return manager, core.attach(manager, paused=paused)


def test_a_raw_message_leaves_the_outbox_when_written_and_is_never_acknowledged() -> None:
    core = Core()
    manager, socket = raw(core)
    receipt = core.send(manager, message_id="id")
    assert (receipt.state, receipt.connections) == (DeliveryState.WRITTEN, 1)
    assert socket.frames == [b"{}"]
    assert manager.outbox.entries == {}
    assert (queued_bytes(core, manager), core.user_bytes(manager)) == (0, 0)
    assert core.send(manager, message_id="id").state is DeliveryState.WRITTEN


def test_a_raw_client_that_is_slow_gets_what_waits_and_no_gap_frame() -> None:
    core = Core()
    manager, socket = raw(core, paused=True)
    core.send(manager, b"1", ttl_s=5.0)
    core.send(manager, b"2")
    core.clock.advance(5.0)
    core.resume(manager, socket)
    assert socket.frames == [b"2"]
    assert core.send(manager, b"3").state is DeliveryState.WRITTEN
    assert (queued_bytes(core, manager), core.user_bytes(manager)) == (0, 0)


def test_a_store_is_told_what_a_raw_client_was_given(core: Core, store: LaterStore) -> None:
    manager, _ = raw(core)
    core.offer(manager)
    store.confirm()
    assert store.changes == [manager.isolation_key]
    assert store.state_of(manager.isolation_key).released == 1


@pytest.mark.parametrize(("code", "reason"), [(1000, "client_closed"), (1006, "socket_lost"), (1001, "socket_lost")])
def test_a_raw_context_ends_with_its_socket(code: int, reason: str) -> None:
    core = Core()
    manager, socket = raw(core)
    assert core.lose(manager, socket, code)
    assert manager.ended
    assert core.audit.of(AuditEvent.CONTEXT_CLOSED)[0].fields["reason"] == reason
    assert closes(core) == [(socket.attach_id, code)]


def test_a_raw_context_ends_when_its_socket_is_closed() -> None:
    core = Core()
    manager, socket = raw(core)
    manager.close_connection(socket, catalogued(CloseCode.PONG_TIMEOUT), core.clock.now())
    assert manager.ended
    assert socket.closed_with == Close(4002, "pong_timeout")
    assert core.audit.of(AuditEvent.CONTEXT_CLOSED)[0].fields["reason"] == "pong_timeout"
    assert closes(core) == [(socket.attach_id, 4002)]


def test_a_raw_context_is_not_taken_over() -> None:
    core = Core()
    manager, socket = raw(core)
    with pytest.raises(ManagerGone):
        core.attach(manager)
    assert socket.closed_with == Close(4503, "taken_over")
    assert manager.connections == ()


# The end


def test_ending_closes_every_socket_and_leaves_nothing() -> None:
    core = Core()
    manager, primary = core.connect()
    mirror = core.attach(manager, mirror=True)
    core.send(manager, message_id="id")
    told: list[str] = []
    manager.end_watchers.add(lambda: told.append("ended"))
    close = Close(4505, "closed_by_service")
    assert manager.cleanup_all_connections(manager.context, close, "closed_by_service", core.clock.now()) == 2
    assert primary.closed_with == mirror.closed_with == close
    assert told == ["ended"]
    assert manager.end_watchers == set()
    assert manager.connections == ()
    assert (manager.outbox.entries, manager.outbox.queued_bytes) == ({}, 0)
    assert closes(core) == [(primary.attach_id, 4505), (mirror.attach_id, 4505)]
    (closed,) = core.audit.of(AuditEvent.CONTEXT_CLOSED)
    assert closed.context is manager.context
    assert closed.fields == {"reason": "closed_by_service", "messages": 1}


def test_ending_twice_does_nothing_more() -> None:
    core = Core()
    manager, socket = core.connect()
    manager.end("first", None, core.clock.now())
    manager.end("second", catalogued(CloseCode.IDLE), core.clock.now())
    assert socket.closes == [Close(1001, "going_away")]
    assert len(core.audit.of(AuditEvent.CONTEXT_CLOSED)) == 1
    assert core.factory.get_factory_stats().managers_cleaned_up == 1


def test_statistics_of_a_manager() -> None:
    core = Core()
    manager, socket = core.connect()
    core.attach(manager, mirror=True)
    sent = core.clock.advance(10.0)
    core.send(manager)
    reason_of(core, manager, b"{")
    core.clock.step_wall(600.0)
    at = core.clock.advance(5.0)
    core.lose(manager, socket)
    assert manager.get_manager_stats(manager.context, at) == ManagerStatistics(
        connections_managed=1,
        messages_sent_total=1,
        messages_failed_total=1,
        last_activity_time=sent.unix,
        manager_age_seconds=15.0,
        cleanup_scheduled=True,
        outbox_messages=1,
        outbox_bytes=SIZE,
    )


def test_a_manager_shows_its_state_and_not_its_key() -> None:
    core = Core()
    manager = core.create()
    assert " detached head=0" in repr(manager)
    core.attach(manager)
    core.send(manager)
    assert " attached head=1" in repr(manager)
    manager.end("over", None, core.clock.now())
    assert " ended " in repr(manager)
    assert manager.isolation_key not in repr(manager)


def test_a_frame_far_larger_than_its_payload_counts_for_what_it_is() -> None:
    """Headers and escaped characters are memory too: 32 headers of control characters would else be free."""
    core = Core()
    manager = core.create(encoder=JsonEncoder())
    message = Message("", "note", b"1", headers={f"name-{number}": "\x01" * 1_000 for number in range(32)})
    manager.send_to_user(manager.context, message, core.clock.now())
    (entry,) = manager.outbox.entries.values()
    assert manager.outbox.queued_bytes == len(entry.frame) > 190_000
    manager.send_to_user(manager.context, Message("", "note", b"x" * 500, ContentType.TEXT), core.clock.now())
    assert manager.outbox.queued_bytes == len(entry.frame) + 500 + MESSAGE_OVERHEAD_BYTES
