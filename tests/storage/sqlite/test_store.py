"""The store with its thread and its file: what is confirmed is there, in order, and is there again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.errors import AlreadyExists, ErrorReason, SidecarError
from sidecar.core.idempotency import IDEMPOTENCY_WINDOW
from sidecar.core.limits import Limits
from sidecar.core.message import DeliveryState, Durability
from sidecar.core.outbox import OutboxEntry, OutboxLimits
from sidecar.core.writes import WriteBatch
from sidecar.storage.sqlite.store import FLUSH_S, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, SqliteOutboxStore
from tests.storage.sqlite.stage import KEY, MANY, Stage, created, leap, leaping, one_batch, read, receipt, refusal


def sequences(path: Path) -> list[int]:
    """Of the messages of all contexts in that file."""
    return [message.sequence for context in read(path).contexts for message in context.restored.messages]


# Confirmed


@leaping
async def test_a_message_is_in_the_file_when_it_is_confirmed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    found: list[list[int]] = []
    stage.disk.hold()
    for number in range(3):
        pending = stage.core.send_later(manager, b"%d" % number)
        pending.add_done_callback(lambda _: found.append(sequences(stage.copy(tmp_path / f"copy-{len(found)}"))))
        if number == 0:
            await stage.disk.held()  # the others come in the batch behind it
    assert socket.frames == []
    stage.disk.let_go()
    receipts = [await receipt(stage.core.offer(manager, b"9"))]
    assert [answer.sequence for answer in receipts] == [4]
    assert found == [[1], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert [frame.split()[1] for frame in socket.frames] == [b"1", b"2", b"3", b"4"]
    assert receipts[0].durability is Durability.DISK
    assert receipts[0].state is DeliveryState.WRITTEN
    await stage.store.close()


@leaping
async def test_a_context_is_in_the_file_when_it_is_kept(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = stage.core.create()
    assert manager.creation is not None
    found: list[int] = []
    manager.creation.add_done_callback(lambda: found.append(len(read(stage.copy(tmp_path / "copy")).contexts)))
    await created(manager)
    assert found == [1]
    await stage.store.close()


@leaping
async def test_what_comes_in_one_turn_is_one_commit(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db", limits=MANY)
    managers = [await stage.create(user_id=f"u-{number}") for number in range(20)]
    before = stage.disk.count("COMMIT")
    sent = [stage.core.send_later(manager, b"%d" % number) for number in range(50) for manager in managers]
    answers = [await receipt(pending) for pending in sent]
    assert stage.disk.count("COMMIT") == before + 1
    assert [answer.sequence for answer in answers] == [number for number in range(1, 51) for _ in managers]
    await stage.store.close()


@leaping
async def test_what_comes_while_one_is_written_is_the_next(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    before = stage.disk.count("COMMIT")
    stage.disk.hold()
    first = stage.core.send_later(manager)
    await stage.disk.held()
    behind = [stage.core.send_later(manager) for _ in range(100)]
    stage.disk.let_go()
    assert [(await receipt(pending)).sequence for pending in (first, *behind)] == list(range(1, 102))
    assert stage.disk.count("COMMIT") == before + 2
    await stage.store.close()


@leaping
async def test_a_batch_is_bounded(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db", limits=MANY)
    manager = await stage.create()
    before = stage.disk.count("COMMIT")
    await receipt([stage.core.send_later(manager) for _ in range(MAX_BATCH_MESSAGES)][-1])
    assert stage.disk.count("COMMIT") == before + 1
    await receipt([stage.core.send_later(manager) for _ in range(MAX_BATCH_MESSAGES + 1)][-1])
    assert stage.disk.count("COMMIT") == before + 3
    large = b'"%s"' % (b"x" * (256 * 1024 - 2))
    one_more = MAX_BATCH_BYTES // len(large) + 1
    await receipt([stage.core.send_later(manager, large) for _ in range(one_more)][-1])
    assert stage.disk.count("COMMIT") == before + 5
    await stage.store.close()


@leaping
async def test_an_append_is_conditional_on_epoch_and_sequence(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    await stage.send(manager)
    answers: list[Exception | None] = []
    at = stage.core.clock.now()
    for epoch, sequence in ((manager.epoch + 1, 2), (manager.epoch, 1), (manager.epoch, 3), (manager.epoch, 0)):
        entry = OutboxEntry(sequence, b"frame", 261, at.monotonic + 10, critical=False)
        assert not stage.store.append(manager.isolation_key, epoch, entry, None, at, answers.append)
    assert (await stage.send(manager)).sequence == 2
    assert [answer.reason for answer in answers if isinstance(answer, SidecarError)] == [
        ErrorReason.STORAGE_UNAVAILABLE
    ] * 4
    assert sequences(stage.copy(tmp_path / "copy")) == [1, 2]
    await stage.store.close()


# Upkeep


@leaping
async def test_an_acknowledgement_rides_with_the_next_commit_or_after_a_while(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    for _ in range(4):
        await stage.send(manager)
    commits = stage.disk.count("COMMIT")
    manager.acknowledge(socket.attach_id, 1, stage.core.clock.now())
    manager.acknowledge(socket.attach_id, 2, stage.core.clock.now())
    await stage.flushed()
    assert sequences(stage.copy(tmp_path / "flushed")) == [3, 4]
    assert stage.disk.count("COMMIT") == commits + 1
    await stage.store.close()
    assert sequences(stage.path) == [3, 4]


@leaping
async def test_rows_of_any_number_are_written_and_deleted(tmp_path: Path) -> None:
    """A statement takes a power of two of them."""
    stage = Stage(tmp_path / "outbox.db", limits=MANY)
    manager, socket = await stage.connect()
    head = 0
    for count in (1, 2, 3, 255, 256, 257, 600):
        await receipt([stage.core.send_later(manager) for _ in range(count)][-1])
        before, head = head, head + count
        assert sequences(stage.copy(tmp_path / f"written-{count}")) == list(range(before + 1, head + 1))
        manager.acknowledge(socket.attach_id, head, stage.core.clock.now())
        await stage.flushed()
        assert sequences(stage.copy(tmp_path / f"flushed-{count}")) == []
    await stage.store.close()


@leaping
async def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    commits = stage.disk.count("COMMIT")
    stage.store.changed("a key that nobody has")
    stage.store.dispose("a key that nobody has")
    leap(10 * FLUSH_S)
    await stage.send(manager)
    assert stage.disk.count("COMMIT") == commits + 1
    await stage.store.close()


@leaping
async def test_nothing_stands_of_a_context_that_does_not_yet(tmp_path: Path) -> None:
    """A state without its context would make a start after a crash fail."""
    stage = Stage(tmp_path / "outbox.db")
    other = await stage.create(user_id="bob")
    stage.disk.hold()
    first = stage.core.send_later(other)
    await stage.disk.held()
    others = [stage.core.send_later(other) for _ in range(MAX_BATCH_MESSAGES)]
    manager = stage.core.create()  # two batches away
    assert manager.note_attempt(3)
    leap(FLUSH_S)
    stage.disk.let_go()
    found: list[int] = []
    others[-1].add_done_callback(lambda _: found.append(len(read(stage.copy(tmp_path / "between")).contexts)))
    await receipt(first)
    await created(manager)
    assert found == [1]
    await stage.flushed()
    (_, kept) = read(stage.copy(tmp_path / "copy")).contexts
    assert kept.restored.state.attempt == 3
    await stage.store.close()


# There again


@leaping
async def test_everything_is_there_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db", limits=Limits(outbox=OutboxLimits(max_messages=5)))
    manager, socket = await stage.connect(user_id="alice")
    other = await stage.create(user_id="bob", tenant_id="rival")
    assert manager.note_attempt(7)
    for number in range(7):
        await stage.send(manager, b"%d" % number, f"m-{number}")
    await stage.send(manager, b'"critical"', critical=True)
    await stage.send(other, b'"bob"')
    manager.acknowledge(socket.attach_id, 1, stage.core.clock.now())
    stage.core.lose(manager, socket)
    await stage.flushed()
    for life in (stage.after_crash(tmp_path / "crashed"), await stage.restarted()):
        again, bobs = life.managers
        assert (again.isolation_key, bobs.isolation_key) == (manager.isolation_key, other.isolation_key)
        for name in ("tenant_id", "user_id", "session_id", "connection_id", "request_id", "created_at", "permissions"):
            assert getattr(again.context, name) == getattr(manager.context, name)
        assert dict(again.context.metadata) == dict(manager.context.metadata)
        assert (again.outbox.head, again.outbox.acknowledged, again.attempt) == (8, 1, 7)
        assert not again.note_attempt(7)
        full, frames = life.resume(again, 1)
        assert not full
        assert frames[0] == b"gap 2 2 evicted"
        assert frames == [b"gap 2 2 evicted", *socket.frames[2:]]
        full, (frame,) = life.resume(bobs, 0)
        assert full
        assert frame.startswith(b"message 1 ")
        assert frame.endswith(b' "bob"')
        repeat = life.core.send(again, b"0", "m-0")
        assert (repeat.sequence, repeat.duplicate, repeat.state) == (1, True, DeliveryState.ACKNOWLEDGED)
        with pytest.raises(AlreadyExists):
            life.core.offer(again, b"6", "m-0")
        assert (await life.send(again)).sequence == 9
        await life.store.close()


@leaping
async def test_time_passes_for_messages_while_nobody_runs(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    await stage.send(manager, ttl_s=10.0)
    await stage.send(manager, ttl_s=100.0)
    stage.core.clock.advance(50.0)
    life = await stage.restarted()
    (again,) = life.managers
    full, frames = life.resume(again, 0)
    assert not full
    assert frames[0] == b"gap 1 1 expired"
    assert len(frames) == 2
    await life.store.close()


@leaping
async def test_a_raw_context_is_not_there_again_and_nothing_of_it_is(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create(raw=True)
    await stage.send(manager)
    async with one_batch():
        life = stage.after_crash(tmp_path / "crashed")
    assert life.managers == []
    left = read(life.copy(tmp_path / "after"))
    assert left.contexts == []
    assert left.unused == [1]
    await life.store.close()
    await stage.store.close()


@leaping
async def test_a_place_is_used_again_only_once_its_disposal_is_committed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    first, second = await stage.create(), await stage.create()
    stage.disk.hold()
    stage.end(first)
    await stage.disk.held()
    third = stage.core.create()
    stage.disk.let_go()
    await created(third)
    fourth = await stage.create()
    await stage.send(fourth, b'"4"')
    fifth = await stage.create()
    loaded = read(stage.copy(tmp_path / "copy"))
    keys = {context.id: context.restored.context.isolation_key for context in loaded.contexts}
    assert keys == {
        1: fourth.isolation_key,
        2: second.isolation_key,
        3: third.isolation_key,
        4: fifth.isolation_key,
    }
    assert (loaded.unused, loaded.next_context) == ([], 5)
    await stage.store.close()


# Ids


@leaping
async def test_a_row_goes_when_its_id_is_forgotten_unless_its_message_waits(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db", limits=MANY)
    manager, socket = await stage.connect()
    for number in range(4):
        await stage.send(manager, b"0", f"m-{number}")
    manager.acknowledge(socket.attach_id, 2, stage.core.clock.now())
    await stage.flushed()
    assert sequences(stage.copy(tmp_path / "before")) == [1, 2, 3, 4]
    sent = [stage.core.send_later(manager, b"0", f"n-{number}") for number in range(IDEMPOTENCY_WINDOW - 1)]
    await receipt(sent[-1])  # m-0, m-1 and m-2 are forgotten, in the same commits
    assert sequences(stage.copy(tmp_path / "after"))[:3] == [3, 4, 5]
    life = stage.after_crash(tmp_path / "crashed")
    (again,) = life.managers
    assert life.core.send(again, b"0", "m-3").duplicate
    assert not (await life.send(again, b"0", "m-2")).duplicate
    assert life.resume(again, 2)[1][0].split()[1] == b"3"
    again.acknowledge(again.connections[0].attach_id, again.outbox.head, life.core.clock.now())
    await life.flushed()
    assert sequences(life.copy(tmp_path / "acknowledged"))[0] == 5  # m-3 went for m-2
    await life.store.close()
    await stage.store.close()


# Close


@leaping
async def test_a_close_writes_what_waits(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    ended = await stage.create()
    await stage.send(manager)
    manager.acknowledge(socket.attach_id, 1, stage.core.clock.now())
    stage.end(ended)
    waiting = stage.core.send_later(manager)
    await stage.store.close()
    assert waiting.receipt is not None
    assert sequences(stage.path) == [2]
    assert not Path(f"{stage.path}-wal").exists()
    await stage.store.close()


@leaping
async def test_a_close_waits_for_what_is_under_way_and_behind_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    stage.disk.hold()
    first = stage.core.send_later(manager)
    await stage.disk.held()
    second = stage.core.send_later(manager)
    stage.disk.let_go()
    await stage.store.close()
    assert first.receipt is not None
    assert second.receipt is not None
    assert sequences(stage.path) == [1, 2]


@leaping
async def test_a_store_that_never_started_lets_go_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    store = SqliteOutboxStore(path, KEY, WriteBatch())
    await store.close()
    await store.close()
    assert read(path).contexts == []


@leaping
async def test_an_error_in_an_answer_is_that_answers_alone(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()

    def bug(_: object) -> None:
        raise RuntimeError("a bug")

    first = stage.core.send_later(manager)
    first.add_done_callback(bug)
    assert (await receipt(stage.core.offer(manager))).sequence == 2
    await stage.store.close()


@leaping
async def test_appends_to_a_context_that_ends_meanwhile_are_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, other = await stage.create(), await stage.create()
    stage.disk.hold()
    first = stage.core.send_later(manager)
    await stage.disk.held()
    second = stage.core.send_later(manager)
    stage.end(manager)
    stage.disk.let_go()
    for pending in (first, second):
        assert (await refusal(pending)).reason is ErrorReason.MANAGER_GONE
    await stage.send(other)
    loaded = read(stage.copy(tmp_path / "copy"))
    assert [context.restored.context.isolation_key for context in loaded.contexts] == [other.isolation_key]
    assert len(loaded.contexts[0].restored.messages) == 1
    await stage.store.close()
