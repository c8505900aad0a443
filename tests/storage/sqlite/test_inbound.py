"""What clients said, in the store: kept until it is taken, its id for longer; and where a chunk has its place."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.deliveries import InboundMessage
from sidecar.core.errors import ErrorReason, SidecarError
from sidecar.core.manager import IsolatedWebSocketManager
from sidecar.core.message import ContentType, StreamPlace, StreamState
from sidecar.core.stored import MessageIdentity, StoredInbound
from sidecar.storage.sqlite.rows import Malformed, decode_inbound, decode_message, encode_message
from tests.storage.sqlite.stage import Stage, leaping, one_batch, read

CANARY = b"canary-91c4"
PAYLOADS = [b"{}", b"", b"a\nb\n\n", bytes(range(256)), CANARY]


def said(number: int, payload: bytes = b"{}", *, known: bool = True) -> StoredInbound:
    message_id = f"c-{number}" if known else ""
    message = InboundMessage(message_id, "said", payload, ContentType.BINARY)
    identity = MessageIdentity(message_id, bytes(16)) if known else None
    return StoredInbound(number, "agent", message, identity)


def inbound(path: Path) -> list[StoredInbound]:
    """What stands in that file of the only context."""
    (context,) = read(path).contexts
    return list(context.restored.inbound)


async def receive(
    stage: Stage, manager: IsolatedWebSocketManager, *several: StoredInbound
) -> list[tuple[int, ErrorReason | None]]:
    """Give them to the store in one turn; the answers, in their order."""
    told: list[tuple[int, ErrorReason | None]] = []

    def answered(number: int, error: Exception | None) -> None:
        assert error is None or isinstance(error, SidecarError)
        told.append((number, None if error is None else error.reason))

    async with one_batch():
        for one in several:
            number = one.number
            at = stage.core.clock.now()
            assert not stage.store.receive(
                manager.isolation_key,
                one,
                at,
                lambda error, number=number: answered(number, error),  # type: ignore[misc]
            )
    return told


@leaping
async def test_what_a_client_said_is_kept_until_it_is_taken(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    several = [said(number, payload, known=number % 2 == 0) for number, payload in enumerate(PAYLOADS, start=1)]
    assert await receive(stage, manager, *several) == [(number, None) for number in range(1, 6)]
    assert inbound(stage.copy(tmp_path / "kept")) == several
    stage.store.taken(manager.isolation_key, 1)
    stage.store.taken(manager.isolation_key, 2)
    stage.store.taken("a key that nobody has", 3)
    await stage.flushed()
    taken = StoredInbound(2, "", None, several[1].identity)
    assert inbound(stage.copy(tmp_path / "taken")) == [taken, *several[2:]]
    stage.store.forget(manager.isolation_key, -2)
    stage.store.forget(manager.isolation_key, -4)
    await stage.flushed()
    assert [one.number for one in inbound(stage.copy(tmp_path / "forgotten"))] == [3, 4, 5]
    stage.store.taken(manager.isolation_key, 4)
    await stage.store.close()
    assert [one.number for one in inbound(stage.path)] == [3, 5]


@leaping
async def test_it_stands_beside_what_services_say(tmp_path: Path) -> None:
    """Neither is in the way of the other's sequence, before and after a restart, and both go with their context."""
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    for number in range(1, 4):
        await receive(stage, manager, said(number))
        assert (await stage.send(manager, b"%d" % number)).sequence == number
    life = stage.after_crash(tmp_path / "crashed")
    (again,) = life.managers
    assert again.conversation.inbox.last_number == 3
    assert (await life.send(again)).sequence == 4
    async with one_batch():
        life.end(again)
    left = read(life.copy(tmp_path / "left"))
    assert left.contexts == []
    await life.store.close()
    await stage.store.close()


@leaping
async def test_a_batch_that_fails_keeps_none_of_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    await receive(stage, manager, said(1))
    stage.disk.fail("COMMIT", sqlite3.SQLITE_FULL)
    assert await receive(stage, manager, said(2), said(3)) == [
        (2, ErrorReason.STORAGE_UNAVAILABLE),
        (3, ErrorReason.STORAGE_UNAVAILABLE),
    ]
    assert (await stage.send(manager)).sequence == 1
    assert await receive(stage, manager, said(4)) == [(4, None)]
    assert [one.number for one in inbound(stage.copy(tmp_path / "copy"))] == [1, 4]
    await stage.store.close()


@leaping
async def test_a_context_that_is_not_kept_takes_nothing_from_its_client(tmp_path: Path) -> None:
    """A row that belongs to nothing would have the next start refused."""
    stage = Stage(tmp_path / "outbox.db")
    stage.disk.fail("COMMIT", sqlite3.SQLITE_FULL)
    async with one_batch():
        manager = stage.core.create()
    told: list[Any] = []
    stage.store.receive(manager.isolation_key, said(1), stage.core.clock.now(), told.append)
    await stage.create(user_id="bob")
    assert [error.reason for error in told] == [ErrorReason.STORAGE_UNAVAILABLE]
    assert inbound(stage.copy(tmp_path / "copy")) == []
    await stage.store.close()


@leaping
async def test_nothing_of_it_stands_in_clear(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "outbox.db")
    manager = await stage.create()
    await receive(stage, manager, said(1, CANARY))
    copy = stage.copy(tmp_path / "copy")
    data = b"".join(path.read_bytes() for path in copy.parent.iterdir())
    assert CANARY not in data
    assert b"agent" not in data
    await stage.store.close()


@pytest.mark.parametrize(
    "stream", [None, StreamPlace("s", 0, StreamState.OPEN), StreamPlace("x" * 128, 2**53, StreamState.ERROR)]
)
@pytest.mark.parametrize("frame", PAYLOADS)
def test_a_message_is_read_as_it_was_written(stream: StreamPlace | None, frame: bytes) -> None:
    sealed = encode_message(frame, 300, 1.5, True, stream)
    read_again = decode_message(7, sealed, None)
    assert (read_again.frame, read_again.size, read_again.expires_at) == (frame, 300, 1.5)
    assert (read_again.critical, read_again.stream) == (True, stream)


def test_what_none_of_ours_wrote_is_malformed() -> None:
    stream = StreamPlace("stream", 0, StreamState.OPEN)
    good = encode_message(b"", 300, 1.5, True, stream)
    bad = [good[:end] for end in range(len(good))] + [good[:-1] + b"\xff", good[:20] + b"\xff" + good[21:]]
    for data in bad:
        with pytest.raises(Malformed):
            decode_message(1, data, None)
    for frame in (b"", b"[]\n", b'["a","b"]\n', b"{\n", b"\xff\n"):
        with pytest.raises(Malformed):
            decode_inbound(1, decode_message(1, encode_message(frame, 1, 0.0, False), None))
