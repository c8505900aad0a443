"""A disk that is full or fails: what is refused, what is not known, what goes on, and that no upkeep is lost."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from sidecar.core.errors import ErrorReason, Unavailable
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import PendingReceipt
from sidecar.core.outbox import OutboxEntry
from sidecar.storage.sqlite.store import FLUSH_S, MAX_BATCH_MESSAGES, RETRY_S, TRUNCATE_S
from tests.storage.sqlite.stage import CHECKPOINT, MANY, Stage, created, leap, leaping, one_batch, read, refusal

DEFINITE = ErrorReason.STORAGE_UNAVAILABLE
UNKNOWN = ErrorReason.OUTCOME_UNKNOWN


def kept(path: Path) -> list[tuple[int, bytes]]:
    """Sequences and frames of the only context in that file."""
    (context,) = read(path).contexts
    return [(message.sequence, message.frame or b"") for message in context.restored.messages]


@pytest.mark.parametrize(
    ("statement", "code", "reason"),
    [
        ("BEGIN IMMEDIATE", sqlite3.SQLITE_BUSY, DEFINITE),
        ("INSERT INTO messages", sqlite3.SQLITE_IOERR, DEFINITE),
        ("INSERT INTO messages", sqlite3.SQLITE_FULL, DEFINITE),
        ("COMMIT", sqlite3.SQLITE_FULL, DEFINITE),
        ("COMMIT", sqlite3.SQLITE_IOERR_FSYNC, UNKNOWN),
        ("COMMIT", sqlite3.SQLITE_IOERR_WRITE, UNKNOWN),
    ],
)
@leaping
async def test_a_batch_that_fails_is_refused_as_a_whole(
    tmp_path: Path, statement: str, code: int, reason: ErrorReason
) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    await stage.send(manager, b'"first"', "m-1")
    stage.disk.hold()
    failing = [stage.core.send_later(manager, b'"failing"', f"m-{number}") for number in (2, 3)]
    await stage.disk.held()
    behind = [stage.core.send_later(manager, b'"behind"', "m-4")]
    repeat = stage.core.send_later(manager, b'"failing"', "m-2")
    stage.disk.fail(statement, code)
    stage.disk.let_go()
    told = list[str]()
    for name, pending in zip("abcd", (*failing, *behind, repeat), strict=True):
        pending.add_done_callback(lambda _, name=name: told.append(name))  # type: ignore[misc]
    for pending in (*failing, *behind, repeat):
        refused = await refusal(pending)
        assert refused.reason is reason
        assert "nobody is to see" not in repr(refused)
    assert sorted(told) == ["a", "b", "c", "d"]
    assert manager.outbox.head == 1
    again = await stage.send(manager, b'"again"', "m-2")
    assert (again.sequence, again.duplicate) == (2, False)
    assert [frame.split()[1] for frame in socket.frames] == [b"1", b"2"]
    assert [sequence for sequence, _ in kept(stage.copy(tmp_path / "copy"))] == [1, 2]
    assert b"again" in kept(stage.copy(tmp_path / "copy"))[1][1]
    await stage.store.close()


@leaping
async def test_another_contexts_messages_go_on_after_a_failure(tmp_path: Path) -> None:
    """They are in the same batch, and their answers are their own."""
    stage = Stage(tmp_path / "outbox.db")
    alice, bob = await stage.create(), await stage.create(user_id="bob")
    stage.disk.fail("COMMIT", sqlite3.SQLITE_FULL)
    both = [stage.core.send_later(one) for one in (alice, bob)]
    for pending in both:
        assert (await refusal(pending)).reason is DEFINITE
    assert [(await stage.send(one)).sequence for one in (alice, bob)] == [1, 1]
    await stage.store.close()


@leaping
async def test_a_full_file_takes_more_once_there_is_room(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    stage.disk.fill()
    large = b'"%s"' % (b"x" * 20_000)
    for _ in range(3):
        refused = await refusal(stage.core.offer(manager, large))
        assert (refused.reason, refused.retry_after_s is not None) == (DEFINITE, True)
    assert (manager.outbox.head, socket.frames) == (0, [])
    assert stage.core.user_bytes(manager) == 0
    stage.disk.make_room()
    assert (await stage.send(manager, large)).sequence == 1
    await stage.store.close()
    assert [sequence for sequence, _ in kept(stage.path)] == [1]


@leaping
async def test_a_full_file_has_its_log_emptied(tmp_path: Path) -> None:
    """What the log takes up may be the room that is missing."""
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    before = stage.disk.count(CHECKPOINT)
    stage.disk.fail("COMMIT", sqlite3.SQLITE_FULL)
    await refusal(stage.core.offer(manager))
    assert stage.disk.count(CHECKPOINT) == before + 1
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    await refusal(stage.core.offer(manager))
    assert stage.disk.count(CHECKPOINT) == before + 1
    await stage.store.close()


@leaping
async def test_a_rollback_that_fails_too_is_made_before_the_next(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    stage.disk.fail("COMMIT")
    stage.disk.fail("ROLLBACK")
    assert (await refusal(stage.core.offer(manager))).reason is UNKNOWN
    assert (await refusal(stage.core.offer(manager))).reason is DEFINITE
    assert (await stage.send(manager)).sequence == 1
    await stage.store.close()


@leaping
async def test_a_bug_in_what_is_written_is_a_refusal(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    told: list[Exception | None] = []
    at = stage.core.clock.now()
    bad = OutboxEntry(1, b"frame", -1, at.monotonic, critical=False)
    async with one_batch():
        stage.store.append(manager.isolation_key, manager.epoch, bad, None, at, told.append)
    other = await stage.create()
    assert isinstance(told[0], Unavailable)
    assert (await stage.send(other)).sequence == 1
    await stage.store.close()


# Creation


@leaping
async def test_a_context_that_could_not_be_kept_takes_nothing(tmp_path: Path) -> None:
    """Not even what a broadcast sends it before it ends: it would be confirmed, and be nowhere."""
    stage = Stage(tmp_path / "outbox.db")
    stage.disk.hold()
    other = stage.core.create()
    await stage.disk.held()
    manager = stage.core.create()
    early = stage.core.send_later(manager)
    stage.disk.fail("COMMIT", sqlite3.SQLITE_FULL, passing=1)
    stage.disk.let_go()
    await created(other)
    with pytest.raises(Unavailable) as raised:
        await created(manager)
    assert raised.value.reason is DEFINITE
    assert (await refusal(early)).reason is DEFINITE
    assert (await refusal(stage.core.offer(manager))).reason is DEFINITE
    manager.note_attempt(1)
    stage.end(manager)
    third = await stage.create()
    await stage.send(third)
    fourth = await stage.create()
    loaded = read(stage.copy(tmp_path / "copy"))
    keys = {context.id: context.restored.context.isolation_key for context in loaded.contexts}
    # Rows of keys are only added at the end: the one that was never written is not used again.
    assert keys == {1: other.isolation_key, 3: third.isolation_key, 4: fourth.isolation_key}
    assert (loaded.unused, loaded.next_context) == ([], 5)
    await stage.store.close()


@leaping
async def test_a_context_that_ends_while_it_is_written_is_not_there(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    stage.disk.hold()
    manager = stage.core.create()
    await stage.disk.held()
    stage.end(manager)
    never = stage.core.create()
    stage.end(never)
    stage.disk.let_go()
    await stage.create(user_id="bob")
    assert [context.id for context in read(stage.copy(tmp_path / "copy")).contexts] == [3]
    await stage.store.close()


# Upkeep


@leaping
async def test_upkeep_is_tried_again(tmp_path: Path) -> None:
    """An acknowledgement, a drop, a forgotten id and an end, all in a batch that fails."""
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    ended = await stage.create(user_id="bob")
    for number in range(2):
        await stage.send(manager, b"0", f"m-{number}")
    await stage.send(manager, ttl_s=1.0)
    await stage.send(manager)
    manager.acknowledge(socket.attach_id, 1, stage.core.clock.now())
    stage.core.clock.advance(2.0)
    manager.drop_expired(stage.core.clock.monotonic())
    stage.store.forget(manager.isolation_key, 1)
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    async with one_batch():
        leap(FLUSH_S)
        stage.end(ended)
    manager.acknowledge(socket.attach_id, 2, stage.core.clock.now())
    async with one_batch():
        leap(RETRY_S)
    assert stage.disk.count("ROLLBACK") == 2
    assert len(read(stage.copy(tmp_path / "failed")).contexts) == 2
    async with one_batch():
        leap(RETRY_S)
    loaded = read(stage.copy(tmp_path / "copy"))
    (context,) = loaded.contexts
    state, messages = context.restored.state, context.restored.messages
    assert loaded.unused == [2]
    assert state.acknowledged == 2
    assert [(gap.first, gap.last) for gap in state.gaps] == [(3, 3)]
    assert [(message.sequence, message.frame is None) for message in messages] == [(2, True), (4, False)]
    await stage.store.close()


@leaping
async def test_no_row_goes_before_its_context_stands_where_it_is_not_needed(tmp_path: Path) -> None:
    """What another context brings is written before what failed is tried again, and takes the rows that go with it."""
    stage = Stage(tmp_path / "outbox.db")
    manager, socket = await stage.connect()
    other = await stage.create(user_id="bob")
    for _ in range(3):
        await stage.send(manager)
    manager.acknowledge(socket.attach_id, 3, stage.core.clock.now())
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    await stage.flushed()
    await stage.send(other)
    restarted = stage.after_crash(tmp_path / "crash")
    (again,) = (each for each in restarted.managers if each.isolation_key == manager.isolation_key)
    assert (again.outbox.acknowledged, again.outbox.head) == (3, 3)
    for one in (stage, restarted):
        await one.store.close()


@leaping
async def test_a_disposal_that_came_late_is_taken_out_of_the_log_too(tmp_path: Path) -> None:
    """Its time to be taken out came, and was used, while it could not be written."""
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    stage.disk.fail("COMMIT", sqlite3.SQLITE_IOERR)
    async with one_batch():
        stage.end(manager)
    async with one_batch():
        leap(TRUNCATE_S)
    assert stage.disk.count("ROLLBACK") == 2
    checkpoints = stage.disk.count(CHECKPOINT)
    async with one_batch():
        leap(RETRY_S)
    assert stage.disk.count(CHECKPOINT) == checkpoints
    async with one_batch():
        leap(TRUNCATE_S)
    assert stage.disk.count(CHECKPOINT) == checkpoints + 1
    assert Path(f"{stage.path}-wal").stat().st_size == 0
    await stage.store.close()


# Close


@leaping
async def test_a_close_tries_once_more_what_had_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager, ended = await stage.create(), await stage.create()
    stage.disk.fail("COMMIT")
    async with one_batch():
        stage.end(ended)
    pending = stage.core.send_later(manager)
    await stage.store.close()
    assert pending.receipt is not None
    assert [sequence for sequence, _ in kept(stage.path)] == [1]


@pytest.mark.parametrize("busy", [False, True])
@leaping
async def test_a_close_that_cannot_write_answers_all_the_same(tmp_path: Path, busy: bool) -> None:
    stage = Stage(tmp_path / "outbox.db", limits=MANY)
    managers = [await stage.create(user_id=f"u-{number}") for number in range(4)]
    for _ in range(20):
        stage.disk.fail("BEGIN IMMEDIATE")
    told: list[int] = []

    def send(manager: IsolatedWebSocketManager) -> None:
        number = len(waiting)
        waiting.append(stage.core.send_later(manager))
        waiting[-1].add_done_callback(lambda _: told.append(number))

    waiting: list[PendingReceipt] = []
    if busy:
        stage.disk.hold()
        send(managers[0])
        await stage.disk.held()
    for manager in managers:  # more batches than a close has patience for
        for _ in range(MAX_BATCH_MESSAGES + 10):
            send(manager)
    stage.end(managers[0])
    stage.disk.let_go()
    await stage.store.close()
    assert sorted(told) == list(range(len(waiting)))
    assert all(pending.error is not None for pending in waiting)
    await stage.store.close()
    assert len(read(stage.path).contexts) == 4


@leaping
async def test_two_may_close_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    waiting = [stage.core.send_later(manager) for _ in range(3)]
    await asyncio.gather(stage.store.close(), stage.store.close())
    assert [pending.receipt is not None for pending in waiting] == [True] * 3
    assert len(kept(stage.path)) == 3


@leaping
async def test_a_checkpoint_that_fails_is_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    async with one_batch():
        stage.end(manager)
    stage.disk.fail(CHECKPOINT)
    async with one_batch():
        leap(TRUNCATE_S)
    assert Path(f"{stage.path}-wal").stat().st_size > 0
    async with one_batch():
        leap(RETRY_S)
    assert Path(f"{stage.path}-wal").stat().st_size == 0
    await stage.store.close()
